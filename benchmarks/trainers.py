"""What do the callbacks cost? HF Trainer, Lightning and Accelerate with and without isobatch, on 10 million parameters.

    python benchmarks/trainers.py --json benchmarks/results/trainers.json

Blocks of training, each trainer bare and with average and noise scale (noise=True: at most 0.3% of the time),
interleaved in random order in one process. Rows: trainer, ratio to the bare one (the median over pairs of blocks, CPU
time of one thread), its quartiles and a 95% interval of the median, milliseconds a step. The bar is 1.02.
"""

import argparse
import datetime
import json
import logging
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BAR, MICRO, ACCUMULATE = 1.02, 32, 2
DEVICE = {"name": "cpu"}
PACKAGES = ("torch", "transformers", "lightning", "accelerate")


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))


def data(steps: int) -> TensorDataset:
    x = torch.randn(steps * MICRO * ACCUMULATE, 256)
    return TensorDataset(x, x.sum(1))


def hf(width: int, rows: TensorDataset, isobatch: bool) -> float:
    from transformers import Trainer, TrainingArguments

    from isobatch.integrations.hf import IsobatchCallback

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(width)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.net(x).squeeze(1) - labels).square().mean()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=MICRO, gradient_accumulation_steps=ACCUMULATE, num_train_epochs=1,
            use_cpu=DEVICE["name"] == "cpu", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        callbacks = [IsobatchCallback(10_000, noise=True, quiet=True)] if isobatch else []
        listed = [{"x": x, "labels": y} for x, y in rows]
        trainer = Trainer(Wrapped(), arguments, train_dataset=listed, callbacks=callbacks)
        return timed(trainer.train)


def lightning(width: int, rows: TensorDataset, isobatch: bool) -> float:
    import lightning.pytorch as pl

    from isobatch.integrations.lightning import IsobatchCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(width)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    callbacks = [IsobatchCallback(10_000, noise=True, quiet=True)] if isobatch else []
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="gpu" if DEVICE["name"] == "cuda" else "cpu",
        devices=1,
        accumulate_grad_batches=ACCUMULATE,
        callbacks=callbacks,
        **silent,
    )
    module = Module()
    return timed(lambda: trainer.fit(module, DataLoader(rows, MICRO)))


def accelerate(width: int, rows: TensorDataset, isobatch: bool) -> float:
    from contextlib import nullcontext

    from accelerate import Accelerator

    from isobatch.integrations.accelerate import IsobatchHelper

    accelerator = Accelerator(cpu=DEVICE["name"] == "cpu", gradient_accumulation_steps=ACCUMULATE)
    model = net(width)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), DataLoader(rows, MICRO)
    )
    helper = IsobatchHelper(accelerator, model, optimizer, half_life=10_000, noise=True) if isobatch else None

    def train() -> None:
        for x, y in loader:
            with accelerator.accumulate(model), helper.micro(len(x)) if helper is not None else nullcontext():
                accelerator.backward((model(x).squeeze(1) - y).square().mean())
                optimizer.step()
                optimizer.zero_grad()

    return timed(train)


def timed(action: Callable[[], object]) -> float:
    if DEVICE["name"] == "cpu":
        started = time.process_time()
        action()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(trainer: Callable[[int, TensorDataset, bool], float], width: int, rounds: int, steps: int) -> dict:
    rows, order = data(steps), random.Random(0)
    trainer(width, data(2), True)
    pairs = []
    for _ in range(rounds):
        found = {}
        for with_isobatch in order.sample([False, True], 2):
            found[with_isobatch] = trainer(width, rows, with_isobatch) / steps
        pairs.append((found[True], found[False]))
    ratios = sorted(ours / bare for ours, bare in pairs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    half, last = 0.98 * math.sqrt(len(ratios)), len(ratios) - 1
    ends = [max(0, math.floor(last / 2 - half)), min(last, math.ceil(last / 2 + half))]
    return {
        "trainer": trainer.__name__,
        "parameters": sum(p.numel() for p in net(width).parameters()),
        "ratio": round(middle, 4),
        "interval": [round(ratios[end], 4) for end in ends],
        "quartiles": [round(low, 4), round(high, 4)],
        "bar": BAR,
        "milliseconds": {
            "with isobatch": round(1e3 * statistics.median(p[0] for p in pairs), 2),
            "bare": round(1e3 * statistics.median(p[1] for p in pairs), 2),
        },
        "rounds": rounds,
        "steps_a_block": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=3030)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="CPU time, or wall time of a GPU")
    given = parser.parse_args()
    DEVICE["name"] = given.device
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for trainer in (accelerate, hf, lightning):
        if given.only is None or trainer.__name__ in given.only:
            rows.append(measure(trainer, given.width, given.rounds, given.steps))
            print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        about = {
            "command": "python benchmarks/trainers.py",
            "date": datetime.date.today().isoformat(),
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread",
            "load": [round(x, 1) for x in os.getloadavg()],
            "versions": {name: version(name) for name in PACKAGES},
        }
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
