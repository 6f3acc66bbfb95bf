"""The arm that clips otherwise: trained where a recipe clips, and only there."""

import pytest
from tests.recipes import recipe

from isobatch import InputError
from isobatch.verify.design import ABLATIONS, MEANING, arms


def test_a_recipe_that_does_not_clip_has_no_such_arm():
    assert "clip" in ABLATIONS
    assert "clip" in MEANING
    assert list(arms(recipe(), 32)) == ["reference", "plan", "lr-only", "ema-only", "unscaled"]


def test_where_the_plan_keeps_the_norm_the_arm_takes_its_noise_limit():
    made = arms(recipe(optimizer={"clip": 1.0}), 32)
    assert made["plan"].optimizer.clip == 1.0
    assert made["clip"].optimizer.clip == pytest.approx(0.5)
    assert made["clip"].model_copy(update={"optimizer": made["plan"].optimizer}) == made["plan"]


def test_where_the_plan_moves_the_norm_the_arm_keeps_it():
    made = arms(recipe(optimizer={"clip": 1.0}, rules={"noise_share": 0.75}), 32)
    assert made["plan"].optimizer.clip == pytest.approx((0.25 + 0.75 / 4) ** 0.5)
    assert made["clip"].optimizer.clip == 1.0
    assert made["unscaled"].optimizer.clip == 1.0


def test_the_arm_can_be_chosen_and_left_out():
    assert list(arms(recipe(optimizer={"clip": 1.0}), 32, ("clip",))) == ["reference", "plan", "clip"]
    assert "clip" not in arms(recipe(optimizer={"clip": 1.0}), 32, ("unscaled",))
    assert list(arms(recipe(optimizer={"clip": 1.0}, ema=None), 32)) == ["reference", "plan", "unscaled", "clip"]
    with pytest.raises(InputError, match="must be among lr-only, ema-only, unscaled, clip"):
        arms(recipe(), 32, ("clipping",))
