"""Another length beside another batch: rates and decays by hand, every row marked, nothing called the same run."""

import json
import math

import pytest
from tests.recipes import recipe

from isobatch.cli import run
from isobatch.errors import InputError

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("batch", [2, 8, 32])
def test_adamw_goes_as_the_root_of_batch_over_length(batch, times):
    base = recipe(optimizer=ADAMW, schedule={"length": "10 epochs", "warmup": "1 epoch", "decay_from": "8 epochs"})
    plan = base.at(batch, length=f"{times}x")
    o, kappa = plan.recipe.optimizer, batch / 8
    assert o.lr == pytest.approx(1e-3 * math.sqrt(kappa / times))
    assert o.weight_decay == pytest.approx(0.1 * math.sqrt(kappa / times))
    before, after = base.staircase(), plan.recipe.staircase()
    assert (after.length, after.decay_from) == pytest.approx((before.length * times, before.decay_from * times))
    assert after.warmup == pytest.approx(before.warmup)
    assert plan.recipe.half_life == pytest.approx(base.half_life)
    # what the weights lose over the whole run
    lost = o.lr * o.weight_decay * after.length / batch
    assert lost == pytest.approx(1e-4 * before.length / 8)


def test_every_row_that_the_length_moves_says_so_and_starts_at_the_recipe():
    base = recipe(optimizer=ADAMW, schedule={"length": "10 epochs", "warmup": "1 epoch", "decay_from": "8 epochs"})
    plan, same = base.at(32, length="2x"), base.at(32)
    marked = {row.key for row in plan.rows if row.because.startswith("not equivalence")}
    assert marked == {"optimizer.lr", "optimizer.weight_decay", "schedule.length", "schedule.decay_from"}
    for row in plan.rows:
        other = same.row(row.key)
        assert (row.was, row.said[0]) == (other.was, other.said[0])
        if row.key not in marked:
            assert row.becomes == other.becomes
    assert {plan.row(key).confidence for key in marked} <= {"convention", "unknown"}
    lr = plan.row("optimizer.lr")
    assert lr.rule == "sqrt(kappa)*eta / sqrt(m_D)"
    assert "0.002 at the old length" in lr.note
    assert f"Marin's form: {0.002 * 2**-0.3:.6g}" in lr.note
    assert f"{0.2 * 2**-0.5 * 2**0.527:.6g}" in plan.row("optimizer.weight_decay").note
    steps = plan.row("schedule.length").steps
    assert steps == (10_000 // 8, 20_000 // 32)
    assert plan.row("batch.size").note.startswith(f"{steps[0]:,} steps become {steps[1]:,}")
    assert plan.warnings[0].condition == "another run, 2 times as long"
    assert "another run, 2 times as long" in str(plan)
    assert "the same run" not in str(plan)
    assert (plan.to_dict()["length"], same.to_dict()["length"]) == (2.0, 1.0)


@pytest.mark.parametrize(("optimizer", "lr", "decay", "confidence"), [
    ({"name": "sgd", "lr": 0.1, "weight_decay": 0.1}, 0.1, 0.1, "unknown"),
    ({"name": "adam", "lr": 1e-3, "weight_decay": 0.1}, 1e-3 / 2, 0.1, "convention"),
    ({"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "decay": "independent"}, 1e-3 / 2, 0.1 / 4, "convention"),
    ({"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "decay": "decoupled"}, 0.1, 0.1 / 4, "unknown"),
    ({"name": "lamb", "lr": 1e-3, "weight_decay": 0.1}, 1e-3, 0.1, "unknown"),
    ({"name": "lion", "lr": 1e-4, "weight_decay": 0.1}, 1e-4, 0.1 / 4, "unknown"),
])  # fmt: skip
def test_each_coupling_by_hand(optimizer, lr, decay, confidence):
    plan = recipe(optimizer=optimizer).at(length=4.0)
    assert (plan.recipe.optimizer.lr, plan.recipe.optimizer.weight_decay) == pytest.approx((lr, decay))
    assert plan.row("optimizer.lr").confidence == confidence


def test_groups_follow_their_own_optimizer():
    groups = [{"name": "head", "match": "head", "lr": 1e-2, "weight_decay": 0.4},
              {"name": "low", "match": "low", "lr_scale": 0.1},
              {"name": "hidden", "dims": "matrices", "optimizer": "muon", "lr": 0.02, "momentum": 0.95}]  # fmt: skip
    plan = recipe(optimizer=ADAMW, groups=groups).at(length="4x")
    head, low, hidden = plan.recipe.groups
    assert (head.lr, head.weight_decay, low.lr_scale, hidden.lr) == pytest.approx((5e-3, 0.2, 0.1, 0.02))
    assert plan.row("groups.head.lr").was == 1e-2
    assert plan.row("groups.hidden.lr").because.startswith("not equivalence: no published rule")


def test_spans_factors_and_numbers_say_the_same():
    base = recipe(optimizer=ADAMW, schedule={"length": "10 epochs", "warmup": "1 epoch"})
    wanted = base.at(32, length=3.0).recipe
    assert base.at(32, length="3x").recipe == wanted
    assert base.at(32, length="30 epochs").recipe == wanted
    assert base.at(32, length="1x").recipe.optimizer == base.at(32).recipe.optimizer
    far = base.at(32, length="16x").warnings[0]
    assert "16 is outside" in far.message


@pytest.mark.parametrize(("made", "how", "message"), [
    ({}, {"length": "twice"}, "or a factor such as 2x"),
    ({}, {"length": "x"}, "length"),
    ({}, {"length": "0x"}, r"length=0 must be in \(0, inf\]"),
    ({}, {"length": -2.0}, r"length=-2 must be in"),
    ({}, {"length": "nanx"}, "length"),
    ({"schedule": None}, {"length": "60 epochs"}, "needs schedule.length"),
    ({}, {"length": "2x", "rule": "legw"}, "drop one of the two"),
    ({"critical": {"batch": 40.0}}, {"length": "2x", "goal": "speed"}, "drop one of the two"),
    ({"batch": {"schedule": [["0 epochs", 8]]}}, {"length": "2x"}, "no rule says how batch.schedule moves"),
    ({"schedule": {"warmup": "5 epochs"}}, {"length": "0.1x"}, "warmup|warm-up"),
])  # fmt: skip
def test_refused(made, how, message):
    with pytest.raises(InputError, match=message):
        recipe(**made).at(16, **how)


def test_the_command(capsys, tmp_path):
    out = tmp_path / "longer.toml"
    words = ["plan", "examples/digits.toml", "--batch-size", "64", "--length", "2x"]
    assert run([*words, "--json", "--write", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["length"] == 2
    assert "86220 samples" in out.read_text()
    assert run(["plan", "--like", "llama31-8b", "--batch-size", "512", "--length", "2x", "--json"]) == 0
    longer = json.loads(capsys.readouterr().out)
    assert run(["plan", "--like", "llama31-8b", "--batch-size", "512", "--json"]) == 0
    assert longer["published"] == json.loads(capsys.readouterr().out)["published"]
    for bad in (["--length", "soon"], ["--length", "2x", "--html", str(tmp_path / "a.html")]):
        assert run([*words[:4], *bad]) == 2
        assert "length" in capsys.readouterr().err
