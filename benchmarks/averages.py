"""Cost of one update of an average, against the memory limit and other libraries, all interleaved in one process.

Run from the repository's root: python benchmarks/averages.py --json FILE [--threads 1 2] [--rounds 21] [--cases ...]
One thread is timed in CPU time, more in wall time. The limit is the faster of a flat add_ and lerp_, scaled to the
bytes of one ideal pass; ratios are taken within each round and their median and quartiles reported, since the load of
a machine drifts.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from average_contenders import FLOAT32, LEFT_TO_THE_LOOP, NARROW, SEVERAL, SHORT, SMALL, Update
from average_models import many_small, resnet50, vit_b16
from torch import nn

from isobatch.average import ModelEMA

PEERS = ("torch", "ema-pytorch", "diffusers", "torch-ema", "timm", "ultralytics")
HOST = "host time per update, bound lists, tiny tensors"

# case: (model, contenders, bytes per weight of one ideal pass)
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Callable[[nn.Module], Update]], float]] = {
    "fp32 ResNet-50": (resnet50, FLOAT32, 12),
    "fp32 ViT-B/16": (vit_b16, FLOAT32, 12),
    "1000x1k": (many_small, SMALL, 12),
    "bf16 to fp32": (lambda: resnet50().bfloat16(), NARROW, 10),
    "3 horizons": (resnet50, SEVERAL, 28),
    "bf16 compensated": (lambda: resnet50().bfloat16(), SHORT, 10),
    HOST: (lambda: resnet50(width=1, classes=10), FLOAT32, 12),
}


def flat_limit(model: nn.Module) -> dict[str, Update]:
    """One pass over as many float32 numbers in two flat tensors: 12 bytes per weight."""
    size = sum(p.numel() for p in model.parameters())
    average, weights = torch.zeros(size), torch.randn(size)
    return {
        "limit: flat add_": lambda: average.add_(weights, alpha=1e-3),
        "limit: flat lerp_": lambda: average.lerp_(weights, 1e-3),
    }


def built(case: str) -> tuple[dict[str, Update], list[str]]:
    """Contenders of a case, and what was skipped and why; each has weights of its own where it may move them."""
    make, contenders, _ = CASES[case]
    torch.manual_seed(0)
    shared = make()
    updates, skipped = dict(flat_limit(shared)), []
    for name, build in contenders.items():
        try:
            update = build(make() if "flat" in name else shared)
            for _ in range(3):
                update()
        except Exception as error:
            skipped.append(f"{case}: {name} skipped: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        updates[name] = update
    return updates, skipped


def timed(updates: dict[str, Update], rounds: int, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per update of every contender in every round, in random order within a round."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in updates}
    order, generator = list(updates), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            update = updates[name]
            start = clock()
            for _ in range(repeats):
                update()
            found[name].append((clock() - start) / repeats)
    return found


def measure(case: str, rounds: int, threads: int) -> tuple[list[dict[str, Any]], list[str]]:
    updates, skipped = built(case)
    repeats = 5 if case == HOST else 1
    seconds = timed(updates, rounds, threads, repeats)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    flat = min((name for name in middle if name.startswith("limit")), key=middle.__getitem__)
    rows = []
    for name, values in seconds.items():
        scale = 1.0 if name.startswith("limit") else 12 / CASES[case][2]
        ratios = [value / limit * scale for value, limit in zip(values, seconds[flat], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        rows.append(row(case, name, ratio, threads, microseconds=middle[name] * 1e6, low=low, high=high))
    rows.sort(key=lambda entry: entry["ratio"])
    return rows, skipped


def row(case: str, contender: str, ratio: float, threads: int, **more: float) -> dict[str, Any]:
    rounded = {key: float(f"{value:.4g}") for key, value in more.items()}
    return {"case": case, "contender": contender, "ratio": round(ratio, 4), "threads": threads, **rounded}


def cadence(rounds: int, threads: int) -> list[dict[str, Any]]:
    """Cost per optimizer step of cadence="auto" against one update, and how far the averages come apart."""
    model = resnet50()
    setting = {"decay": 0.9999, "batch_size": 256, "storage": LEFT_TO_THE_LOOP}
    every, auto = ModelEMA(model, **setting), ModelEMA(model, cadence="auto", **setting)
    steps = 2 * math.ceil(auto.half_life / 200 / 256)
    pair = {
        "one update": lambda: every.update(samples=256),
        "auto": lambda: [auto.update(samples=256) for _ in range(steps)],
    }
    found = {name: statistics.median(s) for name, s in timed(pair, rounds, threads, 1).items()}
    share = found["auto"] / steps / found["one update"]
    worst = cadence_error()
    return [row("cadence", "isobatch auto", share, threads, microseconds=found["auto"] / steps * 1e6, error=worst)]


def cadence_error() -> float:
    """Largest distance between the averages of every step and of cadence="auto", over the lag of the average."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(512, dtype=torch.float64))
    drift = torch.randn(512, dtype=torch.float64, generator=generator)
    noise, worst = torch.zeros(512, dtype=torch.float64), 0.0
    setting = {"decay": 0.9999, "batch_size": 256, "storage": LEFT_TO_THE_LOOP}
    every, auto = ModelEMA(model, **setting), ModelEMA(model, cadence="auto", **setting)
    for step in range(20_000):
        noise = 0.9 * noise + 0.02 * torch.randn(512, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            model.w.copy_(10 * drift * (1 - math.exp(-step / 5000)) + noise)
        every.update(samples=256)
        auto.update(samples=256)
        if step > 5000 and step % 100 == 0:
            gap = (every.average()["w"] - auto.average()["w"]).norm()
            worst = max(worst, float(gap / (every.average()["w"] - model.w.detach()).norm()))
    return worst


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "system": platform.platform()}


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--cases", nargs="+", default=[*CASES, "cadence"], choices=[*CASES, "cadence"])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    load = [os.getloadavg()[0]]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for case in options.cases:
            more, left = (
                (cadence(options.rounds, threads), []) if case == "cadence" else measure(case, options.rounds, threads)
            )
            rows += more
            skipped += [line for line in left if line not in skipped]
            print(f"\n{case}, {threads} thread(s)")
            for entry in more:
                print(f"  {entry['ratio']:8.3f}  {entry['microseconds']:12.1f} us  {entry['contender']}")
    print("\n" + "\n".join(skipped))
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PEERS}},
        "rounds": options.rounds,
        "load_average": [round(value, 2) for value in (*load, os.getloadavg()[0])],
        "rows": rows,
        "skipped": skipped,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
