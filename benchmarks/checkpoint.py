"""How long does a save hold up training? The asynchronous one against the synchronous one, 100M parameters.

    python benchmarks/checkpoint.py --json benchmarks/results/checkpoint.json

Rows: case, contender, ratio to the synchronous save's stall (medians of interleaved repeats), seconds. The stall is the
time inside `save`; nothing else is in flight when it is called. The first save of a run is measured twice: with its
memory reserved at the first step, as `isobatch train` does it, and without.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import isobatch
from isobatch.checkpoint import Checkpoints

WIDTH = 10_000
FIRST = "asynchronous, first save of a run"
CONTENDERS = (FIRST, f"{FIRST}, nothing reserved", "asynchronous", "synchronous", "torch.save and fsync")


def state(tensors: int, parameters: int) -> dict:
    generator, side = torch.Generator().manual_seed(0), parameters // WIDTH // 10
    return {
        str(number): {f"layer-{layer}": torch.randn(side, WIDTH, generator=generator) for layer in range(10)}
        for number in range(tensors)
    }


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def plain_save(path: Path, what: dict, seen: int) -> None:
    """torch.save with an fsync: no hash, no read-back."""
    with path.open("wb") as file:
        torch.save(what, file)
        file.flush()
        os.fsync(file.fileno())


def measure(case: str, what: dict, repeats: int, folder: Path) -> list[dict]:
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with Checkpoints(folder / "s") as now, Checkpoints(folder / "a", asynchronous=True) as late:
        late.save(what, seen=0)
        for seen in range(1, repeats + 1):
            with (
                Checkpoints(folder / "f", asynchronous=True) as fresh,
                Checkpoints(folder / "c", asynchronous=True) as cold,
            ):
                fresh.reserve(what)
                time.sleep(2)  # the steps between the first one and the first save
                saves = (fresh.save, cold.save, late.save, now.save, partial(plain_save, folder / "plain"))
                for name, save in zip(CONTENDERS, saves, strict=True):
                    for store in (late, fresh, cold):
                        store.wait()
                    times[name].append(seconds(lambda save=save, seen=seen: save(what, seen=seen)))
    base = statistics.median(times["synchronous"])
    return [
        {
            "case": case,
            "contender": name,
            "ratio": round(statistics.median(found) / base, 4),
            "seconds": [round(value, 4) for value in found],
        }
        for name, found in times.items()
    ]


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores, local disk, {torch.get_num_threads()} torch thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="where to save; default: the system's temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case, tensors in (("weights", 1), ("weights and two moments", 3)):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            name = f"{case} of {arguments.parameters:,} parameters, fp32"
            rows += measure(name, state(tensors, arguments.parameters), arguments.repeats, Path(folder))
        print(*rows[-len(CONTENDERS) :], sep="\n", flush=True)
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
