"""How the cost of one update of an average grows: with parameters, with the tensors they are in, with horizons.

Run from the repository's root: python benchmarks/growth.py --json benchmarks/results/growth.json --picture FILE.png
One thread, processor time, the default path. Sizes take turns in random order; the fit is a line through the medians
in logarithms, over the sizes named with it, since below them the host's own time and the caches are what is seen.
"""

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from isobatch.average import MultiEMA

MILLION = 1_000_000
# axis: (sizes, (parameters, tensors, horizons) of a size, sizes of the fit)
AXES = {
    "parameters": ([2**k * MILLION for k in range(8)], lambda size: (size, 64, 1), 8 * MILLION),
    "tensors of 4 million parameters": ([4**k for k in range(2, 8)], lambda size: (4 * MILLION, size, 1), 1024),
    "horizons of 8 million parameters": ([1, 2, 4, 8, 16], lambda size: (8 * MILLION, 64, size), 1),
}


def update(parameters: int, tensors: int, horizons: int):
    """One update of `horizons` averages of a model of equal tensors."""
    model = nn.ParameterList([nn.Parameter(torch.randn(parameters // tensors)) for _ in range(tensors)])
    average = MultiEMA(model, half_lives=[1e4 * 1.5**k for k in range(horizons)])
    return lambda: average.update(samples=32)


def measured(sizes, of, rounds: int) -> dict[int, list[float]]:
    """Seconds of one update at every size, rounds in turn."""
    updates = {size: update(*of(size)) for size in sizes}
    found: dict[int, list[float]] = {size: [] for size in sizes}
    order = random.Random(0)
    for turn in range(rounds + 3):
        for size in order.sample(sizes, len(sizes)):
            began = time.thread_time()
            updates[size]()
            if turn >= 3:
                found[size].append(time.thread_time() - began)
    return found


def fitted(times: dict[int, list[float]], least: int) -> dict[str, float]:
    """Exponent of the line through the medians, with its standard error."""
    sizes = [size for size in times if size >= least]
    x, y = np.log(sizes), np.log([statistics.median(times[size]) for size in sizes])
    (slope, start), covariance = np.polyfit(x, y, 1, cov="unscaled")
    spread = float(np.sum((y - slope * x - start) ** 2) / max(1, len(x) - 2))
    return {"exponent": round(float(slope), 3), "error": round(float(np.sqrt(covariance[0, 0] * spread)), 3)}


def drawn(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(1, len(rows), figsize=(12, 3.6), layout="constrained")
    for axis, row in zip(axes, rows, strict=True):
        sizes = [point["size"] for point in row["points"]]
        middle, low, high = (np.array([p[k] for p in row["points"]]) for k in ("milliseconds", "low", "high"))
        axis.errorbar(sizes, middle, [middle - low, high - middle], fmt="o", color="#1f6f8b", label="median, quartiles")
        fit = [k for k, size in enumerate(sizes) if size >= row["fit_from"]]
        x, y = np.log(np.array(sizes, dtype=float)[fit]), np.log(middle[fit])
        line = np.exp(y.mean() + row["exponent"] * (x - x.mean()))
        axis.plot(np.exp(x), line, color="#c05a2b", label=f"exponent {row['exponent']:.2f} ± {row['error']:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=row["axis"], ylabel="ms per update")
        axis.set_ylim(low.min() / 3, high.max() * 8)  # at least a decade, and room for the legend
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (sizes, of, least) in AXES.items():
        times = measured(sizes, of, options.rounds)
        points = []
        for size, seconds in times.items():
            low, middle, high = (round(1e3 * value, 4) for value in statistics.quantiles(seconds, n=4))
            points.append({"size": size, "milliseconds": middle, "low": low, "high": high})
        rows.append({"axis": name, **fitted(times, least), "fit_from": least, "points": points})
        print(name, {key: rows[-1][key] for key in ("exponent", "error")}, *points, sep="\n  ", flush=True)
    if options.json:
        load = [round(value, 1) for value in os.getloadavg()]
        result = {"rounds": options.rounds, "threads": 1, "load": load, "torch": str(torch.__version__), "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.picture:
        drawn(rows, options.picture)


if __name__ == "__main__":
    main()
