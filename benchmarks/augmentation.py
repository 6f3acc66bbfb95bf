"""What share of a BYOL step is augmentation? Two views of a batch against the whole step, on one CPU thread.

    python benchmarks/augmentation.py --json benchmarks/results/augmentation.json

Both are timed in turns on the same batch: the two views alone, and `Trainer.step`, which makes them too. Rows: side and
network, share (the median over turns, CPU time), its quartiles, milliseconds.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import isobatch
from isobatch import Recipe
from isobatch.augment import Views, augment
from isobatch.tasks import make_run
from isobatch.train import Trainer

BAR = 0.30
CASES = {
    "16x16, ResNet-8 of width 16, batch 64": {"side": 16},
    "32x32, ResNet-8 of width 16, batch 64": {"side": 32},
}


def measure(name: str, options: dict, rounds: int) -> dict:
    recipe = Recipe.parse(
        {
            "task": "byol",
            "batch": {"size": 64},
            "optimizer": {"name": "sgd", "lr": 0.01},
            "schedule": {"length": "100000 samples"},
            "ema": {"decay": 0.98},
            "batch_norm": {"momentum": 0.1},
            "options": {"data": "glyphs", "probe": 64, **options},
        }
    )
    trainer = Trainer(make_run(recipe, 0), recipe)
    views, times = Views(size=options["side"]), {"views": [], "step": []}
    trainer.step()
    for _ in range(rounds):
        places = torch.arange(trainer.drawn, trainer.drawn + 64)
        pixels = trainer.run.samples[trainer.order.indices(trainer.drawn, 64)][0]
        began = time.process_time()
        for copy in range(2):
            augment(pixels, places, 0, views, copy)
        middle = time.process_time()
        trainer.step()
        times["views"].append(middle - began)
        times["step"].append(time.process_time() - middle)
    shares = [a / b for a, b in zip(times["views"], times["step"], strict=True)]
    low, half, high = statistics.quantiles(shares, n=4)
    return {
        "case": name,
        "contender": "two views of BYOL against the whole step",
        "ratio": round(half, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "bar": BAR,
        "milliseconds": {kind: round(1e3 * statistics.median(found), 3) for kind, found in times.items()},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, options in CASES.items():
        rows.append(measure(name, options, arguments.rounds))
        print(rows[-1], flush=True)
    if arguments.json:
        versions = {"isobatch": isobatch.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
        result = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": f"{_processor()}, {os.cpu_count()} cores, 1 torch thread; other work shared the cores",
            "versions": {**versions, "python": platform.python_version()},
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
