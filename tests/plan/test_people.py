"""Rows that can be copied and read by programs: digits, units, whole steps, "kept", and a row for all that moves."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import recipe

from isobatch.plan import row_of
from isobatch.plan.plan import show

MANY = {
    "adamw": {"optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 1.0}},
    "momentum": {"optimizer": {"momentum": 0.9, "weight_decay": 0.1, "decay": "decoupled"}},
    "rmsprop": {"optimizer": {"name": "rmsprop", "momentum": 0.5, "alpha": 0.99}},
    "lion": {"optimizer": {"name": "lion", "weight_decay": 0.1}},
    "final": {"ema": {"decay": 0.99, "final": 0.999}, "schedule": {"final": 0.1, "decay_from": "2 epochs"}},
    "legw": {"rules": {"lr": "legw"}},
    "speed": {"rules": {"lr": "speed"}, "critical": {"batch": 40.0}, "schedule": {"decay_from": "2 epochs"}},
    "half-life": {"ema": {"decay": None, "half_life": "500 samples"}, "rules": {"average": "keep"}},
    "batch norm": {"batch_norm": {"momentum": 0.1}},
    "tokens": {"batch": {"size": 512, "unit": "tokens"}, "data_size": 100_000},
}
every = pytest.mark.parametrize("parts", MANY.values(), ids=MANY)


@given(decay=st.floats(0.5, 0.9999), kappa=st.floats(1 / 1024, 8))
def test_a_decay_that_is_copied_keeps_its_half_life(decay, kappa):
    moved = decay**kappa
    copied = float(show(moved))
    # by the series of log, not by the difference that the rounding is judged with
    assert math.log1p(copied - 1) == pytest.approx(math.log1p(moved - 1), rel=1e-3)


@pytest.mark.parametrize(("batch", "text"), [(16, "0.999996875"), (8, "0.9999984375"), (1, "0.9999998047")])
def test_the_average_of_a_thousand_at_small_batches(batch, text):
    plan = recipe(batch={"size": 1024}, ema={"decay": 0.9998}, schedule={"length": "900 epochs"}).at(batch)
    row = plan.row("ema.decay")
    assert float(row.text[1]) == pytest.approx(float(text), abs=1e-9)
    assert (1 - float(row.text[1])) / (1 - 0.9998 ** (batch / 1024)) == pytest.approx(1, rel=1e-3)
    assert f"1 - decay = 0.0002 becomes {1 - 0.9998 ** (batch / 1024):.3g}"[:30] in row.note
    assert f"half-life {1024 * math.log(2) / -math.log1p(-0.0002):,.0f} samples, kept" in row.note


def test_the_half_lives_of_moments_stand_beside_them():
    note = recipe(optimizer={"name": "adamw"}).at(32).row("optimizer.betas[1]").note
    assert "1 - decay = 0.001 becomes 0.003994" in note
    assert "half-life 5,542.4 samples becomes 5,542.4 samples" in note


@every
def test_json_holds_numbers_and_text_apart(parts):
    told = json.loads(recipe(**parts).at(64).to_json())
    unit = "tokens" if "batch" in parts else "samples"
    for row in told["rows"]:
        spans = ("batch.size", "batch.size (kept)", "schedule.length", "schedule.warmup", "schedule.decay_from")
        if row["key"] != "optimizer.name":
            assert isinstance(row["was"], (int, float)), row
            assert isinstance(row["becomes"], (int, float)), row
        if row["key"] in (*spans, "ema.half_life") and "(kept)" not in row["key"]:
            assert row["unit"] == unit
            assert all(isinstance(step, int) for step in row["steps"])
        assert row["kept"] == (row["text"][1] == "kept") == math.isclose(row["was"], row["becomes"], rel_tol=1e-12)


@every
@pytest.mark.parametrize("batch", [4, 24, 72])
def test_steps_are_whole_and_agree_between_rows(parts, batch):
    plan = recipe(**parts).at(batch)
    rows = {row.key: row for row in plan.rows}
    assert rows["batch.size"].steps == rows["schedule.length"].steps
    for row in plan.rows:
        if row.steps is not None:
            assert f"{row.steps[0]:,} steps become {row.steps[1]:,}" in row.note or row.key == "ema.half_life"
    samples = rows["schedule.length"].becomes
    assert rows["schedule.length"].steps[1] == -(-round(samples, 6) // batch)


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}[{index}]")
    else:
        yield path, value


@every
@pytest.mark.parametrize("batch", [2, 64])
def test_every_value_that_moves_has_a_row(parts, batch):
    made = recipe(**parts)
    plan = made.at(batch)
    old, new = (dict(leaves(r.model_dump(mode="json"))) for r in (made, plan.recipe))
    keys = {row.key for row in plan.rows} | {"rules.noise_share", "schedule.stair"}
    has = {f"optimizer.{key}" for key in row_of(made).keys}
    moved = {key for key in new if new[key] != old.get(key) and not key.startswith("planned.")}  # the plan's own stamp
    moved -= {key for key in moved if key.startswith("optimizer.") and key.partition("[")[0] not in has}
    assert moved - keys == set()


def test_what_does_not_change_says_kept():
    plan = recipe().at(64)
    assert plan.row("schedule.length").text == ("10 epochs", "kept")
    assert plan.row("optimizer.lr").text == ("0.01", "0.08")
    assert "| schedule.length | 10 epochs | kept |" in plan.to_markdown()
    assert {row.text[1] for row in recipe().at(8).rows} == {"kept"}
    final = recipe(schedule={"final": 0.1}).at(64).row("schedule.final")
    assert final.text == ("0.1", "kept")
    assert "the final rate 0.001 becomes 0.008" in final.note


def test_samples_are_whole_where_there_are_many():
    plan = recipe(batch={"size": 512}, data_size=1_281_167, schedule={"length": "10 epochs"}).at(3)
    assert plan.row("schedule.length").becomes == 12_811_670
    assert "e+0" not in plan.to_markdown()
