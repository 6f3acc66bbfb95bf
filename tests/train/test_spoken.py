"""Curves, groups, ramps and starts in the loop: the reference's own numbers at its batch, the plan's at any other."""

import math

import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch import InputError, rescale
from isobatch.plan import scaled
from isobatch.tasks import Run, TensorSamples
from isobatch.train import Trainer

B, STEPS = 8, 20
CURVES = {
    "lr": [{"span": "5 steps", "by": "linear", "start": 0.2, "to": 1.0}, {"by": "cosine", "to": 0.1}],
    "weight_decay": [{"by": "cosine", "to": 3.0}],
    "momentum": [{"span": "10 steps", "by": "linear", "start": 2.0, "to": 1.0}, {"by": "hold"}],
}
GROUPS = [
    {"name": "body", "match": r"layers\.(\d)\.weight", "layer_decay": 0.5, "layers": 1},
    {"name": "plain", "dims": "vectors", "weight_decay": 0.0, "lr_scale": 2.0},
]


def made(**parts):
    optimizer = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "decay": "coupled"}
    schedule = {"length": f"{STEPS} steps", "warmup": None, "shape": None}
    return recipe(**{"optimizer": optimizer, "schedule": schedule, "ema": None, "data_size": 400} | parts)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 3)])
        self.head = nn.Linear(3, 1, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def run(**more) -> Run:
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    return Run(Net(), TensorSamples(x, x.sum(1, keepdim=True)), lambda net, b: (net(b[0]) - b[1]).square().mean(),
               lambda net: {"loss": 1.0}, **more)  # fmt: skip


def slow(name, step):
    """A curve of CURVES at a reference step, written out."""
    if name == "lr":
        left = (1 + math.cos(math.pi * (step - 5) / (STEPS - 5))) / 2
        return 0.2 + 0.8 * step / 5 if step < 5 else 0.1 + 0.9 * left
    if name == "weight_decay":
        return 3.0 - 2.0 * (1 + math.cos(math.pi * step / STEPS)) / 2
    return 2.0 - step / 10 if step < 10 else 1.0


def means(name, batch, index, of=lambda share: share):
    each = batch // B
    return sum(of(slow(name, step)) for step in range(index * each, (index + 1) * each)) / each


def test_at_the_reference_batch_every_step_has_the_references_numbers():
    one = Trainer(run(), made(curves=CURVES))
    for step in range(STEPS):
        lr = one.step().lr
        [group] = one.optimizer.param_groups
        assert lr == group["lr"] == pytest.approx(0.02 * slow("lr", step), rel=1e-9)
        assert group["weight_decay"] == pytest.approx(0.01 * slow("weight_decay", step), rel=1e-9)
        assert group["momentum"] == pytest.approx(1 - 0.1 * slow("momentum", step), rel=1e-9)


@pytest.mark.parametrize("batch", [16, 32])
def test_at_another_batch_steps_have_the_means_and_keep_the_rate_of_heavy_ball(batch):
    kappa, one = batch // B, Trainer(run(), made(curves=CURVES))
    for index in range(STEPS // kappa):
        lr = one.step(batch).lr
        [group] = one.optimizer.param_groups
        mu = math.prod(1 - 0.1 * slow("momentum", s) for s in range(index * kappa, (index + 1) * kappa))
        assert group["momentum"] == pytest.approx(mu, rel=1e-9)
        small = sum(
            0.02 * slow("lr", s) / (0.1 * slow("momentum", s)) for s in range(index * kappa, (index + 1) * kappa)
        )
        assert lr / (1 - mu) == pytest.approx(small, rel=1e-9)
        assert group["weight_decay"] == pytest.approx(0.01 * means("weight_decay", batch, index), rel=1e-9)


def test_a_momentum_that_is_kept_per_step_takes_the_mean_curve_and_a_plain_rate():
    one = Trainer(run(), made(curves=CURVES, rules={"momentum": "keep"}))
    for index in range(STEPS // 2):
        assert one.step(16).lr == pytest.approx(2 * 0.02 * means("lr", 16, index), rel=1e-9)
        mus = [1 - 0.1 * slow("momentum", step) for step in (2 * index, 2 * index + 1)]
        assert one.optimizer.param_groups[0]["momentum"] == pytest.approx(math.sqrt(mus[0] * mus[1]), rel=1e-9)


def test_beta1_follows_the_momentum_curve_of_adam():
    one = Trainer(run(), made(optimizer={"name": "adamw", "lr": 0.01, "momentum": None}, curves={
        "momentum": CURVES["momentum"]}))  # fmt: skip
    one.step(16)
    assert one.optimizer.param_groups[0]["betas"] == pytest.approx((0.8 * 0.81, 0.999**2), rel=1e-9)


@pytest.mark.parametrize("batch", [8, 32])
def test_groups_have_their_own_numbers_in_loop_and_plan(batch):
    base = made(groups=GROUPS)
    for chosen, size in ((base, batch), (base.at(batch).recipe, None)):
        one = Trainer(run(), chosen)
        one.step(size)
        new = scaled(base, batch)
        rates = {
            group["isobatch_group"] + f" {group['lr'] / new.lr:.3g}": group for group in one.optimizer.param_groups
        }
        assert set(rates) == {"body 0.5", "body 1", "plain 2", " 1"}
        assert [rates[key]["weight_decay"] for key in sorted(rates)] == [0.01, 0.01, 0.01, 0.0]
        assert sum(len(group["params"]) for group in one.optimizer.param_groups) == 5


def test_a_plan_trains_as_its_reference_does_at_that_batch():
    base = made(curves={**CURVES, "ema": [{"by": "cosine", "to": 0.0}]}, groups=GROUPS, ema={"decay": 0.9})
    one, other = Trainer(run(), base), Trainer(run(), base.at(32).recipe)
    for _ in range(STEPS // 4):
        one.step(32)
        other.step()
    for mine, theirs in zip(one.run.model.parameters(), other.run.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    for name, mine in one.average.average().items():
        torch.testing.assert_close(mine, other.average.average()[name], rtol=1e-5, atol=1e-7)


def test_a_match_that_hits_nothing_or_twice_is_refused_when_it_is_bound():
    with pytest.raises(InputError, match=r"groups\.a \(match='neck'.*takes no parameter.*layers\.0\.weight"):
        Trainer(run(), made(groups=[{"name": "a", "match": "neck", "lr_scale": 0.1}]))
    meet = [{"name": "a", "match": "layers", "lr_scale": 0.1}, {"name": "b", "match": r"\.bias$", "weight_decay": 0.0}]
    with pytest.raises(InputError, match=r"groups\.a .* and groups\.b .*both take 'layers\.0\.bias'"):
        Trainer(run(), made(groups=meet))


def test_rescale_moves_groups_by_their_ratios():
    base = made(optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.0, "momentum": None}, groups=[
        {"name": "heavy", "dims": "matrices", "weight_decay": 0.1, "eps": 1e-6, "lr_scale": 0.5}])  # fmt: skip
    one, other = Trainer(run(), base), Trainer(run(), base)
    one.step()
    rescale(to=32, optimizer=one.optimizer, recipe=base)
    other.step(32)
    for mine, theirs in zip(one.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        for key in ("lr", "weight_decay", "eps", "betas"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-9), key


REFUSED = [
    ({"optimizer": {"name": "sgd", "lr": 0.1, "clip": 1.0, "clip_by": "module", "momentum": None}}, "clip_by"),
    ({"optimizer": {"name": "adamw", "eps_inside": True, "momentum": None}}, "eps_inside"),
    ({"batch": {"reduction": "sum"}}, "reduction"),
    ({"batch": {"devices": 2}, "batch_norm": {"synchronised": True}}, "synchronised"),
    ({"curves": {"temperature": [{"by": "hold"}]}}, r"curves\.temperature.*Run\(reads="),
    ({"spans": {"freeze": "3 steps"}}, r"spans\.freeze.*Run\(reads="),
    ({"groups": [{"name": "a", "dims": "matrices", "optimizer": "muon", "lr": 0.1}]}, r"groups\.a\.optimizer"),
    ({"groups": [{"name": "a", "dims": "matrices", "momentum": 0.5}]}, r"groups\.a\.momentum"),
    ({"ema": {"decay": None, "ramp": {"by": "post-hoc", "std": 0.1}}}, "post-hoc.*PowerEMA"),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_planned_but_not_trained_is_refused_by_name(parts, message):
    one = made(**parts)
    assert one.at(32).kappa == 4
    with pytest.raises(InputError, match=f"{message}|can be planned but not trained") as caught:
        Trainer(run(), one)
    assert "can be planned but not trained" in str(caught.value)


def test_what_the_task_reads_itself_is_trained():
    one = made(curves={"temperature": [{"by": "hold"}]}, spans={"freeze": "3 steps"})
    Trainer(run(reads=("temperature", "freeze")), one).step()


def test_a_ramp_of_the_batch_may_leave_the_numbers_alone():
    stages = [["0 samples", 8], ["80 samples", 16]]
    keeps = made(batch={"size": 16, "schedule": stages, "schedule_lr": "keep"})
    follows = made(batch={"size": 16, "schedule": stages})
    assert Trainer(run(), keeps).step(8).lr == 0.02
    assert Trainer(run(), follows).step(8).lr == pytest.approx(0.02 / 2 * (1 - 0.9**0.5) / 0.1)
    assert keeps.at(32).recipe.batch.schedule == (("0 samples", 16), ("80 samples", 32))


def test_a_clip_by_value_bounds_each_entry():
    one = Trainer(run(), made(optimizer={"name": "sgd", "lr": 1.0, "clip": 1e-3, "clip_by": "value", "momentum": None,
                                         "weight_decay": None}))  # fmt: skip
    before = [p.detach().clone() for p in one.run.model.parameters()]
    one.step()
    moved = [(p - q).abs().max().item() for p, q in zip(one.run.model.parameters(), before, strict=True)]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)


RAMPS = {
    "exp": ({"by": "exp", "tau": "6 steps"}, lambda t: 0.9 * (1 - math.exp(-(t + 1) / 6))),
    "power": ({"by": "power", "inv_gamma": 2.0, "power": 0.75}, lambda t: min(0.9, 1 - (1 + t / 2) ** -0.75)),
    "tensorflow": ({"by": "tensorflow"}, lambda t: min(0.9, (2 + t) / (11 + t))),
    "annealing": ({"by": "annealing", "gamma": 5.0}, lambda t: min(0.9, t / (5 + t))),
}


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("batch", [8, 16])
def test_a_ramp_is_the_references_own_at_any_batch(name, batch):
    ramp, decay = RAMPS[name]
    base = made(ema={"decay": 0.9, "ramp": ramp, "start": "2 steps"})
    for chosen, size in ((base, batch), (base.at(batch).recipe, None)):
        one = Trainer(run(), chosen)
        theta = [p.detach().clone().double() for p in one.run.model.parameters()]
        for index in range(8):
            one.step(size)
            kept = 1.0
            for t in range(index * batch // B, (index + 1) * batch // B):
                kept *= decay(t - 2) if t >= 2 else 0.0
            theta = [kept * a + (1 - kept) * p.detach() for a, p in zip(theta, one.run.model.parameters(), strict=True)]
        for mine, slow_one in zip(one.average.average().values(), theta, strict=True):
            torch.testing.assert_close(mine.double(), slow_one, rtol=1e-4, atol=1e-6)
