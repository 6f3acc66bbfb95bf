"""What do the callbacks cost? HF Trainer, Lightning and Accelerate with and without isobatch, on 10 million parameters.

    python benchmarks/trainers.py --json benchmarks/results/trainers.json

Each trainer trains once, in one process, with average and noise scale (noise=True). After the first steps its callback
is on and off in turns of a few steps, in random order within a pair, so that both meet the same memory and the same
machine: two processes that took turns gave 1.029 and 0.976 for the same code. A turn with the callback ends where the
noise scale looks at nothing, so that what a measurement costs in the step after its own is in it. What is left out is
the callback's own Python, which runs in both (0.6 ms a step at most under a profiler). A step is 256 rows in 4
micro-batches. CPU time of one thread; wall time on
a GPU. Rows: `ratio`, all seconds a step with isobatch over all without after the first steps, with a 95% interval
(bootstrap over pairs of turns) and the quartiles of the pairs' ratios; `average_alone`, the same over turns in which
the noise scale measured nothing; `first`, what the first steps cost beyond bare ones, in steps: the noise scale looks
often there, once. The bar of 1.02 is for `ratio`. With --only the other rows of the file stay.
"""

import argparse
import datetime
import json
import logging
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
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


class Turns:
    """The clock of a callback, which it drives in some turns and not in others; says what each step took.

    Args:
        first: steps before the first turn.
        turn: least steps of one.
    """

    def __init__(self, first: int, turn: int):
        self.clock: Any = None
        self.on, self.first, self.turn = True, first, turn
        self.early: list[float] = []
        self.pairs: list[dict[bool, list[float]]] = []
        self.measured: list[bool] = []  # whether the turn with isobatch of a pair had a measured step
        self._left, self._order, self._looked, self._began = 0, random.Random(0), False, 0.0

    def __call__(self, clock: Any) -> "Turns":
        self.clock, self._looked = clock, clock.noise.armed
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)

    def begin(self) -> None:
        self._began = now()

    @property
    def ready_size(self) -> float:
        return self.clock.ready_size if self.on else 0

    @property
    def pending(self) -> bool:
        return self.clock.pending if self.on else True

    def micro(self, rows: float, weight: Any = None) -> Any:
        return self.clock.micro(rows, weight) if self.on else nullcontext()

    def ready(self, *given: Any, **named: Any) -> float:
        return self.clock.ready(*given, **named) if self.on else 0

    def applied(self, **named: Any) -> None:
        if self.on:
            self.clock.applied(**named)
        took, self._began = now() - self._began, now()
        noise = self.clock.noise
        if len(self.early) < self.first:
            self.early.append(took)
            if len(self.early) == self.first:
                self._next()
        else:
            self.pairs[-1].setdefault(self.on, []).append(took)
            self.measured[-1] |= self.on and self._looked
            self._left -= 1
            idle = not (self.on and (noise.armed or self._looked))
            if self._left <= 0 and idle:
                self._next()
        self._looked = self.on and noise.armed

    def _next(self) -> None:
        before = self.on
        if not self.pairs or len(self.pairs[-1]) == 2:
            self.pairs.append({})
            self.measured.append(False)
            self.on = self._order.random() < 0.5
        else:
            self.on = not self.on
        self._left = self.turn
        if self.on and not before:
            self.clock.noise.back()  # the steps in between were not its own


def hf(width: int, rows: Rows, turns: Turns) -> None:
    from transformers import Trainer, TrainingArguments

    from isobatch.integrations.hf import IsobatchCallback

    class InTurns(IsobatchCallback):
        def on_train_begin(self, *given: Any, **named: Any) -> None:
            super().on_train_begin(*given, **named)
            self.clock = turns(self.clock)

        def on_train_end(self, *given: Any, **named: Any) -> None:
            self.clock = turns.clock
            super().on_train_end(*given, **named)

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
        trainer = Trainer(
            Wrapped(), arguments, train_dataset=rows, callbacks=[InTurns(10_000, noise=True, quiet=True)],
            data_collator=lambda some: {name: torch.stack([row[n] for row in some]) for n, name in enumerate(NAMES)},
        )  # fmt: skip
        trainer.train()


def lightning(width: int, rows: Rows, turns: Turns) -> None:
    import lightning.pytorch as pl

    from isobatch.integrations.lightning import IsobatchCallback

    class InTurns(IsobatchCallback):
        def on_fit_start(self, *given: Any) -> None:
            super().on_fit_start(*given)
            self.clock = turns(self.clock)

        def on_fit_end(self, *given: Any) -> None:
            self.clock = turns.clock
            super().on_fit_end(*given)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(width)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return (self.net(batch[0]).squeeze(1) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="gpu" if DEVICE["name"] == "cuda" else "cpu",
        devices=1,
        accumulate_grad_batches=ACCUMULATE,
        callbacks=[InTurns(10_000, noise=True, quiet=True)],
        **silent,
    )
    trainer.fit(Module(), DataLoader(rows, MICRO))


def accelerate(width: int, rows: Rows, turns: Turns) -> None:
    from accelerate import Accelerator

    from isobatch.integrations.accelerate import IsobatchHelper

    accelerator = Accelerator(cpu=DEVICE["name"] == "cpu", gradient_accumulation_steps=ACCUMULATE)
    model = net(width)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), DataLoader(rows, MICRO)
    )
    helper = IsobatchHelper(accelerator, model, optimizer, half_life=10_000, noise=True)
    helper.clock = turns(helper.clock)
    for x, y in loader:
        with accelerator.accumulate(model), helper.micro(len(x)):
            accelerator.backward((model(x).squeeze(1) - y).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def now() -> float:
    if DEVICE["name"] == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def measure(trainer: str, width: int, steps: int, turn: int, first: int) -> dict:
    """Train, and compare the turns."""
    turns, rows = Turns(first, turn), data(steps)
    rows.begun = turns.begin
    TRAINERS[trainer](width, rows, turns)
    whole = [(pair, looked) for pair, looked in zip(turns.pairs, turns.measured, strict=True) if len(pair) == 2]
    order, pairs = random.Random(0), [pair for pair, _ in whole]
    bare = statistics.mean(took for pair in pairs for took in pair[False])
    drawn = sorted(ratio(order.choices(pairs, k=len(pairs))) for _ in range(2000))
    each = [ratio([pair]) for pair in pairs]
    alone = [ratio([pair]) for pair, looked in whole if not looked]
    middle = {on: statistics.median(took for pair in pairs for took in pair[on]) for on in (True, False)}
    return {
        "trainer": trainer,
        "date": datetime.date.today().isoformat(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "parameters": sum(p.numel() for p in net(width).parameters()),
        "ratio": round(ratio(pairs), 4),
        "interval": [round(drawn[50], 4), round(drawn[-51], 4)],
        "quartiles": [round(q, 4) for q in statistics.quantiles(each, n=4)],
        "bar": BAR,
        "average_alone": round(statistics.median(alone), 4) if alone else None,
        "first": {"steps": first, "cost_in_steps": round(sum(took - bare for took in turns.early) / bare, 2)},
        "milliseconds": {"with isobatch": round(1e3 * middle[True], 2), "bare": round(1e3 * middle[False], 2)},
        "rows_a_step": MICRO * ACCUMULATE,
        "steps": {"with isobatch": sum(len(pair[True]) for pair in pairs), "bare": sum(len(p[False]) for p in pairs)},
        "steps_a_turn": turn,
    }


def ratio(pairs: Sequence[dict[bool, list[float]]]) -> float:
    """Mean seconds a step with isobatch over those without."""
    return mean(pairs, on=True) / mean(pairs, on=False)


def mean(pairs: Sequence[dict[bool, list[float]]], *, on: bool) -> float:
    return statistics.mean(took for pair in pairs for took in pair[on])


TRAINERS: dict[str, Callable[[int, Rows, Turns], None]] = {
    "accelerate": accelerate, "hf": hf, "lightning": lightning,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=330, help="optimizer steps, with and without")
    parser.add_argument("--turn", type=int, default=6, help="least steps of a turn")
    parser.add_argument("--first", type=int, default=36, help="steps before the turns, reported apart")
    parser.add_argument("--width", type=int, default=3030)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="CPU time, or wall time of a GPU")
    given = parser.parse_args()
    DEVICE["name"] = given.device
    torch.set_num_threads(1)
    quiet()
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
