"""isobatch train: the loop as a job, with checkpoints, resume, signals and a log."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from isobatch.checkpoint import Checkpoints, Preemption, load
from isobatch.data import fingerprint
from isobatch.errors import InputError
from isobatch.logs import Log, open_log
from isobatch.plan import Recipe
from isobatch.tasks import TensorSamples, make_run
from isobatch.train.guard import Guard, StepVerdict
from isobatch.train.loop import Step, Trainer
from isobatch.train.persistence import restore, seed_rng, state_of
from isobatch.train.setup import batches
from isobatch.train.world import Device, World
from isobatch.units import whole


class Journal:
    """Append entries to log.jsonl; every entry carries `seen`, the samples of applied updates.

    A run that is taken up again repeats the steps past its checkpoint, so their entries are cut off first; a new run
    begins a new log, also where one was killed before its first checkpoint.

    Args:
        folder: of the run.
        log: also tell a logger of `LOGS`, with samples as its step; "" tells none.
        write: whether this process writes at all (the first rank).
        resumed: whether the run goes on from a checkpoint.
        after: `place` and `seen` of that checkpoint, None where it does not know them.

    Raises:
        InputError: a logger that is not known or not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        log: str = "",
        write: bool = True,
        resumed: bool = False,
        after: tuple[int, int] | None = None,
    ):
        self._log: Log | None = open_log(log, folder, None if after is None else after[1]) if log and write else None
        path = folder / "log.jsonl"
        if write and after is not None and path.exists():
            _cut(path, after[0])
        self._file = path.open("a" if resumed else "w", encoding="utf-8") if write else None

    @property
    def place(self) -> int:
        """Bytes written so far; a checkpoint keeps them, and the next process cuts there."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def add(self, seen: int, **values: float | int | str) -> None:
        """Append one entry.

        Args:
            seen: samples of applied updates.
            **values: numbers and words.
        """
        if self._file is None:
            return
        self._file.write(json.dumps({"seen": seen, **values}) + "\n")
        self._file.flush()
        if self._log is not None:
            self._log.add({name: value for name, value in values.items() if isinstance(value, (int, float))}, seen)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cut(path: Path, place: int) -> None:
    """Cut a log behind `place` and the evaluations that follow it there: at the first step, or at half a line."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) < place:  # somebody shortened it; keep its whole lines
            file.seek(0)
            place = sum(len(line) for line in file if line.endswith(b"\n"))
        file.seek(place)
        for line in file:
            if not line.endswith(b"\n") or not _evaluation(line):
                break
            place += len(line)
        file.truncate(place)


def _evaluation(line: bytes) -> bool:
    try:
        return "batch" not in dict(json.loads(line))
    except (TypeError, ValueError):  # damaged: a power cut leaves zeros
        return False


@dataclass(frozen=True)
class Options:
    """How a job runs; nothing here changes what is learned, but batch_size and the seeds.

    Args:
        out: folder of the run.
        batch_size: constant batch; the recipe's own, or its schedule, unless given.
        resume: take up the newest checkpoint in `out`.
        seed: of the initial weights.
        order_seed: of the sample order.
        every: samples between two checkpoints and evaluations; a tenth of the run unless given.
        patience: steps in a row that may be skipped.
        asynchronous: write checkpoints in a thread.
        log: tell a logger too: tensorboard, trackio or wandb (offline); "" tells none.
        device: device and its options in one word, as `Device.parse` reads it.
        shard: keep a part of the weights on each rank (FSDP2) in place of copies (DDP).
    """

    out: Path
    batch_size: int | None = None
    resume: bool = False
    seed: int = 0
    order_seed: int = 0
    every: int | None = None
    patience: int = 3
    asynchronous: bool = False
    log: str = ""
    device: str = "cpu"
    shard: bool = False


@dataclass
class Outcome:
    """How a job ended.

    Args:
        seen: samples of applied updates.
        steps: optimizer steps.
        skipped: steps that the guard skipped.
        finished: whether the whole run is done.
        exit_code: 0, or 128 plus the number of the signal that ended it.
        metrics: model -> metric -> value, from the last evaluation.
    """

    seen: int
    steps: int
    skipped: int
    finished: bool
    exit_code: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


def train(recipe: Recipe, options: Options, on_step: Callable[[Step, int, int], None] | None = None) -> Outcome:
    """Train a recipe's task in one process, or in the ranks of torch.distributed.

    SIGTERM and SIGUSR1 save at the next step boundary and end the job. A checkpoint holds weights, optimizer, average,
    both counters and random numbers; a resumed run equals the uninterrupted one bit for bit on the same machine and
    world.

    Args:
        recipe: with a task and a schedule.
        options: how the job runs.
        on_step: called with each step, samples seen and samples in all.

    Returns:
        How it ended.

    Raises:
        InputError: bad input, nothing to resume, or a folder that holds another run.
        NonFiniteError: the guard stopped the run; the newest checkpoint is untouched.
    """
    device = Device.parse(options.device)
    run, guard = make_run(recipe, options.seed), Guard(options.patience)
    world = World.current(shards=options.shard)
    trainer = Trainer(run, recipe, order_seed=options.order_seed, guard=guard, device=device, world=world)
    if recipe.batch.adaptive is not None and options.batch_size is not None:
        raise InputError(f"batch_size={options.batch_size} and batch.adaptive both set the batch; drop one of them")
    batch_at = trainer.batch_at if options.batch_size is None else batches(recipe, options.batch_size)
    every = whole("every", options.every) if options.every is not None else max(1, trainer.length // 10)
    store = Checkpoints(options.out / "checkpoints", asynchronous=options.asynchronous)
    after = None
    if options.resume:
        after = _resume(trainer, store, recipe, options)
    elif store.list():
        raise InputError(f"{options.out} holds a run already; give --resume to go on with it, or another --out")
    else:
        seed_rng(options.seed, options.order_seed, trainer.world.rank)
    first = trainer.world.rank == 0
    with (
        Preemption(grace=1.0) as stop,
        store,
        Journal(options.out, log=options.log, write=first, resumed=options.resume, after=after) as log,
    ):
        due = (trainer.seen // every + 1) * every
        metrics: dict[str, dict[str, float]] = {}
        while trainer.seen < trainer.length:
            step = trainer.step(batch_at(trainer.seen), trainer.length - trainer.seen)
            _log(log, trainer, step)
            store.check()
            if store.cold:
                store.reserve(state_of(trainer))
            if on_step is not None:
                on_step(step, trainer.seen, trainer.length)
            ends = trainer.world.total([float(stop.requested)])[0] > 0
            if ends or trainer.seen >= due or trainer.seen >= trainer.length:
                about = {**meta(trainer, recipe, options), "log": log.place}
                store.save(state_of(trainer), seen=trainer.seen, meta=about)
                due = (trainer.seen // every + 1) * every
                if ends:
                    return _outcome(trainer, metrics, stop.exit_code)
                metrics = trainer.evaluate()
                for model, values in metrics.items():
                    log.add(trainer.seen, **{f"{model}/{name}": value for name, value in values.items()})
    return _outcome(trainer, metrics or trainer.evaluate(), 0)


def meta(trainer: Trainer, recipe: Recipe, options: Options) -> dict[str, object]:
    """Return what a checkpoint says of its run; `--resume` compares it.

    Args:
        trainer: the run.
        recipe: the reference recipe.
        options: its seeds.

    Returns:
        Plain values.
    """
    samples = trainer.run.samples
    return {
        "recipe": recipe.model_dump(mode="json"),
        "order": trainer.order.fingerprint,
        "seed": options.seed,
        "facts": trainer.run.facts,
        **({"data": fingerprint(samples)} if isinstance(samples, TensorSamples) else {}),
        "drawn": trainer.drawn,
    }


def _resume(trainer: Trainer, store: Checkpoints, recipe: Recipe, options: Options) -> tuple[int, int] | None:
    """Take up the newest checkpoint; returns the place in the log and the samples seen, where the place is known."""
    newest = store.latest(fallback=True)
    if newest is None:
        raise InputError(f"{options.out} holds no checkpoint to resume from; drop --resume to start")
    found = load(newest.path, rank=0)
    _compare(options.out, found.meta, meta(trainer, recipe, options))
    rank = trainer.world.rank
    same = found.world_size == trainer.world.size
    own = found.state if rank == 0 else load(newest.path, rank=rank).state if same else None
    restore(trainer, found.state, own if same else None)
    return (int(found.meta["log"]), trainer.seen) if "log" in found.meta else None


def _compare(out: Path, stored: Mapping[str, object], now: Mapping[str, object]) -> None:
    # a checkpoint from before the data had a fingerprint has none to compare
    keys = [key for key in now if key != "drawn" and (key != "data" or key in stored)]
    before, after = (dict(_leaves({key: of.get(key) for key in keys})) for of in (stored, now))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            raise InputError(
                f"{out} holds another run: {name} is {before.get(name)!r} in its checkpoint and {after.get(name)!r} "
                "here; resume with what the run was started with, or give another --out"
            )


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _log(log: Journal, trainer: Trainer, step: Step) -> None:
    values: dict[str, float | int | str] = {"batch": step.batch, "loss": step.loss, "lr": step.lr}
    if trainer.monitor is not None:
        values |= trainer.monitor.news
    if step.verdict is not StepVerdict.APPLY:
        values = {"batch": step.batch, "skipped": trainer.skipped, "drawn": trainer.drawn, "reason": step.reason}
    log.add(trainer.seen, **values)


def _outcome(trainer: Trainer, metrics: dict[str, dict[str, float]], code: int) -> Outcome:
    finished = trainer.seen >= trainer.length
    return Outcome(trainer.seen, trainer.steps, trainer.skipped, finished, code, metrics)
