"""What do the callbacks cost? HF Trainer, Lightning and Accelerate with and without isobatch, on 10 million parameters.

    python benchmarks/trainers.py --json benchmarks/results/trainers.json

Each trainer trains twice at the same time, bare and with average and noise scale (noise=True), in two processes that
take turns of a few steps in random order, so that both meet the same machine. A step is 256 rows in 4 micro-batches.
CPU time of one thread; wall time on a GPU. Rows: `ratio`, all seconds with isobatch over all bare ones after the first
turns, with a 95% interval (bootstrap over pairs of turns) and the quartiles of the pairs' ratios; `first`, what the
first turns (from the first row that is read) cost beyond the bare trainer, in steps: the noise scale looks often there,
once. The bar of 1.02 is for `ratio`; `whole` has the first turns in it.
With --only the other rows of the file stay.
"""

import argparse
import datetime
import json
import logging
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

BAR, MICRO, ACCUMULATE = 1.02, 64, 4
NAMES = ("x", "labels")
DEVICE = {"name": "cpu"}
PACKAGES = ("torch", "transformers", "lightning", "accelerate")


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))


class Rows(TensorDataset):
    """Rows that say when the first of them is asked for: training begins."""

    begun: Callable[[], None] | None = None

    def __getitem__(self, place: int) -> tuple[torch.Tensor, ...]:
        begun, self.begun = self.begun, None
        if begun is not None:
            begun()
        return super().__getitem__(place)


def data(steps: int) -> Rows:
    x = torch.randn(steps * MICRO * ACCUMULATE, 256)
    return Rows(x, x.sum(1))


def hf(width: int, rows: Rows, isobatch: bool) -> None:
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
        trainer = Trainer(
            Wrapped(), arguments, train_dataset=rows, callbacks=callbacks,
            data_collator=lambda some: {name: torch.stack([row[n] for row in some]) for n, name in enumerate(NAMES)},
        )  # fmt: skip
        trainer.train()


def lightning(width: int, rows: Rows, isobatch: bool) -> None:
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
    trainer.fit(Module(), DataLoader(rows, MICRO))


def accelerate(width: int, rows: Rows, isobatch: bool) -> None:
    from contextlib import nullcontext

    from accelerate import Accelerator

    from isobatch.integrations.accelerate import IsobatchHelper

    accelerator = Accelerator(cpu=DEVICE["name"] == "cpu", gradient_accumulation_steps=ACCUMULATE)
    model = net(width)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), DataLoader(rows, MICRO)
    )
    helper = IsobatchHelper(accelerator, model, optimizer, half_life=10_000, noise=True) if isobatch else None

    for x, y in loader:
        with accelerator.accumulate(model), helper.micro(len(x)) if helper is not None else nullcontext():
            accelerator.backward((model(x).squeeze(1) - y).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def now() -> float:
    if DEVICE["name"] == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def work(pipe: Connection, trainer: str, width: int, steps: int, turn: int, device: str, isobatch: bool) -> None:
    """Train in one process; after every few optimizer steps say what they took, and wait for the next turn."""
    DEVICE["name"] = device
    torch.set_num_threads(1)
    quiet()
    done, started = 0, 0.0

    def pause(*_: object) -> None:
        nonlocal done, started
        done += 1
        if done % turn == 0:
            pipe.send(now() - started)
            pipe.recv()
            started = now()

    def begin() -> None:
        nonlocal started
        pipe.send(None)
        pipe.recv()
        started = now()

    register_optimizer_step_post_hook(pause)
    rows = data(steps)
    rows.begun = begin
    TRAINERS[trainer](width, rows, isobatch)
    pipe.close()


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def measure(trainer: str, width: int, steps: int, turn: int, first: int) -> dict:
    """Let both trainers take turns to the end, and compare."""
    order, context = random.Random(0), multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for isobatch in (False, True):
        pipes[isobatch], theirs = context.Pipe()
        given = (theirs, trainer, width, steps, turn, DEVICE["name"], isobatch)
        processes.append(context.Process(target=work, args=given))
        processes[-1].start()
        theirs.close()
    for pipe in pipes.values():
        pipe.recv()
    pairs = []
    for _ in range(steps // turn):
        found = {}
        for isobatch in order.sample([False, True], 2):
            pipes[isobatch].send(None)
            found[isobatch] = pipes[isobatch].recv()
        pairs.append((found[True], found[False]))
    for isobatch in (False, True):
        pipes[isobatch].send(None)
    for process in processes:
        process.join()
    early, late = pairs[: first // turn], pairs[first // turn :]
    bare = statistics.median(b for _, b in late) / turn
    drawn = sorted(total(order.choices(late, k=len(late))) for _ in range(2000))
    quartiles = statistics.quantiles((ours / bare for ours, bare in late), n=4)
    return {
        "trainer": trainer,
        "date": datetime.date.today().isoformat(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "parameters": sum(p.numel() for p in net(width).parameters()),
        "ratio": round(total(late), 4),
        "interval": [round(drawn[50], 4), round(drawn[-51], 4)],
        "quartiles": [round(q, 4) for q in quartiles],
        "bar": BAR,
        "first": {"steps": len(early) * turn, "cost_in_steps": round(sum(o - b for o, b in early) / bare, 2)},
        "whole": round(total(pairs), 4),
        "milliseconds": {
            "with isobatch": round(1e3 * statistics.median(o for o, _ in late) / turn, 2),
            "bare": round(1e3 * bare, 2),
        },
        "rows_a_step": MICRO * ACCUMULATE,
        "steps": steps,
        "steps_a_turn": turn,
    }


def total(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(ours for ours, _ in pairs) / sum(bare for _, bare in pairs)


TRAINERS: dict[str, Callable[[int, Rows, bool], None]] = {
    "accelerate": accelerate, "hf": hf, "lightning": lightning,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=180, help="optimizer steps of each run")
    parser.add_argument("--turn", type=int, default=6, help="steps of a turn")
    parser.add_argument("--first", type=int, default=36, help="steps that are reported apart")
    parser.add_argument("--width", type=int, default=3030)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="CPU time, or wall time of a GPU")
    given = parser.parse_args()
    DEVICE["name"] = given.device
    known = given.json is not None and given.json.exists() and given.only is not None
    rows = {row["trainer"]: row for row in json.loads(given.json.read_text())["rows"]} if known else {}
    for trainer in TRAINERS:
        if given.only is None or trainer in given.only:
            rows[trainer] = measure(trainer, given.width, given.steps, given.turn, given.first)
            print(json.dumps(rows[trainer]), flush=True)
    if given.json is not None:
        about = {
            "command": "python benchmarks/trainers.py",
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, 1 torch thread",
            "versions": {name: version(name) for name in PACKAGES},
        }
        about["rows"] = [rows[name] for name in TRAINERS if name in rows]
        given.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
