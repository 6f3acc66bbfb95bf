"""Every optimizer that the rules know x every kind of batch change: groups of the loop, rows of the plan, state."""

import math

import pytest
import torch
from tests.formulas import evaluate
from tests.lr_rows import LR_ROWS
from tests.optimizer_rows import NUMBERS, REFERENCE, ROWS, Row, wanted
from tests.recipes import recipe
from tests.reference import rules as slow
from torch import nn

from isobatch import InputError, rescale, rules
from isobatch.tasks import Run, TensorSamples
from isobatch.train import Trainer
from isobatch.train.persistence import restore, state_of
from isobatch.train.setup import make_optimizer

TRAINED = [row for row in ROWS if row.trained]
MATRICES = [row.name for row in ROWS if row.matrices]
each = pytest.mark.parametrize("row", TRAINED, ids=[row.name for row in TRAINED])
everyone = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def made(row: Row, **parts):
    moments = {name: NUMBERS[name] for name in row.moments}
    eps = {} if row.eps is None else {"eps": NUMBERS["eps"]}
    optimizer = {"name": row.name, "lr": NUMBERS["lr"], "weight_decay": NUMBERS["weight_decay"], **moments, **eps}
    return recipe(ema=None, data_size=400, schedule={"length": "4000 samples", "warmup": None, "shape": "constant"},
                  **{"optimizer": optimizer, **parts})  # fmt: skip


def run(*, biases: bool = True) -> Run:
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    model = nn.Sequential(nn.Linear(4, 3, biases), nn.Tanh(), nn.Linear(3, 1, biases))
    return Run(model, TensorSamples(x, x.sum(1, keepdim=True)),
               lambda net, b: (net(b[0]) - b[1]).square().mean(), lambda net: {"loss": 1.0})  # fmt: skip


def trainer(chosen) -> Trainer:
    return Trainer(run(biases=chosen.optimizer.name not in MATRICES), chosen)


def numbers(row: Row, optimizer) -> list[dict]:
    """What each group holds of the row's numbers, its own ratio of weight decay taken out."""
    found = []
    for group in optimizer.param_groups:
        keys = ("lr", "weight_decay", *row.moments, *(("eps",) if row.eps else ()))
        values = {key: group[key] for key in keys}
        ratio = group.get("weight_decay_ratio", 1.0)
        values["weight_decay"] = values["weight_decay"] / ratio if ratio else values["weight_decay"]
        if ratio == 0:
            assert values.pop("weight_decay") == 0
        found.append(values)
    return found


def rows_of(plan) -> dict:
    found = {row.key.removeprefix("optimizer."): row.becomes for row in plan.rows if row.key.startswith("optimizer.")}
    if "betas[0]" in found:
        found["betas"] = (found.pop("betas[0]"), found.pop("betas[1]"))
    return found


def agree(row: Row, optimizer, batch: int) -> None:
    expected, planned = wanted(row, batch), rows_of(made(row).at(batch))
    for group in numbers(row, optimizer):
        for key, value in group.items():
            assert value == pytest.approx(expected[key], rel=1e-9), (row.name, key, batch)
            assert value == pytest.approx(planned[key], rel=1e-12), (row.name, key, batch)
    assert optimizer.param_groups[0]["weight_decay"] > 0


def starts(row: Row, batch: int):
    one = trainer(made(row))
    one.step(batch)
    return one.optimizer


def switches(row: Row, batch: int):
    one = trainer(made(row))
    for size in (REFERENCE, batch):
        one.step(size)
    return one.optimizer


def comes_back(row: Row, batch: int):
    one = trainer(made(row))
    for size in (REFERENCE, batch, REFERENCE, batch):
        one.step(size)
    return one.optimizer


def resumes(row: Row, batch: int):
    one, other = trainer(made(row)), trainer(made(row))
    for size in (REFERENCE, REFERENCE * 2):
        one.step(size)
    restore(other, state_of(one))
    other.step(batch)
    return other.optimizer


def is_planned(row: Row, batch: int):
    one = trainer(made(row).at(batch).recipe)
    one.step()
    return one.optimizer


def is_rescaled(row: Row, batch: int):
    one = trainer(made(row))
    one.step(REFERENCE)
    rescale(to=batch, optimizer=one.optimizer, recipe=made(row))
    return one.optimizer


def is_rescaled_twice(row: Row, batch: int):
    one = trainer(made(row))
    one.step(REFERENCE)
    for size in (REFERENCE * 3, batch):
        rescale(to=size, optimizer=one.optimizer, recipe=made(row))
    return one.optimizer


CHANGES = (starts, switches, comes_back, resumes, is_planned, is_rescaled, is_rescaled_twice)


@each
@pytest.mark.parametrize("batch", [2, 4, 8, 32, 128])
@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_the_groups_are_the_plans_rows_and_the_references_numbers(row, batch, change):
    agree(row, change(row, batch), batch)


@everyone
@pytest.mark.parametrize("batch", [2, 4, 8, 32, 128])
def test_the_plan_has_the_references_numbers_and_no_others(row, batch):
    planned, expected = rows_of(made(row).at(batch)), wanted(row, batch)
    assert planned.keys() == expected.keys()
    for key, value in expected.items():
        assert planned[key] == pytest.approx(value, rel=1e-9), key
    written = made(row).at(batch).recipe.optimizer
    for key, value in expected.items():
        assert getattr(written, key) == pytest.approx(value, rel=1e-9), key


def test_every_optimizer_of_the_library_has_a_row_here():
    assert {row.name for row in ROWS} == set(rules.OPTIMIZERS)
    assert {row.name for row in TRAINED} == {name for name, row in rules.OPTIMIZERS.items() if row.builder}


@pytest.mark.parametrize("row", [row for row in ROWS if not row.trained], ids=lambda row: row.name)
def test_what_can_only_be_planned_is_refused_with_what_can_be_trained(row):
    with pytest.raises(InputError, match=rf"{row.name}.*can be planned but not trained.*sgd, adam, adamw"):
        make_optimizer(nn.Linear(2, 2), made(row))


@each
@pytest.mark.parametrize("batch", [2, 32, 128])
def test_state_moves_by_its_row(row, batch):
    one, share = trainer(made(row)), 0.6
    for _ in range(3):
        one.step(REFERENCE)
    before = {p: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()}
              for p, s in one.optimizer.state.items()}  # fmt: skip
    groups = [dict(group) for group in one.optimizer.param_groups]
    rescale(to=batch, optimizer=one.optimizer, recipe=made(row), noise_share=share)
    new = wanted(row, batch)
    decay = new["betas"][1] if "betas" in new else None
    kappa = batch / REFERENCE
    noise = slow.second_moment(math.sqrt(1 - share), math.sqrt(share), int(kappa)) if kappa > 1 else None
    for parameter, state in one.optimizer.state.items():
        for key, kind in row.state.items():
            old, now = before[parameter][key], state[key]
            if kind == "steps":
                assert decay ** float(now) == pytest.approx(0.99 ** float(old), rel=1e-6)
                continue
            factor = 1.0
            if kind == "buffer":
                factor = slow.buffer(new["momentum"]) / slow.buffer(0.9)
            if kind == "noise":
                factor = noise if noise is not None else 1 - share + share * REFERENCE / batch
            torch.testing.assert_close(now, old * factor, rtol=1e-5, atol=0)
    for group, old in zip(one.optimizer.param_groups, groups, strict=True):
        if "step" in old and row.eps is not None:  # layer-wise optimizers count in the group
            assert decay ** group["step"] == pytest.approx(0.99 ** old["step"], rel=1e-6)


@each
def test_the_loop_and_rescale_move_state_alike(row):
    one, other = trainer(made(row)), trainer(made(row))
    for size in (REFERENCE, REFERENCE):
        one.step(size)
        other.step(size)
    rescale(to=32, optimizer=other.optimizer, recipe=made(row))
    one.step(32)
    other.last_batch = 32
    other.step(32)
    for mine, theirs in zip(one.run.model.parameters(), other.run.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


LR = ("auto", *LR_ROWS)


def test_every_learning_rate_rule_has_a_row():
    assert LR_ROWS.keys() == rules.LEARNING_RATES.keys()


@pytest.mark.parametrize("word", LR_ROWS)
def test_the_plan_and_the_loop_take_the_rate_of_the_row(word):
    for name, ratios in LR_ROWS[word].items():
        share = {"noise_share": 0.6} if rules.LEARNING_RATES[word].share else {}
        base = recipe(
            optimizer={"name": name}, ema=None, critical={"batch": 40.0}, rules={"lr": word, **share},
            schedule={"length": "4000 samples", "warmup": None, "shape": "constant"}, data_size=400,
        )  # fmt: skip
        for batch, ratio in zip((32, 2), ratios, strict=True):
            assert base.at(batch).row("optimizer.lr").becomes == pytest.approx(0.01 * ratio, rel=1e-12), (name, batch)
            assert trainer(base).step(batch).lr == pytest.approx(0.01 * ratio, rel=1e-12), (name, batch)


@everyone
@pytest.mark.parametrize("word", LR_ROWS)
def test_a_batch_that_stays_moves_nothing_bit_for_bit(row, word):
    share = {"noise_share": 0.6} if rules.LEARNING_RATES[word].share else {}
    for lr in (0.01, 0.003, 0.07):
        for critical in (3.3, 7.3, 41.7, 123.4, 999.9):
            plan = recipe(
                optimizer={"name": row.name, "lr": lr, "weight_decay": 0.1}, rules={"lr": word, **share},
                critical={"batch": critical},
            ).at(REFERENCE)  # fmt: skip
            assert all(found.was == found.becomes for found in plan.rows if found.key.startswith("optimizer."))


FORMS = (
    {}, {"momentum": "keep"}, {"betas": "keep"}, {"betas": "linear"}, {"average": "keep"}, {"floors": [0.0, 0.0]},
)  # fmt: skip


def combinations():
    """(rules.lr, other forms, coupling, [ema], shape): every rule with every form, the rest where it matters."""
    averages = ({"decay": 0.99}, {"decay": None, "half_life": "500 samples"}, None)
    for lr in LR:
        yield from ((lr, form, None, averages[0], "cosine") for form in FORMS)
        yield from ((lr, {}, how, None, "cosine") for how in ("independent", "decoupled", "coupled", "trust-ratio"))
    for ema in averages:
        for form in ({}, {"average": "keep"}, {"momentum": "keep"}):
            yield "auto", form, None, ema, "autowu"
            yield "auto", form, "decoupled", ema, "cosine"


def plans(row: Row, batch: int):
    for lr, form, coupling, ema, shape in combinations():
        chosen = {"lr": lr, **form}
        if lr != "auto" and rules.LEARNING_RATES[lr].share:
            chosen["noise_share"] = 0.6
        options = dict(made(row).optimizer.model_dump(exclude_unset=True), clip=1.0)
        options |= {} if coupling is None else {"decay": coupling}
        warmup = None if shape == "autowu" else "80 samples"
        schedule = {"length": "4000 samples", "shape": shape, "warmup": warmup}
        base = recipe(data_size=400, optimizer=options, rules=chosen, critical={"batch": 40.0}, ema=ema,
                      batch_norm={"momentum": 0.1}, schedule=schedule)  # fmt: skip
        try:
            yield base, base.at(batch)
        except InputError:  # beyond the domain of the linear betas
            assert form.get("betas") == "linear"


@everyone
@pytest.mark.parametrize("batch", [2, 8, 24, 128])
def test_every_printed_formula_gives_the_printed_number(row, batch):
    checked = set()
    for base, plan in plans(row, batch):
        checked |= evaluate(base, plan)
    assert {"optimizer.lr", "optimizer.weight_decay", "ema.decay", "batch_norm.momentum", "schedule.length"} <= checked
