"""What AutoWU's search costs: a look beside scikit-learn's exact Gaussian process, and its share of training time.

Run as `python benchmarks/autowu.py --json FILE`. Processor time of one thread; contenders take turns.
"""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from isobatch import Recipe
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.train.regression import DRAWS, LossRegression

ROUNDS = 9
RUNS = {
    "digits MLP, batch 32": {"task": "digits", "batch": {"size": 32}, "schedule": {"length": "48 epochs"}},
    "digits CNN, batch 32": {"task": "digits-cnn", "batch": {"size": 32}, "schedule": {"length": "48 epochs"}},
    "digits CNN, batch 512": {"task": "digits-cnn", "batch": {"size": 512}, "schedule": {"length": "60 epochs"}},
    "text transformer, batch 32": {"task": "text", "batch": {"size": 32}, "schedule": {"length": "1 epoch"}},
}


def looks(points):
    """Median milliseconds of a look and of scikit-learn's posteriors alone, at given hyperparameters."""
    rng = np.random.default_rng(0)
    x = np.arange(points) / points
    y = 2 * np.exp(-4 * x) + 0.1 * rng.normal(size=points)
    at, kernel = np.linspace(0, 1, 500)[:, None], ConstantKernel(0.7, "fixed") * RBF(0.2, "fixed")
    times = {"isobatch, fit and five posteriors": [], "scikit-learn, five posteriors": []}
    for _ in range(ROUNDS):
        began = time.process_time()
        LossRegression().look(x, y)
        between = time.process_time()
        chosen = rng.permutation(points)[:500]
        for _ in range(DRAWS):
            process = GaussianProcessRegressor(kernel + WhiteKernel(1e-3, "fixed"), optimizer=None, alpha=0.0)
            process.fit(x[chosen, None], y[chosen] - y.mean()).predict(at, return_cov=True)
        times["isobatch, fit and five posteriors"].append(between - began)
        times["scikit-learn, five posteriors"].append(time.process_time() - between)
    return {name: round(1e3 * statistics.median(found), 2) for name, found in times.items()}


def share(parts, steps):
    """Time in the search over time of the whole run; training time is measured on some steps and multiplied."""
    sizes = {"digits": 1437, "digits-cnn": 1437, "text": 8192}
    recipe = Recipe.parse({
        **parts, "data_size": sizes[parts["task"]], "optimizer": {"name": "adamp", "lr": 1.0},
        "schedule": {**parts["schedule"], "shape": "autowu"},
    })  # fmt: skip
    trainer = Trainer(make_run(recipe, 0), recipe)
    search, spent, count = trainer.search, 0.0, 0
    original = search.observe

    def observe(*arguments):
        nonlocal spent, count
        began, before = time.process_time(), search.regression.looks
        turned = original(*arguments)
        spent, count = spent + time.process_time() - began, count + search.regression.looks - before
        return turned

    search.observe = observe
    began = time.process_time()
    done = 0
    while done < steps and trainer.seen < trainer.length:
        trainer.step(min(recipe.batch.size, trainer.length - trainer.seen))
        done += 1
    rest = (time.process_time() - began - spent) / done
    total = rest * trainer.length / recipe.batch.size
    every = search.rate.growth.interval
    worst = spent / max(count, 1) * search.rate.growth.end / every  # as many looks as the longest warm-up holds
    return {
        "milliseconds a step": round(1e3 * rest, 2),
        "milliseconds a look": round(1e3 * spent / max(count, 1), 2),
        "looks": count,
        "most looks": int(search.rate.growth.end / every),
        "share of training time, at most": round(worst / (total + worst), 4),
        "least run for 1% (seconds)": round(99 * worst, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "looks": {f"{points} losses": looks(points) for points in (100, 500, 5000)},
        "share": {name: share(parts, chosen.steps) for name, parts in RUNS.items()},
    }
    chosen.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
