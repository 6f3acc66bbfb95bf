"""Rows 8, 9, 11, 12, 18 and 26 of the fault table, for every optimizer, average and schedule from one table."""

from dataclasses import replace

import pytest
import torch

from isobatch import Recipe
from isobatch.checkpoint import Checkpoints
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.train import Guard, StepVerdict, Trainer
from isobatch.train.job import _cut
from isobatch.train.persistence import Unfinished, restore, state_of

BASE = {
    "task": "digits",
    "data_size": 1437,
    "options": {"width": 8},
    "batch": {"size": 48},
    "optimizer": {"name": "sgd", "lr": 0.02},
    "schedule": {"length": "2400 samples", "warmup": "200 samples", "shape": "cosine"},
    "ema": {"half_life": "400 samples"},
}
CASES = {
    "sgd": {},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.005, "momentum": 0.9, "nesterov": True}},
    "adamw, clipped": {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 0.5}},
    "adam, linear schedule": {
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.01},
        "schedule": {"length": "2400 samples", "shape": "linear", "final": 0.1},
    },
    "rmsprop": {"optimizer": {"name": "rmsprop", "lr": 1e-3, "momentum": 0.5}},
    "invariant": {"optimizer": {"name": "invariant-adamw", "lr": 1e-3, "reference_batch": 16}},
    "lars": {"optimizer": {"name": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 0.01}},
    "lamb": {"optimizer": {"name": "lamb", "lr": 0.01, "weight_decay": 0.1, "eps": 1e-6}},
    "adamp": {"optimizer": {"name": "adamp", "lr": 1e-3, "weight_decay": 0.1}},
    "autowu": {
        "optimizer": {"name": "adamp", "lr": 1.0},
        "schedule": {"length": "2400 samples", "shape": "autowu", "search": {"tests": "48 samples"}},
    },
    "autowu, rollback": {
        "batch": {"size": 12},
        "optimizer": {"name": "sgd", "lr": 30.0, "momentum": 0.5},
        "schedule": {"length": "2400 samples", "shape": "autowu", "search": {"tests": "24 samples", "rollback": True}},
    },
    "legw": {
        "rules": {"lr": "legw"},
        "schedule": {"length": "2400 samples", "warmup": "400 samples", "shape": "cosine"},
    },
    "hold": {"ema": {"half_life": "400 samples", "kind": "hold"}},
    "every third": {"ema": {"decay": 0.9, "every": 3}},
    "decay schedule": {"ema": {"decay": 0.9, "final": 1.0}},
    "no average": {"ema": None},
    "measured": {"noise": {"every": 2}},
    "measured in halves": {"noise": {"every": 3, "capture": "halves", "half_life": "300 samples"}},
    "adaptive, micro-batches": {
        "batch": {"size": 48, "micro": 16, "adaptive": {"exchange_rate": 500.0, "settle": "96 samples"}},
        "noise": {"every": 1},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "schedule": {"length": "2400 samples", "warmup": "200 samples"},
    },
    "views, their gradient adjusted": {
        "augment": {"view": "shift-cutout", "views": 2, "passes": "copies", "adjust_norm": "96 samples"},
    },
    "adversary, two batch norms": {
        "task": "digits-cnn",
        "options": {"width": 4},
        "adversary": {"eps": 0.1, "weights": [0.5, 0.5], "tau": 2, "norms": "two", "warmup": "480 samples"},
    },
    "batch norm, accumulated": {
        "task": "digits-cnn",
        "batch": {"size": 48, "micro": 16},
        "batch_norm": {"momentum": 0.1},
    },
}


def recipe(case: str) -> Recipe:
    whole = {**BASE, **CASES[case]}
    return Recipe.parse({key: value for key, value in whole.items() if value is not None})


def trainer(case: str, patience: int = 0, run: Run | None = None) -> Trainer:
    made = recipe(case)
    return Trainer(run or make_run(made, 0), made, order_seed=1, guard=Guard(patience))


def everything(t: Trainer) -> dict[str, torch.Tensor]:
    """Every number of the state, flat, by name."""
    flat: dict[str, torch.Tensor] = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                walk(f"{name}/{index}", item)
        elif isinstance(value, torch.Tensor):
            flat[name] = value.detach().clone()
        elif isinstance(value, (int, float)):
            flat[name] = torch.tensor(float(value), dtype=torch.float64)

    walk("", {key: value for key, value in state_of(t).items() if key != "rng"})
    return flat


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def through_disk(t: Trainer, case: str, folder) -> Trainer:
    with Checkpoints(folder) as store:
        store.save(state_of(t), seen=t.seen)
        found = store.load()
    fresh = trainer(case)
    torch.manual_seed(12345)
    restore(fresh, found.state, found.state)
    return fresh


SIZES = [48] * 12 + [96, 96, 33, 48, 200, 7] + [48] * 8


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(case, tmp_path):
    whole = trainer(case)
    for size in SIZES:
        whole.step(size)
    # the start, twice in one epoch, the step of a batch change, the step after it, both sides of the epoch end (1437)
    cuts = {0, 3, 5, 12, 13, 17, 25}
    cut = trainer(case)
    for index, size in enumerate(SIZES):
        if index in cuts:
            cut = through_disk(cut, case, tmp_path / str(index))
        cut.step(size)
    assert whole.seen == sum(SIZES) > 1437
    same(everything(whole), everything(cut))


def test_a_run_goes_on_where_there_are_fewer_gpus():
    one, other = trainer("sgd"), trainer("sgd")
    one.step(48)
    state = state_of(one)
    state["rng"]["cuda"] = [*state["rng"]["cuda"], torch.zeros(16, dtype=torch.uint8)]
    with pytest.warns(UserWarning, match=r"random numbers of \d GPUs, and \d are here"):
        restore(other, state, state)
    one.step(48)
    other.step(48)
    same(everything(one), everything(other))


def test_a_run_whose_every_checkpoint_is_damaged_begins_again(tmp_path):
    with Unfinished(tmp_path, trainer("sgd")) as kept:
        kept.trainer.step(48)
        kept.save([{}], 1.0)
    with Unfinished(tmp_path, trainer("sgd")) as kept:
        assert kept.take_up() == ([{}], 1.0)
        assert kept.trainer.seen == 48
    for path in tmp_path.glob("0*/manifest.json"):
        path.write_bytes(b"\0" * 10)
    with Unfinished(tmp_path, trainer("sgd")) as kept:
        with pytest.warns(UserWarning, match="passed over"), pytest.warns(UserWarning, match="from its start again"):
            assert kept.take_up() == ([], 0.0)
        assert kept.trainer.seen == 0


@pytest.mark.parametrize(("after", "kept"), [
    (b'{"seen": 2, "raw/loss": 1}\n{"seen": 3, "batch": 1}\n{"seen": 3, "raw/loss": 1}\n', 1),
    (b'{"seen": 2, "raw/loss": 1}\n{"se', 1),
    (b"\0\0\0\n", 0), (b'{"seen"\n', 0), (b"[1]\n", 0), (b"7\n", 0), (b"\xff\n", 0), (b"", 0),
])  # fmt: skip
def test_a_log_is_cut_behind_the_evaluations_that_follow_the_checkpoint(tmp_path, after, kept):
    before = b'{"seen": 2, "batch": 1}\n'
    (tmp_path / "log.jsonl").write_bytes(before + after)
    _cut(tmp_path / "log.jsonl", len(before))
    assert (tmp_path / "log.jsonl").read_bytes() == before + b"".join(after.splitlines(keepends=True)[:kept])


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_step_moves_the_position_and_nothing_else(case):
    t = trainer(case, patience=2)
    for size in (48, 48, 96):
        t.step(size)
    before, (seen, drawn) = everything(t), (t.seen, t.drawn)
    healthy = t.gradient.run_.loss
    t.gradient.run_.loss = lambda model, batch: healthy(model, batch) * float("nan")
    assert t.step(48).verdict is StepVerdict.SKIP
    t.gradient.run_.loss = healthy
    after = everything(t)
    assert (t.seen, t.drawn, t.skipped) == (seen, drawn + 48, 1)
    ahead = "/turns/prepared/"  # what is made for the batches to come follows the position
    moved = {name for name, value in before.items() if not (name.startswith(ahead) or torch.equal(value, after[name]))}
    assert moved == {"/clock/drawn", "/clock/skipped", "/clock/skipped_in_a_row"}
    assert t.step(48).verdict is StepVerdict.APPLY


@pytest.mark.parametrize("factor", [2, 0.5, 1.5, 37 / 48])
def test_another_batch_after_resume_keeps_samples_rate_and_half_life(factor, tmp_path):
    case, size = "adamw, clipped", round(48 * factor)
    t = trainer(case)
    for _ in range(6):
        t.step()
    fresh = through_disk(t, case, tmp_path)
    step = fresh.step(size)
    drawn = torch.cat([fresh.order.indices(0, t.drawn), fresh.order.indices(t.drawn, size)])
    assert len(set(drawn.tolist())) == t.drawn + size == fresh.drawn
    assert fresh.average is not None
    assert fresh.recipe.half_life == 400
    expected = fresh.settings(size).lr * fresh.schedule.mean(t.seen, t.seen + size)
    assert step.lr == pytest.approx(expected, rel=1e-12)
    assert fresh.settings(size).lr == pytest.approx(1e-3 * factor**0.5, rel=1e-3)


def test_one_permanently_bad_sample_cannot_stall_a_run():
    made = recipe("sgd")
    run = make_run(made, 0)
    samples = TensorSamples(*(tensor.clone() for tensor in run.samples.tensors))  # type: ignore[attr-defined]
    samples.tensors[0][17] = float("nan")
    t = trainer("sgd", patience=1, run=replace(run, samples=samples))
    t.train_to(t.length)
    assert t.seen == 2400
    assert t.skipped == 2
    assert t.drawn == 2400 + 48 * 2
