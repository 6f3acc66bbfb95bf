"""What does a decentralized step cost? DecentLaM against DmSGD and against all-reduce, on 4 real gloo processes.

    python benchmarks/decentralized.py --json benchmarks/results/decentralized.json

An MLP of 0.84 million weights on random data, ring, one thread a process. Rows: contender against DmSGD, ratio of wall
times (median over interleaved rounds of steps, slowest rank) and its quartiles, ratio of CPU times (all ranks, which a
loaded machine disturbs less), milliseconds a step, bytes a rank sends in a step beside those of its parameters.
Latency-shaped loopback takes network namespaces with tc netem; where the machine has none, the result says so.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import isobatch
from isobatch.decentralized import Decentralized
from isobatch.decentralized.graphs import build
from isobatch_studies.decentlam.loopback import ranks

RANKS, BAR = 4, 1.1
CONTENDERS = {
    "DmSGD": ("dmsgd", False),
    "DecentLaM": ("decentlam", False),
    "DmSGD, overlapped": ("dmsgd", True),
    "DecentLaM, overlapped": ("decentlam", True),
    "AWC-DmSGD, overlapped": ("awc", True),
    "QG-DmSGD": ("qg", False),
    "PmSGD (all-reduce)": ("pmsgd", False),
}
PAIRS = {"DecentLaM": "DmSGD", "DecentLaM, overlapped": "DmSGD, overlapped"}


def contender(method: str, overlap: bool) -> tuple:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 64))
    inner = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    options = {"overlap": overlap, "bucket_bytes": 1 << 20}
    return net, Decentralized(inner, build("lazy ring", RANKS), method, **options)


def measure(rank: int, rounds: int, count: int) -> dict:
    made = {name: contender(*what) for name, what in CONTENDERS.items()}
    x, y = torch.randn(64, 256), torch.randint(64, (64,))

    def steps(net: nn.Module, optimizer: Decentralized, number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    for net, optimizer in made.values():
        steps(net, optimizer, 2)
    found: dict = {name: [] for name in made}
    spent: dict = {name: [] for name in made}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(made), len(made)):
            dist.barrier()
            began, busy = time.perf_counter(), time.process_time()
            steps(*made[name], count)
            spent[name].append((time.process_time() - busy) / count)
            dist.barrier()
            found[name].append((time.perf_counter() - began) / count)
    traffic = {}
    for name, (net, optimizer) in made.items():
        size = sum(p.numel() * p.element_size() for p in net.parameters())
        mail = optimizer.neighbourhood.mail
        traffic[name] = {"sent": mail.bytes_sent / optimizer.steps, "parameters": size}
        optimizer.close()
    return {"times": found, "spent": spent, "traffic": traffic}


def latency() -> str:
    """Try to shape a loopback of its own, in a network namespace."""
    if shutil.which("unshare") is None or shutil.which("tc") is None:
        return "not measured: unshare or tc is missing"
    shape = "ip link set lo up && tc qdisc add dev lo root netem delay 1ms"
    tried = subprocess.run(["unshare", "-Urn", "sh", "-c", shape], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"not measured: tc netem is refused here ({tried.stderr.strip() or tried.returncode})"
    return "possible here: run this file under unshare -Urn with netem on lo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    before = os.getloadavg()
    parts = ranks(RANKS, lambda rank: measure(rank, arguments.rounds, arguments.steps), timeout=900)
    times = {name: [max(p["times"][name][n] for p in parts) for n in range(arguments.rounds)] for name in CONTENDERS}
    spent = {name: [sum(p["spent"][name][n] for p in parts) for n in range(arguments.rounds)] for name in CONTENDERS}
    rows = []
    for name in CONTENDERS:
        against = PAIRS.get(name, "DmSGD")
        ratios = [a / b for a, b in zip(times[name], times[against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({
            "contender": name, "against": against, "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)], "bar": BAR if name in PAIRS else None,
            "cpu ratio": round(statistics.median(a / b for a, b in zip(spent[name], spent[against], strict=True)), 3),
            "milliseconds": round(1e3 * statistics.median(times[name]), 2), **parts[0]["traffic"][name],
        })  # fmt: skip
        print(rows[-1], flush=True)
    print(f"latency-shaped loopback {latency()}")
    if arguments.json:
        result = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {RANKS} processes",
            "load before": [round(load, 1) for load in before],
            "versions": {"isobatch": isobatch.__version__, "torch": str(torch.__version__)},
            "rounds": arguments.rounds,
            "steps_a_round": arguments.steps,
            "latency-shaped loopback": latency(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
