"""Past the noise scale the plan lists remedies: those that apply, with cost and evidence; below it none."""

import json

import pytest
from tests.recipes import recipe

from isobatch.errors import InputError

ALL = {"LEGW", "AutoWU", "AdaScale", "LARS", "batch augmentation", "concurrent adversarial"}


def names(base, size, noise_scale=64.0, **asked):
    return {remedy.name for remedy in base.at(size, noise_scale=noise_scale, **asked).remedies}


def test_remedies_come_past_the_noise_scale_and_not_before():
    base = recipe()
    assert names(base, 65) == names(base, 80) == ALL
    assert names(base, 64) == names(base, 8, 1.0) == names(base, 4, 1.0) == set()
    assert base.at(80).remedies == ()


def test_a_measured_noise_scale_in_the_recipe_counts():
    base = recipe(critical={"batch": 32, "noise_scale": 16.0})
    assert {remedy.name for remedy in base.at(32).remedies} == ALL
    assert base.at(16).remedies == ()
    assert names(base, 32, noise_scale=40.0) == set()


def test_only_what_applies_is_listed():
    assert "LEGW" not in names(recipe(), 128)  # 16 warm-up epochs of a run of 10
    assert names(recipe(optimizer={"name": "lamb", "lr": 0.01}), 80) == ALL - {"AdaScale", "LARS"}
    assert "LAMB" in names(recipe(optimizer={"name": "adamw"}), 80)
    assert "AdaScale" not in names(recipe(optimizer={"momentum": 0.9}), 80)
    assert not {"LEGW", "AutoWU"} & names(recipe(schedule=None, ema=None), 80)


def test_each_says_how_what_it_costs_and_who_says_so():
    plan = recipe().at(80, noise_scale=64.0)
    for remedy in plan.remedies:
        assert remedy.how
        assert remedy.cost
        assert "arXiv" in remedy.evidence
    costs = {remedy.name: remedy.cost for remedy in plan.remedies}
    assert costs["AdaScale"] == "a step is worth 5 base steps, so the run takes 2 times the samples"
    assert json.loads(plan.to_json())["remedies"][0]["name"] == "LEGW"
    assert "past the noise scale, **LEGW**" in plan.to_markdown()
    assert "past the noise scale: keep the batch smaller" in str(plan)


def test_a_noise_scale_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"noise scale=-1 must be in \[0, inf\]"):
        recipe().at(80, noise_scale=-1.0)
