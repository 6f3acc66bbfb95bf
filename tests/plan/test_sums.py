"""A loss that is summed is the same run in another unit: its plan is the mean's, number by number."""

import pytest
from tests.formulas import evaluate
from tests.recipes import recipe

B = 8
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": 0.04, "momentum": 0.9, "weight_decay": 0.01, "clip": 1.0},
    "sgd, decoupled": {"name": "sgd", "lr": 0.04, "weight_decay": 0.01, "decay": "decoupled", "clip": 1.0},
    "adamw": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "clip": 1.0},
    "adam": {"name": "adam", "lr": 1e-3, "weight_decay": 0.01},
    "eps inside": {"name": "adamw", "lr": 1e-3, "eps": 1e-6, "eps_inside": True},
    "rmsprop": {"name": "rmsprop", "lr": 1e-3, "momentum": 0.9, "eps": 1e-3, "eps_inside": True, "alpha": 0.99},
    "lars": {"name": "lars", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4},
    "lion": {"name": "lion", "lr": 1e-4, "weight_decay": 0.1},
}


def units(optimizer, batch):
    """What each number of a summed loss is times that of a mean one: the gradient is `batch` times as large."""
    adaptive = optimizer["name"] in ("adam", "adamw", "rmsprop")
    coupled = optimizer.get("decay") != "decoupled" and optimizer["name"] in ("sgd", "adam", "lars")
    return {
        "lr": 1 / batch if optimizer["name"] == "sgd" else 1.0,
        "weight_decay": float(batch) if coupled else 1.0,
        "eps": (batch**2 if optimizer.get("eps_inside") else batch) if adaptive else 1.0,
        "clip": float(batch),
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("batch", [2, 32])
@pytest.mark.parametrize("word", ["sum", "times batch"])
def test_the_plan_of_a_sum_is_the_plan_of_the_mean_in_its_unit(name, batch, word):
    mean = OPTIMIZERS[name]
    before, after = units(mean, B), units(mean, batch)
    summed = {key: value * before.get(key, 1.0) if isinstance(value, float) else value for key, value in mean.items()}
    summed = {"eps": 1e-8 * before["eps"], **summed}
    if name == "sgd, decoupled":  # what is lost a step is lr*lambda, whatever the unit of lr
        summed["weight_decay"], after["weight_decay"] = mean["weight_decay"] * B, float(batch)
    one = recipe(optimizer=mean, ema=None).at(batch).recipe.optimizer
    other = recipe(optimizer=summed, batch={"reduction": word}, ema=None).at(batch).recipe.optimizer
    for key in ("lr", "momentum", "betas", "alpha", "weight_decay"):
        wanted = getattr(one, key)
        wanted = wanted if isinstance(wanted, tuple) else wanted * after.get(key, 1.0)
        assert getattr(other, key) == pytest.approx(wanted, rel=1e-12), key
    if mean["name"] in ("adam", "adamw", "rmsprop"):
        assert other.eps == pytest.approx(one.eps * after["eps"], rel=1e-12)
    if "clip" in mean:
        assert other.clip == pytest.approx(one.clip * batch, rel=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("batch", [2, 8, 32])
def test_every_printed_formula_gives_the_printed_number(name, batch):
    ema = {"decay": 0.99, "ramp": {"by": "power", "power": 0.75}}
    base = recipe(optimizer=OPTIMIZERS[name], batch={"reduction": "sum"}, ema=ema)
    assert {"optimizer.lr", "ema.ramp.inv_gamma"} <= evaluate(base, base.at(batch))


@pytest.mark.parametrize("kappa", [4, 0.25])
def test_eps_inside_the_root_goes_as_v_does(kappa):
    inside = recipe(optimizer=OPTIMIZERS["eps inside"], ema=None).at(int(8 * kappa)).recipe.optimizer
    assert inside.eps == pytest.approx(1e-6 / kappa)


def test_synchronised_statistics_are_of_all_devices():
    norm = {"momentum": 0.1, "synchronised": True}
    base = recipe(batch={"size": 16, "devices": 2}, batch_norm=norm, ema=None)
    assert base.at(32).row("batch_norm.momentum").becomes == pytest.approx(0.19)
    assert base.at(32, devices=4, micro=8).row("batch_norm.momentum").becomes == pytest.approx(0.19)
    alone = recipe(batch={"size": 16, "devices": 2}, batch_norm={"momentum": 0.1}, ema=None)
    assert alone.at(32, devices=4, micro=8).row("batch_norm.momentum").becomes == pytest.approx(0.1)
