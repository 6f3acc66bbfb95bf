"""How costs grow: an update of an average, a step with the noise scale, a step among ranks, a comparison of seeds.

Run from the repository's root: python benchmarks/growth.py --json FILE --picture FILE.png [--axes ...]
Processor time of one thread, so that other programs on the machine count little. A size that stands in the file is not
measured again, so the call can be repeated until all are there; what memory does not permit is named and left out. The
fit is a line through the medians in logarithms, from the size named with it: below, the host's own time counts.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import distributed as dist
from torch import nn

import isobatch as ib
from isobatch.average import MultiEMA

ROOT = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
SPARE = 3 << 30  # bytes of memory that stay free
RECIPE = """
task = "digits"
data_size = 1437
batch.size = 32
optimizer = {name = "sgd", lr = 0.05}
schedule = {length = "2 epochs"}
ema.decay = 0.99
"""


class Axis(NamedTuple):
    """Sizes, rounds of a size, where the fit begins, bytes that a size takes, and its seconds, one a round."""

    sizes: list[int]
    rounds: int
    fit_from: int
    needs: Callable[[int], int]
    seconds: Callable[[int], Iterator[float]]


def clocked(action: Callable[[], object], times: int = 1) -> Iterator[float]:
    while True:
        began = time.thread_time()
        for _ in range(times):
            action()
        yield (time.thread_time() - began) / times


def update(parameters: int, tensors: int, horizons: int, dtype: torch.dtype = torch.float32) -> Iterator[float]:
    """Updates of `horizons` float32 averages of a model of equal tensors."""
    # written to, or all weights would be one page of zeros that the system lends out, and stay in cache
    parts = [torch.full((parameters // tensors,), 0.5, dtype=dtype) for _ in range(tensors)]
    model = nn.ParameterList(map(nn.Parameter, parts))
    average = MultiEMA(model, half_lives=[1e4 * 1.5**k for k in range(horizons)])
    return clocked(lambda: average.update(samples=32))


def stepper(micro: int, ranks: int = 1, noise: bool = True) -> Callable[[], object]:
    """A training step of a small net: `micro` micro-batches of 32 rows, average, and noise scale where asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    measured = ib.NoiseScale(model, optimizer) if noise else None
    clock = ib.SampleClock(average=ib.ModelEMA(model, half_life=1e5), noise=measured)
    net = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    x = torch.randn(32, 64)

    def step() -> None:
        for _ in range(micro):
            with clock.micro(32):
                net(x).square().mean().div(micro).backward()
        clock.ready()
        optimizer.step()
        optimizer.zero_grad()
        clock.applied()

    return step


def steps(micro: int) -> Iterator[float]:
    return clocked(stepper(micro), 5)


def rank_main(rank: int, ranks: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(meeting, ranks), rank=rank, world_size=ranks)
    step = stepper(1, ranks, noise=False)
    for _ in range(20):
        step()
    found = []
    for _ in range(15):
        began = time.process_time()
        for _ in range(20):
            step()
        found.append((time.process_time() - began) / 20)
    total = torch.tensor(found, dtype=torch.float64)
    dist.all_reduce(total)
    if rank == 0:
        Path(out).write_text(json.dumps(total.tolist()))
    dist.destroy_process_group()


def among(ranks: int) -> Iterator[float]:
    """Processor seconds of one step, all ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        words = (ranks, f"{folder}/meeting", f"{folder}/out")
        world = [multiprocessing.Process(target=rank_main, args=(rank, *words)) for rank in range(ranks)]
        for process in world:
            process.start()
        for process in world:
            process.join(150)
        yield from json.loads(Path(words[2]).read_text())


def comparison(seeds: int) -> Iterator[float]:
    """Processor seconds of a whole `verify run` of short runs, start of the program included."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.toml").write_text(RECIPE)
        words = [sys.executable, "-m", "isobatch", "verify", "run", "recipe.toml", "--batch-size", "128", "--json"]
        words += ["--seeds", str(seeds), "--ablate", "none", "--workers", "1", "--out", "out"]
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = subprocess.run(words, cwd=folder, capture_output=True, check=False).returncode
        assert code in (0, 3, 4), code  # any verdict
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        yield ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def nothing(_: int) -> int:
    return 0


AXES = {
    "parameters, float32": Axis(
        [2**k * MILLION for k in range(11)], 9, 8 * MILLION, lambda n: 8 * n, lambda n: update(n, 64, 1)
    ),
    "parameters, bfloat16 to float32": Axis(
        [2**k * MILLION for k in range(11)], 7, 8 * MILLION, lambda n: 6 * n, lambda n: update(n, 64, 1, torch.bfloat16)
    ),
    "tensors of 4 million parameters": Axis(
        [4**k for k in range(2, 8)], 15, 1024, nothing, lambda n: update(4 * MILLION, n, 1)
    ),
    "horizons of 8 million parameters": Axis([1, 2, 4, 8, 16], 11, 1, nothing, lambda n: update(8 * MILLION, 64, n)),
    "micro-batches of a step, noise scale": Axis([1, 2, 4, 8, 16, 32, 64], 31, 4, nothing, steps),
    "ranks of a step, gloo": Axis([1, 2, 4], 15, 1, nothing, among),
    "seeds of verify": Axis([8, 16, 32, 64, 128], 1, 16, nothing, comparison),
}


def free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return 0


def measured(axis: Axis, size: int) -> dict[str, float]:
    found = axis.seconds(size)
    values = []
    for turn, value in enumerate(found):
        if turn >= 2 or axis.rounds == 1 or axis.seconds is among:
            values.append(value)
        if len(values) == axis.rounds:
            break
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"size": size, **{k: float(f"{1e3 * v:.4g}") for k, v in (("ms", middle), ("low", low), ("high", high))}}


def fitted(points: list[dict[str, float]], least: int) -> dict[str, float]:
    """Exponent of the line through the medians, with its standard error."""
    known = [point for point in points if point["size"] >= least]
    if len(known) < 2:
        return {}
    x, y = (np.log([point[key] for point in known]) for key in ("size", "ms"))
    slope, start = np.polyfit(x, y, 1)
    spread = np.sum((y - slope * x - start) ** 2) / max(1, len(x) - 2)
    error = np.sqrt(spread / np.sum((x - x.mean()) ** 2))
    return {"exponent": round(float(slope), 3), "error": round(float(error), 3)}


def drawn(rows: list[dict[str, Any]], path: Path) -> None:
    figure, grid = plt.subplots(2, 4, figsize=(15, 7), layout="constrained")
    for axis, row in zip(grid.flat, rows, strict=False):
        sizes, middle, low, high = (np.array([p[k] for p in row["points"]]) for k in ("size", "ms", "low", "high"))
        axis.errorbar(sizes, middle, [middle - low, high - middle], fmt="o", color="#1f6f8b", label="median, quartiles")
        fit = sizes >= row["fit_from"]
        x, y = np.log(sizes[fit].astype(float)), np.log(middle[fit])
        line = np.exp(y.mean() + row["exponent"] * (x - x.mean()))
        axis.plot(np.exp(x), line, color="#c05a2b", label=f"exponent {row['exponent']:.2f} ± {row['error']:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=row["axis"], ylabel="ms of processor time")
        axis.xaxis.set_minor_formatter(plt.NullFormatter())
        if len(sizes) < 8:
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_ylim(low.min() / 3, high.max() * 8)  # at least a decade, and room for the legend
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(frameon=False, loc="upper left")
    for axis in grid.flat[len(rows) :]:
        axis.axis("off")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    rows = {row["axis"]: row for row in known["rows"]}
    for name in options.axes:
        axis = AXES[name]
        row = rows.setdefault(name, {"axis": name, "fit_from": axis.fit_from, "points": [], "left_out": []})
        for size in axis.sizes:
            if any(point["size"] == size for point in row["points"]):
                continue
            if axis.needs(size) + SPARE > free():
                row["left_out"] = sorted({*row["left_out"], size})
                print(f"{name}: {size} left out, {free() / 1e9:.1f} GB of memory are free", flush=True)
                continue
            row["points"].append(measured(axis, size))
            row["left_out"] = [left for left in row["left_out"] if left != size]
            print(name, row["points"][-1], flush=True)
            row["points"].sort(key=lambda point: point["size"])
            row["load"] = round(os.getloadavg()[0], 1)
            row |= fitted(row["points"], axis.fit_from)
            result = {"threads": 1, "torch": str(torch.__version__), "rows": list(rows.values())}
            fresh = options.json.with_suffix(".new")
            fresh.write_text(json.dumps(result, indent=1) + "\n")
            fresh.replace(options.json)
    if options.picture:
        drawn([row for row in rows.values() if "exponent" in row], options.picture)


if __name__ == "__main__":
    main()
