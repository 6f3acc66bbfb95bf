"""BYOL at another batch: the same samples, kNN accuracy with and without the EMA rule, and the time they take.

    python benchmarks/byol_headline.py --data atari32.npz --device cuda,bf16,channels-last,compile,most=4096 \
        --out headline --budget 540        # again with the same --out goes on where it stopped

Arms, each on the same number of samples: the reference at --batch; the rule at --large (every number by the plan);
"no EMA rule" (the same, but the teacher's decay per step left alone); "progressive" (--batch until --switch of the run,
then --large); and "middle" (the rule at --middle). AdamW's learning rate follows the square root, or the optimizer
takes its batch-size invariant form (--optimizer invariant), which holds chunks of --batch apart. The paper's own
setting is --batch 4096 --large 24576. A ResNet with a CIFAR stem; --depth 2 --stages 4 --width 64 is
ResNet-18. Accuracy is that of kNN and of a linear probe on random views of held-out frames. Time is the wall time of
training steps alone: evaluations stand outside, and steps that compile are listed apart.
Results: OUT/ARM.json, one a finished or unfinished arm, OUT/headline.json and OUT/headline.png.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

import isobatch
from isobatch import Recipe
from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import Device, Trainer
from isobatch.train.persistence import restore, seed_rng, state_of

ARMS = ("reference", "rule", "no EMA rule", "progressive", "middle")


def reference(given: argparse.Namespace) -> Recipe:
    options = {name: getattr(given, name) for name in ("side", "width", "depth", "stages", "hidden")}
    options |= {"out": given.out_width, "data": str(given.data)}
    return Recipe.parse(
        {
            "task": "byol",
            "batch": {"size": given.batch},
            "optimizer": {"name": "adamw", "lr": given.lr, "weight_decay": given.weight_decay},
            "schedule": {
                "length": f"{given.samples} samples",
                "warmup": f"{given.samples // 20} samples",
                "shape": "cosine",
            },
            "ema": {"decay": given.decay, "final": 1.0},
            "batch_norm": {"momentum": 0.1},
            "options": options,
        }
    )


def recipes(given: argparse.Namespace) -> dict[str, Recipe]:
    base = reference(given)
    form = None if given.optimizer == "adamw" else given.optimizer
    large = base.at(given.large, optimizer=form).recipe
    kept = large.model_copy(update={"ema": base.ema})
    start = round(given.samples * given.switch / given.large) * given.large
    stages = (("0 samples", given.batch), (f"{start} samples", given.large))
    progressive = base.model_copy(update={"batch": base.batch.model_copy(update={"schedule": stages})})
    made = {"reference": base, "rule": large, "no EMA rule": kept, "progressive": progressive}
    if given.middle:
        made["middle"] = base.at(given.middle, optimizer=form).recipe
    return made


class Arm:
    """One run: trained in stretches between marks, kept after each of them."""

    def __init__(self, name: str, recipe: Recipe, given: argparse.Namespace):
        self.name, self.file = name, given.out / f"{name.replace(' ', '-')}.json"
        self.store = Checkpoints(given.out / self.file.stem)
        self.device = Device.parse(given.device)
        self.trainer = Trainer(make_run(recipe, given.seed), recipe, order_seed=given.seed, device=self.device)
        self.record: dict = {"arm": name, "batch": recipe.batch.size, "seconds": 0.0, "compiling": 0.0, "curve": []}
        self.record["recipe"] = recipe.model_dump(mode="json")
        newest = self.store.latest()
        if newest is not None and self.file.exists():
            state = self.store.load().state
            restore(self.trainer, state, state)
            self.record = json.loads(self.file.read_text())
        else:
            seed_rng(given.seed)
            self.record["untrained"] = self.trainer.evaluate()["raw"]

    def stretch(self, stop: int) -> None:
        """Train to a mark, timing each step, then evaluate and keep."""
        times: list[float] = []
        began = self._now()

        def on_step(_: object) -> None:
            nonlocal began
            now = self._now()
            times.append(now - began)
            began = now

        self.trainer.train_to(stop, on_step)
        usual = statistics.median(times)
        slow = [took for took in times[:4] if took > 3 * usual + 1]
        self.record["seconds"] += sum(times) - sum(slow) + usual * len(slow)
        self.record["compiling"] += sum(slow) - usual * len(slow)
        point = {"seen": self.trainer.seen, "steps": self.trainer.steps, "step_seconds": usual}
        self.record["curve"].append(point | self.trainer.evaluate())
        self.record["steps"] = self.trainer.steps
        if self.device.name.startswith("cuda"):
            self.record["gigabytes"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.store.save(state_of(self.trainer), seen=self.trainer.seen)
        self.file.write_text(json.dumps(self.record, indent=1))

    def _now(self) -> float:
        if self.device.name.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def summary(given: argparse.Namespace, records: list[dict], facts: dict[str, str]) -> dict:
    done = {record["arm"]: record for record in records if record["curve"][-1]["seen"] >= given.samples}
    base = done.get("reference")
    rows = []
    for record in records:
        last = record["curve"][-1]
        row = {
            "arm": record["arm"],
            "batch": record["batch"],
            "finished": record["arm"] in done,
            "seen": last["seen"],
            "steps": record["steps"],
            "seconds": round(record["seconds"], 1),
            "compiling": round(record["compiling"], 1),
            "samples_per_second": round(last["seen"] / record["seconds"]),
            "gigabytes": record.get("gigabytes"),
        }
        if base and row["finished"]:
            row["ratio_to_reference"] = round(base["seconds"] / record["seconds"], 3)
        for model in ("average", "raw"):
            row |= {f"{model}_{name}": round(value, 3) for name, value in last[model].items()}
        rows.append(row)
    where = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.processor() or "CPU"
    versions = {"isobatch": isobatch.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": where,
        "device": given.device,
        "versions": {**versions, "python": platform.python_version()},
        "data": facts,
        "recipe": {**reference(given).model_dump(mode="json", exclude_none=True)},
        "rows": rows,
        "untrained": records[0]["untrained"] if records else None,
        "curves": {record["arm"]: record["curve"] for record in records},
    }


def picture(result: dict, path: Path) -> None:
    """Draw the neighbours' accuracy of the averaged model over the samples, and at the end against training time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from isobatch.report.pictures import RC

    shades = dict(zip(ARMS, ("black", "#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
    with rc_context(RC):
        made = Figure(figsize=(13, 4.6), layout="constrained")
        left, right = made.subplots(1, 2, sharey=True)
        for row in result["rows"]:
            curve, shade = result["curves"][row["arm"]], shades[row["arm"]]
            x = [0, *(point["seen"] / 1e6 for point in curve)]
            y = [result["untrained"]["knn"], *(point["average"]["knn"] for point in curve)]
            left.plot(x, y, color=shade, marker="o", lw=2)
            right.plot(row["seconds"], y[-1], color=shade, marker="o", ms=10, ls="", label=label(result, row))
        left.set_xlabel("samples seen (millions)")
        left.set_ylabel("20 nearest neighbours, averaged model (%)")
        right.set_xlabel("training time of the whole run (s)")
        right.set_xlim(left=0)
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1), title="arm (batch)")
        made.savefig(path, dpi=110)


def label(result: dict, row: dict) -> str:
    if row["arm"] != "progressive":
        return f"{row['arm']} ({row['batch']:,})"
    large = max(other["batch"] for other in result["rows"])
    return f"progressive ({row['batch']:,}, then {large:,})"


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="atari", help='atari, a .npz of frames, "glyphs", or a folder of images')
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda,bf16,channels-last,compile,most=4096")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds; no stretch is begun afterwards")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "invariant"], help="form at larger batches")
    numbers = {"batch": 256, "large": 24576, "middle": 0, "marks": 6, "seed": 0}
    sizes = {"side": 32, "width": 64, "depth": 2, "stages": 4, "hidden": 1024, "out-width": 128}
    for name, value in {**numbers, **sizes, "samples": 2457600}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    for name, value in {"lr": 5e-4, "weight-decay": 0.01, "decay": 0.996, "switch": 0.25}.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"({value})")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> dict:
    given, began = parsed(words), time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    records, facts = [], {}
    for name, recipe in recipes(given).items():
        file = given.out / f"{name.replace(' ', '-')}.json"
        kept = json.loads(file.read_text()) if file.exists() else None
        if kept and kept["recipe"] != recipe.model_dump(mode="json"):
            raise InputError(f"{file} holds a run of another recipe; give another --out")
        if kept and kept["curve"][-1]["seen"] >= given.samples:
            records.append(kept)
            continue
        if name not in given.arms or time.monotonic() - began > given.budget:
            records += [kept] if kept else []
            continue
        arm = Arm(name, recipe, given)
        facts = arm.trainer.run.facts
        for mark in range(1, given.marks + 1):
            stop = given.samples * mark // given.marks // given.large * given.large
            stop = given.samples if mark == given.marks else stop
            if stop <= arm.trainer.seen:
                continue
            if time.monotonic() - began > given.budget:
                break
            arm.stretch(stop)
            last = arm.record["curve"][-1]
            print(name, last["seen"], f"{arm.record['seconds']:.1f} s", last["average"], flush=True)
        if arm.record["curve"]:
            records.append(arm.record)
        del arm
        if given.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    result = summary(given, records, facts)
    (given.out / "headline.json").write_text(json.dumps(result, indent=1) + "\n")
    if result["rows"]:
        picture(result, given.out / "headline.png")
    for row in result["rows"]:
        print(json.dumps(row))
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
