"""What should a switch of the batch do to stock AdamW's second moment? The transient of three treatments.

    python benchmarks/switch.py --json benchmarks/results/switch.json

v becomes v*((1-f) + f/kappa) at the switch: f = 1 is the SDE's (noise dominates v), f = 0 leaves v alone. Settings move
by the square root in every arm, so arms differ by the state alone. Gap: log held-out loss of the raw weights minus that
of the run that does not switch, same seed and sample order; its mean over seeds right after the switch and at the end.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from isobatch import Recipe
from isobatch.report import versions
from isobatch.tasks import make_run
from isobatch.train import Trainer

SHARES = (1.0, 0.5, 0.0)
ADAMW = {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.01}


@dataclass(frozen=True)
class Case:
    recipe: dict
    large: int


CASES = {
    "quadratic": Case(
        {
            "task": "quadratic",
            "data_size": 4096,
            "batch": {"size": 8},
            "optimizer": {**ADAMW, "lr": 1e-3, "weight_decay": 0.0},
            "schedule": {"length": "32768 samples", "warmup": "512 samples", "shape": "cosine"},
        },
        64,
    ),
    "digits": Case(
        {
            "task": "digits",
            "data_size": 1437,
            "batch": {"size": 8},
            "optimizer": {**ADAMW, "lr": 3e-4},
            "schedule": {"length": "15 epochs", "warmup": "1 epoch", "shape": "cosine"},
        },
        128,
    ),
    "text": Case(
        {
            "task": "text",
            "data_size": 8192,
            "batch": {"size": 4},
            "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
            "schedule": {"length": "4096 samples", "warmup": "360 samples", "shape": "cosine"},
            "options": {"width": 16, "layers": 1},
        },
        32,
    ),
}


def losses(case: Case, seed: int, share: float | None) -> list[float]:
    """Raw held-out losses a few large steps after half the run, and at its end; no switch for None."""
    recipe = Recipe.parse(case.recipe)
    trainer = Trainer(make_run(recipe, seed), recipe, order_seed=seed)
    half = trainer.length // 2 // case.large * case.large
    trainer.train_to(half)
    if share is not None:
        trainer.noise_share = share
        trainer.batch_at = lambda seen: case.large
    found = []
    for stop in (half + 4 * case.large, trainer.length):
        trainer.train_to(stop)
        found.append(trainer.evaluate()["raw"]["loss"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    rows = []
    for name in given.only:
        case = CASES[name]
        base = [losses(case, seed, None) for seed in range(given.seeds)]
        for share in SHARES:
            runs = [losses(case, seed, share) for seed in range(given.seeds)]
            row = {"task": name, "kappa": case.large / case.recipe["batch"]["size"], "f": share, "seeds": given.seeds}
            for place, where in enumerate(("after the switch", "at the end")):
                gaps = [math.log(run[place]) - math.log(ref[place]) for run, ref in zip(runs, base, strict=True)]
                row[where] = round(statistics.mean(gaps), 4)
                row[f"spread {where}"] = round(statistics.stdev(gaps), 4)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
