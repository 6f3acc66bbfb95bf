"""LEGW: square root, a warm-up of a fixed number of steps, the reference's decay; plan and loop agree."""

import math

import pytest
import torch
from tests.gloo import world
from tests.recipes import recipe
from tests.reference.legw import learning_rate
from tests.shape_rows import SHAPE_ROWS

from isobatch.errors import InputError
from isobatch.noise import local_lipschitz
from isobatch.plan import scaled
from isobatch.rules import legw
from isobatch.tasks import make_run
from isobatch.train import Trainer

PARTS = {
    "task": "digits",
    "data_size": 1437,
    "options": {"width": 4},
    "batch": {"size": 8},
    "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01},
    "schedule": {"length": "1600 samples", "warmup": "80 samples", "shape": "cosine"},
    "rules": {"lr": "legw", "momentum": "keep", "betas": "keep"},
}


def rate(made, seen, batch):
    """The learning rate of a step: the peak at its batch times the mean of the curve over its samples."""
    return scaled(made, batch).lr * made.staircase(batch).mean(seen, seen + batch)


@pytest.mark.parametrize("shape", SHAPE_ROWS)
@pytest.mark.parametrize("batch", [8, 16, 64, 128])
def test_every_step_has_the_rate_of_the_paper(shape, batch):
    schedule = {"length": "1280 samples", "warmup": "64 samples", "shape": shape}
    made = recipe(**{**PARTS, "optimizer": {"name": "sgd", "lr": 0.3}, "schedule": schedule}, ema=None)
    for step in range(1280 // batch):
        wanted = learning_rate(step, eta0=0.3, w0=64 / 1280, B0=8, B=batch, N=1280, epochs=1, d=SHAPE_ROWS[shape])
        assert rate(made, step * batch, batch) == pytest.approx(wanted, rel=1e-9)


def test_the_warm_up_has_the_same_number_of_steps_at_every_batch():
    for kappa in (0.25, 2, 16):
        peak, warmup = legw(0.1, 80.0, kappa, 10_000)
        assert warmup / (8 * kappa) == 10
        assert peak == pytest.approx(0.1 * math.sqrt(kappa))


def test_the_sheet_of_known_settings():
    """ImageNet, ResNet-50: 512 with 2^2 and 10/2^6 epochs becomes 16384 with 2^4.5 and 5 epochs."""
    assert legw(4.0, 10 / 2**6, 32, 90) == pytest.approx((2**4.5, 5.0))


def test_plan_and_loop_agree():
    base = recipe(**PARTS, ema=None)
    plan = base.at(64).recipe
    assert plan.schedule is not None
    assert (plan.schedule.warmup, plan.schedule.decay_from) == ("640 samples", "80 samples")
    assert (plan.optimizer.momentum, plan.optimizer.weight_decay) == (0.9, 0.01)
    again = plan.at(32).recipe
    assert again.optimizer.lr == pytest.approx(0.04)
    assert again.schedule is not None
    assert again.schedule.warmup == "320 samples"
    free, planned = Trainer(make_run(base, 0), base), Trainer(make_run(plan, 0), plan)
    for step in range(20):
        rates = [free.step(64).lr, planned.step().lr]
        assert rates == pytest.approx([rate(base, 64 * step, 64)] * 2, rel=1e-12)


def test_rule_legw_is_the_recipe_with_its_rules():
    base = recipe(**{**PARTS, "rules": {}}, ema=None)
    assert base.at(64, rule="legw").recipe == recipe(**PARTS, ema=None).at(64).recipe
    assert base.at(8, rule="legw").recipe.optimizer.lr == 0.02
    rows = {row.key: (row.becomes, row.rule) for row in base.at(64, rule="legw").rows}
    assert rows["schedule.warmup"] == (640.0, "kappa*w0")
    assert rows["optimizer.lr"][1] == "sqrt(kappa)*eta"


def test_a_warm_up_longer_than_the_run_is_refused_and_one_over_half_of_it_warned():
    base = recipe(**PARTS, ema=None)
    with pytest.raises(InputError, match=r"21 x 80 = 1680 is longer than the run, 1600; kappa may be at most 20"):
        base.at(168)
    with pytest.raises(InputError, match="longer than the run"):
        recipe(**{**PARTS, "batch": {"size": 8, "schedule": [["0 samples", 8], ["800 samples", 256]]}}, ema=None)
    with pytest.raises(InputError, match="rule='sqrt' must be"):
        base.at(64, rule="sqrt")
    found = [w.condition for w in base.at(88).warnings]
    assert any("LEGW's warm-up takes 55% of the run" in text for text in found)
    assert not any("LEGW" in w.condition for w in base.at(32).warnings)


def test_local_lipschitz_is_the_curvature_along_the_gradient():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def slope():
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(net, (x, y)), list(net.parameters()))])

    g, eps = slope(), 1e-6
    with torch.no_grad():
        start = torch.nn.utils.parameters_to_vector(net.parameters())
        torch.nn.utils.vector_to_parameters(start + eps * g, net.parameters())
    moved = slope()
    torch.nn.utils.vector_to_parameters(start, net.parameters())
    wanted = abs(float(g @ (moved - g) / eps)) / float(g @ g)
    assert local_lipschitz(loss, net, (x, y)) == pytest.approx(wanted, rel=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_local_lipschitz_where_there_is_nothing_to_say():
    net = torch.nn.Linear(1, 1)
    assert local_lipschitz(lambda m, x: (0 * m(x)).mean(), net, torch.ones(2, 1)) is None
    net.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        local_lipschitz(lambda m, x: m(x).mean(), net, torch.ones(2, 1))


def test_two_processes_take_the_rates_and_steps_of_one(tmp_path):
    made = recipe(**PARTS, ema=None)

    def steps():
        one = Trainer(make_run(made, 0), made, order_seed=1)
        rates = [one.step(size).lr for size in (8, 8, 32, 32, 7, 64)]
        flat = torch.nn.utils.parameters_to_vector(one.run.model.parameters()).detach()
        return {"rates": torch.tensor(rates, dtype=torch.float64), "weights": flat}

    world(2, tmp_path, lambda rank: torch.save(steps(), tmp_path / f"{rank}"))
    alone = steps()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}")
        assert torch.equal(found["rates"], alone["rates"])
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=0, atol=1e-6)
