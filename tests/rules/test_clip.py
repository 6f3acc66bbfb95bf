"""Clipping by the noise scale: against every sequence of draws, at its two limits, and where it is not known."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import recipe
from tests.reference import rules as slow

from isobatch import InputError
from isobatch.rules import noise_share, noise_share_after, scale_clip

POPULATIONS = {
    "noise": [[1.0, 0.0], [-0.9, 0.1], [0.0, -0.2]],
    "signal": [[1.0, 0.5], [1.1, 0.4]],
    "both": [[1.0, 0.0], [0.0, 2.0], [0.5, -1.0]],
}
FIGURES = Path(__file__).parents[2] / "benchmarks" / "known_answers.json"


@pytest.mark.parametrize(("batch", "kappa"), [(1, 1), (1, 2), (1, 6), (2, 2), (2, 3)])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_norm_stands_to_the_gradient_as_before(name, batch, kappa):
    samples = POPULATIONS[name]
    share = noise_share(batch, slow.noise_scale(samples))
    assert scale_clip(0.7, kappa, share) == pytest.approx(slow.clip(0.7, samples, batch, kappa), rel=1e-9)


@given(clip=st.floats(1e-3, 1e3), batch=st.integers(1, 1000), scale=st.floats(0, 1e6), kappa=st.floats(0.01, 100))
def test_it_is_the_derived_form(clip, batch, scale, kappa):
    wanted = clip * math.sqrt((1 + scale / (kappa * batch)) / (1 + scale / batch))
    assert scale_clip(clip, kappa, noise_share(batch, scale)) == pytest.approx(wanted, rel=1e-9)


@given(share=st.floats(0, 1), one=st.floats(0.1, 10), two=st.floats(0.1, 10))
def test_two_changes_are_one(share, one, two):
    between = scale_clip(1.0, one, share)
    twice = scale_clip(between, two, noise_share_after(share, one))
    assert twice == pytest.approx(scale_clip(1.0, one * two, share), rel=1e-9)


def test_the_mandate_for_grpo_is_its_noise_limit():
    [entry] = [one for one in json.loads(FIGURES.read_text()) if "GRPO" in one["who"]]
    [row] = [one for one in entry["rows"] if one["key"] == "optimizer.clip"]
    assert (entry["from"], entry["to"], row["was"], row["becomes"]) == (256, 1024, 0.125, 0.0625)
    for batch, clip in ((256, 0.125), (512, 0.0884), (1024, 0.0625)):
        assert scale_clip(0.125, batch / 256, share=1.0) == pytest.approx(clip, rel=1e-3)
    near = scale_clip(0.125, 4, noise_share(256, 1e6))
    assert near == pytest.approx(0.0625, rel=1e-3)


KNOWN = {
    "a noise scale that is given": ({}, {"noise_scale": 24.0}),
    "a noise share in the recipe": ({"rules": {"noise_share": 0.75}}, {}),
    "a noise scale beside a critical batch": ({"critical": {"batch": 50.0, "noise_scale": 24.0}}, {}),
}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "invariant-adamw", "muon"])
@pytest.mark.parametrize("how", KNOWN)
def test_the_plan_moves_the_norm_wherever_the_noise_is_known(how, name):
    parts, asked = KNOWN[how]
    made = recipe(optimizer={"name": name, "clip": 2.0}, **parts)
    plan = made.at(32, **asked)
    row = plan.row("optimizer.clip")
    wanted = 2.0 * math.sqrt((1 + 24 / 32) / (1 + 24 / 8))
    assert row.becomes == plan.recipe.optimizer.clip == pytest.approx(wanted, rel=1e-12)
    assert row.confidence == "derived"
    assert not [w for w in plan.warnings if "clipping" in w.condition]
    back = plan.recipe.at(8)
    assert back.recipe.optimizer.clip == pytest.approx(2.0, rel=1e-12)
    assert plan.recipe.at(128).recipe.optimizer.clip == pytest.approx(made.at(128, **asked).recipe.optimizer.clip)


def test_without_a_noise_scale_it_is_kept_and_said():
    plan = recipe(optimizer={"clip": 2.0}).at(32)
    row = plan.row("optimizer.clip")
    assert (row.becomes, row.confidence) == (2.0, "unknown")
    [warning] = [w for w in plan.warnings if "clipping" in w.condition]
    assert "the noise scale is not known" in warning.message
    assert "in pure noise the norm would be 1)" in warning.message


def test_a_noise_scale_moves_the_rate_of_no_recipe_that_only_clips():
    asked = recipe(optimizer={"clip": 2.0}).at(32, noise_scale=24.0)
    assert asked.row("optimizer.lr").becomes == recipe().at(32).row("optimizer.lr").becomes


@pytest.mark.parametrize("bad", [{"clip": 0.0}, {"kappa": 0.0}, {"share": 1.1}, {"share": -0.1}, {"clip": math.nan}])
def test_what_no_norm_can_be_is_refused(bad):
    with pytest.raises(InputError):
        scale_clip(**{"clip": 1.0, "kappa": 2.0, "share": 0.5, **bad})
