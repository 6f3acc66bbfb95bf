"""What a plan says: rows with rule and source, row 0, horizons, batch norm, JSON, Markdown and the table."""

import json

import pytest
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.rules import Confidence

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}


def becomes(plan):
    return {row.key: row.becomes for row in plan.rows}


def test_every_number_of_an_adamw_recipe():
    plan = recipe(optimizer=ADAMW, ema={"decay": 0.999}).at(32)
    got = becomes(plan)
    assert plan.kappa == 4
    assert got["batch.size"] == 32
    assert got["optimizer.lr"] == pytest.approx(2e-3)
    assert got["optimizer.betas[0]"] == pytest.approx(0.6561)
    assert got["optimizer.betas[1]"] == pytest.approx(0.999**4)
    assert got["optimizer.eps"] == pytest.approx(5e-9)
    assert got["optimizer.weight_decay"] == pytest.approx(0.2)
    assert got["ema.decay"] == pytest.approx(0.999**4)
    assert got["schedule.length"] == 10_000
    o = plan.recipe.optimizer
    assert (o.lr, o.betas[1], o.eps, o.weight_decay) == pytest.approx((2e-3, 0.999**4, 5e-9, 0.2))


def test_every_number_of_a_heavy_ball_recipe():
    plan = recipe(optimizer={"momentum": 0.9, "weight_decay": 1e-4}).at(32)
    got = becomes(plan)
    assert got["optimizer.momentum"] == pytest.approx(0.6561)
    assert got["optimizer.lr"] == pytest.approx(4 * 0.01 * 0.3439 / 0.1)
    assert got["optimizer.weight_decay"] == 1e-4
    assert "keep 0.9 and lr x 4" in plan.row("optimizer.momentum").note
    kept = recipe(optimizer={"momentum": 0.9}, rules={"momentum": "keep"}).at(32)
    assert becomes(kept)["optimizer.momentum"] == 0.9
    assert becomes(kept)["optimizer.lr"] == pytest.approx(0.04)
    assert "other form: 0.6561" in kept.row("optimizer.momentum").note


def test_both_forms_of_the_betas_and_their_horizons_are_printed():
    power = recipe(optimizer=ADAMW).at(32).row("optimizer.betas[0]")
    assert "horizon 10 steps = 80 samples becomes 2.908 steps = 93.0503 samples" in power.note
    assert "linear form: 0.6" in power.note
    linear = recipe(optimizer=ADAMW, rules={"betas": "linear"}).at(32).row("optimizer.betas[0]")
    assert linear.becomes == pytest.approx(0.6)
    assert "power form: 0.6561" in linear.note
    assert "linear form ends at kappa 10" in recipe(optimizer=ADAMW).at(256).row("optimizer.betas[0]").note


def test_a_noise_scale_moves_the_learning_rate_and_its_share():
    plan = recipe(optimizer=ADAMW).at(32, noise_scale=8)
    assert plan.row("optimizer.lr").becomes == pytest.approx(1e-3 * 4 * (0.5 + 0.5 / 4) ** 0.5)
    assert plan.recipe.rules.noise_share == pytest.approx(1 / (1 + 32 / 8))
    assert "noise share f = 0.500 becomes 0.200" in plan.row("optimizer.lr").note


def test_the_invariant_form_scales_like_sgd_and_keeps_eps():
    plan = recipe(optimizer=ADAMW).at(32, optimizer="invariant")
    got = becomes(plan)
    assert got["optimizer.name"] == "invariant-adamw"
    assert got["optimizer.lr"] == pytest.approx(4e-3)
    assert got["optimizer.eps"] == 1e-8
    assert got["optimizer.weight_decay"] == pytest.approx(0.1)
    assert plan.recipe.optimizer.reference_batch == plan.recipe.at(64).recipe.optimizer.reference_batch == 8


@pytest.mark.parametrize(("batch", "parts", "words"), [
    (128, 1, "the same devices at 8"), (8, 1, "the same devices at 8"),
    (4, 2, "2 passes of 4 are one update of 8"), (3, 3, "3 passes of up to 3 are one update of 8"),
])  # fmt: skip
def test_row_zero_keeps_the_batch(batch, parts, words):
    row = recipe().at(batch).rows[0]
    assert (row.key, row.was, row.becomes) == ("batch.size (kept)", 8, 8)
    assert row.rule == f"keep the batch, accumulate n = {parts}"
    assert words in row.note


def test_row_zero_says_what_accumulation_does_to_batch_norm():
    note = recipe(batch_norm={"momentum": 0.1}).at(4).rows[0].note
    assert f"batch norm then sees 4 samples a pass: its momentum becomes {1 - 0.9**0.5:.4g}" in note
    assert "statistics differ" in note
    assert "batch norm" not in recipe(batch_norm={"momentum": 0.1}).at(128).rows[0].note


@pytest.mark.parametrize(("batch", "more", "ratio"), [
    ({"size": 64}, {}, 4), ({"size": 64, "micro": 8}, {}, 1), ({"size": 64, "micro": 8}, {"micro": 32}, 4),
    ({"size": 64, "devices": 2}, {"devices": 8}, 1), ({"size": 64, "devices": 2}, {"devices": 8, "micro": 16}, 0.5),
])  # fmt: skip
def test_batch_norm_follows_the_samples_of_a_forward_pass(batch, more, ratio):
    plan = recipe(batch=batch, batch_norm={"momentum": 0.1}).at(256, **more)
    assert becomes(plan)["batch_norm.momentum"] == pytest.approx(1 - 0.9**ratio)
    assert plan.recipe.batch_norm.momentum == becomes(plan)["batch_norm.momentum"]
    assert plan.recipe.batch.size == plan.recipe.batch.per_device * plan.recipe.batch.devices * (
        plan.recipe.batch.accumulation
    )


def test_a_half_life_is_kept_in_samples():
    plan = recipe(ema={"decay": None, "half_life": "4000 samples", "every": 2}).at(64)
    row = plan.row("ema.half_life")
    assert plan.recipe.half_life == 4000
    assert row.rule == "kept in samples"
    assert f"decay per update {0.5 ** (16 / 4000):.6g} becomes {0.5 ** (128 / 4000):.6g}" in row.note


def test_every_row_has_a_rule_a_reason_and_a_confidence():
    for row in recipe(optimizer={**ADAMW, "clip": 1.0}, batch_norm={"momentum": 0.1}).at(32).rows:
        assert row.rule
        assert row.because
        assert isinstance(row.confidence, Confidence)
    assert recipe(optimizer={"clip": 1.0}).at(32).row("optimizer.clip").confidence is Confidence.UNKNOWN


@pytest.mark.parametrize("optimizer", [{"lr": 1e300}, {"name": "adamw", "lr": 1e305, "eps": 1e-8}])
def test_a_number_that_no_float_holds_is_refused(optimizer):
    with pytest.raises(InputError, match=r"would become inf at a batch of|lr=inf must be finite"):
        recipe(optimizer=optimizer).at(10**18)


def test_an_unknown_row_names_those_there_are():
    with pytest.raises(KeyError, match=r"no row 'lr'; rows: .*optimizer\.lr"):
        recipe().at(32).row("lr")


def test_json_holds_every_row_and_warning():
    plan = recipe(optimizer=ADAMW).at(512)
    data = json.loads(plan.to_json())
    assert data.keys() == {"kappa", "goal", "kept", "length", "rows", "forms", "warnings", "remedies", "recipe"}
    assert data["goal"] == "equivalence"
    assert [row["key"] for row in data["rows"]] == [row.key for row in plan.rows]
    assert data["rows"][0].keys() == {"key", "was", "becomes", "rule", "because", "confidence", "note",
                                      "unit", "steps", "said", "kept", "text"}  # fmt: skip
    assert [w["condition"] for w in data["warnings"]] == [w.condition for w in plan.warnings]


def test_markdown_is_one_table_and_one_line_a_warning():
    plan = recipe(optimizer=ADAMW).at(512)
    lines = plan.to_markdown().splitlines()
    assert lines[0].startswith("| key | was | becomes |")
    assert len(lines) == 2 + len(plan.rows) + len(plan.forms) + min(5, len(plan.warnings))
    assert {line.replace("\\|", "").count("|") for line in lines[: 2 + len(plan.rows)]} == {8}


def test_the_table_shows_keys_values_notes_and_warnings():
    text = str(recipe(optimizer=ADAMW).at(512))
    for part in ("kappa = 64", "optimizer.betas[0]", "[0.008, 0.064]", "! "):
        assert part in text


def test_steps_under_a_schedule_of_the_batch_are_said_to_be_those_of_one_batch():
    one = {"schedule": {"length": "4000 samples", "warmup": "50 steps"}, "spans": {"freeze": "100 steps"}}
    staged = recipe(**one, batch={"size": 8, "schedule": [["0 samples", 8], ["800 samples", 16]]}).at(32)
    plain = recipe(**one, batch={"size": 8}).at(32)
    for key, before, after in (("schedule.length", 500, 125), ("schedule.warmup", 50, 13), ("spans.freeze", 100, 25)):
        assert plain.row(key).note == f"{before} steps become {after}"
        assert staged.row(key).note == f"{before} steps of 8 become {after} of 32, without batch.schedule"
