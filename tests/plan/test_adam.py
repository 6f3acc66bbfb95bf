"""Plans for the Adam family: which regime is assumed, what a noise scale changes, and the invariant form."""

import math

import pytest
from tests.recipes import recipe

from isobatch import InputError, cli

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}


def test_without_a_noise_scale_the_bracket_is_shown_and_the_condition_warned():
    plan = recipe(optimizer=ADAMW).at(32)
    row = plan.row("optimizer.lr")
    assert row.becomes == pytest.approx(2e-3)
    assert "[0.002, 0.004]" in row.note
    assert any("square root needs noise" in warning.condition for warning in plan.warnings)


@pytest.mark.parametrize(
    ("noise_scale", "kappa", "advice"), [(1e6, 4, "square root"), (80, 4, "noise-aware"), (8, 16, "invariant")]
)
def test_a_noise_scale_gives_the_share_the_rate_and_the_advice(noise_scale, kappa, advice):
    plan = recipe(optimizer=ADAMW).at(8 * kappa, noise_scale=noise_scale)
    row, share = plan.row("optimizer.lr"), noise_scale / (noise_scale + 8)
    drift = kappa * math.sqrt((1 - share) + share / kappa)
    assert row.becomes == pytest.approx(1e-3 * drift)
    assert f"recommended: {advice}" in row.note
    # decay and eps follow the rate: eta*lambda/B and eps beside sqrt(v)
    assert plan.row("optimizer.weight_decay").becomes == pytest.approx(0.1 * kappa / drift)
    assert plan.row("optimizer.eps").becomes == pytest.approx(1e-8 * drift / kappa)
    # the share at the new batch is the one that the noise scale gives there
    assert plan.recipe.rules.noise_share == pytest.approx(noise_scale / (noise_scale + 8 * kappa))
    assert any("square root would drift" in w.condition for w in plan.warnings) == (advice == "invariant")


def test_a_noise_scale_moves_nothing_for_sgd():
    assert recipe().at(32, noise_scale=100).rows == recipe().at(32).rows


def test_the_invariant_form_takes_the_linear_rate_and_keeps_decay_and_eps():
    plan = recipe(optimizer=ADAMW).at(128, optimizer="invariant")
    assert plan.row("optimizer.name").becomes == "invariant-adamw"
    assert plan.row("optimizer.lr").becomes == pytest.approx(0.016)
    for key in ("optimizer.weight_decay", "optimizer.eps"):
        assert plan.row(key).was == plan.row(key).becomes
    assert plan.recipe.optimizer.reference_batch == 8
    assert not any("square root" in warning.condition for warning in plan.warnings)
    # planning on keeps the reference batch
    assert plan.recipe.at(256).recipe.optimizer.reference_batch == 8


def test_what_has_no_invariant_form_is_refused():
    with pytest.raises(InputError, match="has no invariant form"):
        recipe().at(32, optimizer="invariant")
    with pytest.raises(InputError, match='must be "invariant"'):
        recipe(optimizer=ADAMW).at(32, optimizer="lamb")
    with pytest.raises(InputError, match="use invariant-adamw"):
        recipe(optimizer={**ADAMW, "reference_batch": 8})
    with pytest.raises(InputError, match="noise scale"):
        recipe(optimizer=ADAMW).at(32, noise_scale=-1.0)


def test_the_command_takes_both(capsys):
    words = ["plan", "examples/digits-adamw.toml", "--batch-size", "128", "--markdown"]
    assert cli.run([*words, "--noise-scale", "100"]) == 0
    assert "noise share f = 0.926" in capsys.readouterr().out
    assert cli.run([*words, "--optimizer", "invariant"]) == 0
    assert "invariant-adamw" in capsys.readouterr().out


def test_a_recipe_of_the_invariant_form_keeps_its_reference_batch_when_it_is_scaled():
    stated = recipe(optimizer={"name": "invariant-adamw", "lr": 1e-3})
    assert stated.at(8).recipe.optimizer == stated.optimizer
    once = stated.at(64).recipe
    assert (once.optimizer.reference_batch, once.optimizer.lr) == (8, pytest.approx(8e-3))
    assert once.at(16).recipe.optimizer.reference_batch == 8
    assert once == recipe(optimizer={"name": "adamw", "lr": 1e-3}).at(64, optimizer="invariant").recipe
