"""What does the loop cost? Trainer.step against a bare hand-written loop, on the text transformer.

    python benchmarks/loop.py --json benchmarks/results/loop.json

Both train the task of examples/text.toml with AdamW and an average at every step. The bare loop indexes a permutation,
knows no batch but its own, looks at no gradient and keeps no clock. It is written three ways: with torch's multi-tensor
AdamW and with torch's default one, which Trainer outruns by its kernel, and with the one-pass kernel that Trainer takes
itself: what is left of the ratio is the bookkeeping alone, and the bar is set there. Rows: case, contender, ratio to
the bare loop (the median over interleaved blocks of steps, CPU time of one thread), its quartiles and a 95% interval of
the median, milliseconds a step. Blocks of few steps (--block) find the code of the loop in no cache, where that of the
three bare loops is the same; a run alone is a long block.
"""

import argparse
import datetime
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import isobatch
from isobatch import Recipe
from isobatch.plan import scaled
from isobatch.tasks import make_run
from isobatch.train import Trainer

BAR = 1.03  # against the loop with Trainer's own kernel; set while both sides took foreach
KERNELS = {
    "a bare loop, AdamW(foreach=True)": {"foreach": True},
    "a bare loop, AdamW() as torch gives it": {},
    "a bare loop, AdamW(fused=True), as Trainer takes it": {"fused": True},
}
Steps = Callable[[int], None]


def trained(recipe: Recipe, batch: int) -> Steps:
    trainer = Trainer(make_run(recipe, 0), recipe)

    def steps(count: int) -> None:
        for _ in range(count):
            trainer.step(batch)

    return steps


def bare(recipe: Recipe, batch: int, **kernel: bool) -> Steps:
    """The same numbers by hand: permutation, loss, backward, cosine, stock AdamW, foreach average."""
    run = make_run(recipe, 0)
    new = scaled(recipe, batch)
    optimizer = torch.optim.AdamW(
        run.model.parameters(), lr=new.lr, betas=new.betas, eps=new.eps, weight_decay=new.weight_decay, **kernel
    )
    weights = [p.detach() for p in run.model.parameters()]
    average = [p.clone() for p in weights]
    decay = 0.5 ** (batch / new.half_life)
    order, total, seen = torch.randperm(len(run.samples)), recipe.staircase().length, 0

    def steps(count: int) -> None:
        nonlocal seen
        for _ in range(count):
            place = seen % (len(order) - batch + 1)
            optimizer.zero_grad()
            loss = run.loss(run.model, run.samples[order[place : place + batch]])
            loss.backward()
            optimizer.param_groups[0]["lr"] = new.lr * 0.5 * (1 + math.cos(math.pi * min(1, seen / total)))
            optimizer.step()
            torch._foreach_lerp_(average, weights, 1 - decay)
            loss.item()
            seen += batch

    return steps


def measure(recipe: Recipe, batch: int, rounds: int, count: int) -> list[dict]:
    contenders = {"isobatch": trained(recipe, batch)}
    contenders |= {name: bare(recipe, batch, **kernel) for name, kernel in KERNELS.items()}
    for steps in contenders.values():
        steps(2 * count)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            started = time.process_time()
            contenders[name](count)
            times[name].append((time.process_time() - started) / count)
    return [row(batch, name, times["isobatch"], times[name], count) for name in KERNELS]


def row(batch: int, name: str, ours: list[float], theirs: list[float], count: int) -> dict:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    # ranks of a distribution-free interval of the median
    half, last = 0.98 * math.sqrt(len(ratios)), len(ratios) - 1
    ends = [max(0, math.floor(last / 2 - half)), min(last, math.ceil(last / 2 + half))]
    found = {"isobatch": ours, "bare loop": theirs}
    return {
        "case": f"text transformer, AdamW and average, batch {batch}",
        "contender": f"isobatch Trainer.step against {name}",
        "ratio": round(middle, 4),
        "interval": [round(ratios[end], 4) for end in ends],
        "quartiles": [round(low, 4), round(high, 4)],
        "bar": BAR if "fused" in name else None,
        "milliseconds": {key: round(1e3 * statistics.median(times), 3) for key, times in found.items()},
        "rounds": len(ratios),
        "steps_a_round": count,
    }


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=151)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--block", type=int, default=8, help="samples of a contender before the next one's turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.load(Path(__file__).parents[1] / "examples" / "text.toml")
    rows = []
    for batch in arguments.batches:
        rows += measure(recipe, batch, arguments.rounds, max(1, arguments.block // batch))
        print(*rows[-len(KERNELS) :], sep="\n", flush=True)
    if arguments.json:
        versions = {"isobatch": isobatch.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
        result = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": hardware(),
            "load": [round(load, 1) for load in os.getloadavg()],
            "versions": {**versions, "python": platform.python_version()},
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
