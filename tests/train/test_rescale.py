"""rescale: one transaction, invertible, idempotent; torch schedulers on the sample clock."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch import InputError, Recipe, SampleScheduler, rescale
from isobatch.plan import scaled

ADAMW = Recipe.parse(
    {"batch": {"size": 8}, "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1}}
)
SGD = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}})


def trained(recipe: Recipe, steps: int = 5) -> torch.optim.Optimizer:
    o = recipe.optimizer
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    if o.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD([weight], lr=o.lr, momentum=o.momentum)
    else:
        optimizer = torch.optim.AdamW([weight], lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
    for _ in range(steps):
        weight.grad = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        optimizer.step()
    return optimizer


def numbers(optimizer: torch.optim.Optimizer) -> dict:
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    state = {k: v.clone() for k, v in next(iter(optimizer.state.values())).items() if isinstance(v, torch.Tensor)}
    return {**group, **state}


def test_sgd_gets_the_plan_and_its_buffer_stays_the_buffer_of_the_same_gradient():
    optimizer = trained(SGD, steps=400)
    new = scaled(SGD, 32)
    moved = rescale(to=32, optimizer=optimizer, recipe=SGD)
    group = optimizer.param_groups[0]
    assert moved.moved
    assert moved.settings["momentum"] == (0.9, new.momentum)
    assert group["lr"] == pytest.approx(new.lr, rel=1e-12)
    assert group["momentum"] == new.momentum == pytest.approx(0.9**4)
    buffer = next(iter(optimizer.state.values()))["momentum_buffer"]
    torch.testing.assert_close(buffer * (1 - new.momentum), torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64))


def test_adamw_gets_the_plan_and_v_follows_the_noise_share():
    optimizer = trained(ADAMW)
    before = numbers(optimizer)
    rescale(to=32, optimizer=optimizer, recipe=ADAMW, noise_share=0.5)
    after, new = numbers(optimizer), scaled(ADAMW, 32)
    assert after["lr"] == pytest.approx(new.lr)
    assert after["betas"] == new.betas
    assert after["weight_decay"] == pytest.approx(new.weight_decay)
    torch.testing.assert_close(after["exp_avg"], before["exp_avg"], rtol=0, atol=0)
    torch.testing.assert_close(after["exp_avg_sq"], before["exp_avg_sq"] * (0.5 + 0.5 / 4))
    # the accumulated decay of v, and so its bias correction, is where it was
    assert new.betas[1] ** float(after["step"]) == pytest.approx(0.99 ** float(before["step"]), rel=1e-6)


class Noise:
    """A measurement that is done."""

    def __init__(self, value, verdict):
        self.value, self.verdict = value, verdict

    def estimate(self):
        return self


@pytest.mark.parametrize(("noise", "given", "share"), [
    (Noise(24.0, "identified"), None, 0.75),  # 24/(24 + 8)
    (Noise(24.0, "identified"), 0.5, 0.5),
    (Noise(24.0, "wide"), None, 1.0),
    (Noise(None, "undefined"), None, 1.0),
    (None, None, 1.0),
])  # fmt: skip
def test_a_measured_noise_scale_gives_the_share_of_v(noise, given, share):
    optimizer = trained(ADAMW)
    before = numbers(optimizer)["exp_avg_sq"]
    rescale(to=32, optimizer=optimizer, recipe=ADAMW, noise=noise, noise_share=given)
    torch.testing.assert_close(numbers(optimizer)["exp_avg_sq"], before * (1 - share + share / 4))


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("to", [2, 24, 128])
def test_there_and_back_restores_everything(recipe, to):
    optimizer = trained(recipe)
    before = numbers(optimizer)
    rescale(to=to, optimizer=optimizer, recipe=recipe, noise_share=0.7)
    assert numbers(optimizer)["lr"] != before["lr"]
    rescale(to=8, optimizer=optimizer, recipe=recipe)
    after = numbers(optimizer)
    for key, value in before.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(after[key], value, rtol=1e-6, atol=0)
        elif key not in ("isobatch_batch", "isobatch_share"):
            assert after[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, (float, tuple)) else value), key


def test_a_second_call_moves_nothing_also_after_a_resume():
    optimizer = trained(ADAMW)
    rescale(to=32, optimizer=optimizer, recipe=ADAMW)
    resumed = trained(ADAMW)
    resumed.load_state_dict(optimizer.state_dict())
    before = numbers(resumed)
    assert not rescale(to=32, optimizer=resumed, recipe=ADAMW).moved
    after = numbers(resumed)
    assert all(torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before.items())


class Broken:
    def rescale(self, batch_size: int):
        raise OSError("the loader is gone")


class Counted:
    def __init__(self):
        self.batch = 8

    def rescale(self, batch_size: int):
        before, self.batch = self.batch, batch_size

        def back():
            self.batch = before

        return back


def test_a_failure_leaves_everything_as_it_was(monkeypatch):
    optimizer = trained(ADAMW)
    before = numbers(optimizer)
    with pytest.raises(OSError, match="the loader is gone"):
        rescale(to=32, optimizer=optimizer, recipe=ADAMW, loader=Broken())
    loader = Counted()
    scheduler = SampleScheduler(torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), batch_size=8)
    monkeypatch.setattr(scheduler, "write", lambda: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        rescale(to=32, optimizer=optimizer, recipe=ADAMW, loader=loader, scheduler=scheduler)
    after = numbers(optimizer)
    assert loader.batch == 8
    assert scheduler.factor == 1.0
    assert after.keys() == before.keys() | {"initial_lr"}
    assert all(torch.equal(after[k], v) if isinstance(v, torch.Tensor) else after[k] == v for k, v in before.items())


def test_what_cannot_be_honoured_is_refused():
    weight = torch.nn.Parameter(torch.ones(1))
    adagrad = torch.optim.Adagrad([weight], lr=0.1)
    with pytest.raises(InputError, match="Adagrad keeps state"):
        rescale(to=16, optimizer=adagrad, recipe=SGD)
    optimizer = trained(SGD)
    bare = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    with pytest.raises(InputError, match="SampleScheduler"):
        rescale(to=16, optimizer=optimizer, recipe=SGD, scheduler=bare)
    ema = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="ModelEMA"):
        rescale(to=16, optimizer=optimizer, recipe=SGD, ema=ema)
    for bad in (0, -8, True, 8.5):
        with pytest.raises(InputError, match="to="):
            rescale(to=bad, optimizer=optimizer, recipe=SGD)


def cosine(batch: int = 8) -> tuple[torch.optim.Optimizer, SampleScheduler]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return optimizer, SampleScheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50), batch_size=batch)


def reference_rates() -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_at_the_reference_batch_the_scheduler_is_its_own():
    optimizer, scheduler = cosine()
    seen = []
    for _ in range(50):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(samples=8)
    assert seen == pytest.approx(reference_rates(), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_the_sum_of_the_rate_over_samples_does_not_depend_on_the_batches(sizes):
    optimizer, scheduler = cosine()
    total, seen = 0.0, 0
    for size, following in zip(sizes, [*sizes[1:], 8], strict=True):
        if seen + size > 400:
            break
        if seen == 0:
            scheduler.samples = size
            scheduler.write()
        total += optimizer.param_groups[0]["lr"] * size
        optimizer.step()
        scheduler.step(samples=size, next_samples=following)
        seen += size
    rates = reference_rates()
    expected = sum(rate * max(0, min(seen, 8 * (k + 1)) - 8 * k) for k, rate in enumerate(rates))
    assert total == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_scheduler_resumes_where_it_was():
    optimizer, scheduler = cosine()
    for size in (8, 20, 3):
        optimizer.step()
        scheduler.step(samples=size)
    other, resumed = cosine()
    resumed.load_state_dict(scheduler.state_dict())
    for size in (8, 30, 5):
        for o, s in ((optimizer, scheduler), (other, resumed)):
            o.step()
            s.step(samples=size)
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_used_scheduler_or_one_that_follows_a_metric_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match="not a function of steps"):
        SampleScheduler(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), batch_size=8)  # type: ignore[arg-type]
    used = torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizer.step()
    used.step()
    with pytest.raises(InputError, match="before the first"):
        SampleScheduler(used, batch_size=8)


def adamw(*groups, **options):
    found = [{"params": [torch.nn.Parameter(torch.ones(2))], **group} for group in groups or ({},)]
    return torch.optim.AdamW(found, lr=1e-3, **options)


def rmsprop(**options):
    return torch.optim.RMSprop([torch.nn.Parameter(torch.ones(2))], lr=1e-3, **options)


def named(name, **options):
    return Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": name, "lr": 1e-3, **options}})


APART = {  # an optimizer, the recipe that it was not built by, and what is said
    "second beta": (
        adamw(betas=(0.9, 0.95)),
        named("adamw"),
        r"group 0 .* betas=\[0.9, 0.95\] .* \[0.9, 0.999\]",
    ),
    "a tensor of a beta": (
        adamw(betas=(torch.tensor(0.8), torch.tensor(0.999)), foreach=False, capturable=True),
        named("adamw"),
        r"optimizer.betas = \[0.80000001",
    ),
    "eps": (adamw(eps=1e-6), named("adamw"), r"write optimizer.eps = 1e-06 into the recipe"),
    "a later group": (adamw({}, {"betas": (0.5, 0.999)}), named("adamw"), "group 1 .* an optimizer of their own"),
    "alpha": (rmsprop(alpha=0.9), named("rmsprop"), "alpha=0.9 where the recipe has 0.99"),
}


@pytest.mark.parametrize("name", APART)
def test_moments_that_are_not_the_recipes_are_not_overwritten(name):
    optimizer, recipe, said = APART[name]
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(InputError, match=said):
        rescale(to=32, optimizer=optimizer, recipe=recipe)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_a_moment_that_was_written_between_two_rescales_is_not_overwritten():
    optimizer = trained(SGD)
    rescale(to=32, optimizer=optimizer, recipe=SGD)
    optimizer.param_groups[0]["momentum"] = 0.5
    with pytest.raises(InputError, match="was written since the last rescale"):
        rescale(to=8, optimizer=optimizer, recipe=SGD)
    optimizer.param_groups[0]["momentum"] = 0.9**4
    rescale(to=8, optimizer=optimizer, recipe=SGD)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_weight_decay_that_the_recipe_does_not_name_moves_all_the_same(decay):
    """torch's AdamW decays by 0.01 where nothing is said; lr*lambda/B is what a batch has to keep."""
    optimizer = adamw({}, {"weight_decay": 0.3}, {"weight_decay": 0.0})
    recipe = named("adamw", weight_decay=decay)
    kept = [group["lr"] * group["weight_decay"] / 8 for group in optimizer.param_groups]
    moved = rescale(to=32, optimizer=optimizer, recipe=recipe)
    assert [g["lr"] * g["weight_decay"] / 32 for g in optimizer.param_groups] == pytest.approx(kept)
    assert [bool(g["weight_decay"]) for g in optimizer.param_groups] == [True, True, False]
    assert set(moved.settings) <= {"lr", "betas", "eps", "weight_decay"}, "only what the optimizer has"


def late(recipe, present, numbers, stamp, *, scheduled):
    """An optimizer at batch `present` and what gives it one more group."""
    one, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    o = recipe.optimizer
    kind, options = (
        (torch.optim.SGD, {"momentum": o.momentum}) if o.name == "sgd" else (torch.optim.AdamW, {"betas": o.betas})
    )
    optimizer = kind([one], lr=o.lr, weight_decay=o.weight_decay, **options)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    scheduler = SampleScheduler(constant, batch_size=8) if scheduled else None
    if not scheduled:
        del optimizer.param_groups[0]["initial_lr"]
    rescale(to=present, optimizer=optimizer, recipe=recipe, scheduler=scheduler)
    first = {k: v for k, v in optimizer.param_groups[0].items() if k != "params" and not k.startswith("isobatch")}
    given = {"copied": first, "filled in": {}}[numbers]
    if numbers == "filled in" and scheduled:
        given = {"lr": first["lr"]}
    optimizer.add_param_group({"params": [other], **given, **({} if stamp is None else {"isobatch_batch": stamp})})
    if scheduler is not None:
        scheduler.follow_groups()
    return optimizer, scheduler


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("to", [64, 128, 8, 2])
@pytest.mark.parametrize(("numbers", "stamp", "scheduled"), [
    ("filled in", 8, False), ("copied", 64, False), ("filled in", None, True), ("copied", 64, True),
])  # fmt: skip
def test_a_group_added_after_a_change_of_the_batch_joins_the_others(recipe, to, numbers, stamp, scheduled):
    optimizer, scheduler = late(recipe, 64, numbers, stamp, scheduled=scheduled)
    rescale(to=to, optimizer=optimizer, recipe=recipe, scheduler=scheduler)
    assert not rescale(to=to, optimizer=optimizer, recipe=recipe, scheduler=scheduler).moved
    new = scaled(recipe, to)
    for group in optimizer.param_groups:
        assert group["isobatch_batch"] == to
        for key in ("lr", "weight_decay", "momentum", "eps", "betas"):
            if key in group:
                assert group[key] == pytest.approx(getattr(new, key)), key


@pytest.mark.parametrize(("numbers", "scheduled", "said"), [
    ("filled in", False, r"group 1 was added after .* batch 64, .*\['isobatch_batch'\] = 64 .* or = 8"),
    ("copied", False, r"group 1 was added after"),
    ("copied", True, r"group 1 .* has betas=.* write param_groups\[1\]\['isobatch_batch'\] = that"),
])  # fmt: skip
def test_a_group_of_which_nothing_says_the_batch_is_refused(numbers, scheduled, said):
    optimizer, scheduler = late(ADAMW, 64, numbers, None, scheduled=scheduled)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(InputError, match=said):
        rescale(to=128, optimizer=optimizer, recipe=ADAMW, scheduler=scheduler)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_what_the_optimizer_does_not_hold_is_told_as_left_to_the_loop():
    norm = {"batch_norm": {"momentum": 0.1}, "rules": {"noise_share": 0.9}}
    recipe = Recipe.parse(
        {"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "clip": 1.0}, **norm}
    )
    moved = rescale(to=32, optimizer=trained(SGD), recipe=recipe)
    assert set(moved.settings) == {"lr", "momentum"}
    assert moved.elsewhere["batch_norm"] == (0.1, pytest.approx(1 - 0.9**4))
    assert set(moved.elsewhere) == {"batch_norm", "clip"}
    assert moved.elsewhere["clip"] == (1.0, pytest.approx((0.1 + 0.9 / 4) ** 0.5))


@pytest.mark.parametrize("to", [8, 32, 128])
def test_a_scheduler_that_was_built_after_a_change_of_the_batch_is_refused_with_a_way_that_works(to):
    def cosine_of(optimizer):
        return SampleScheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000), batch_size=8)

    optimizer = trained(ADAMW)
    rescale(to=64, optimizer=optimizer, recipe=ADAMW)
    scheduler = cosine_of(optimizer)
    before = numbers(optimizer)
    with pytest.raises(InputError, match=r"go back by rescale\(to=8\) without it"):
        rescale(to=to, optimizer=optimizer, recipe=ADAMW, scheduler=scheduler)
    assert all(torch.equal(after, torch.as_tensor(before[key])) if torch.is_tensor(after) else after == before[key]
               for key, after in numbers(optimizer).items())  # fmt: skip
    del optimizer.param_groups[0]["initial_lr"]
    rescale(to=8, optimizer=optimizer, recipe=ADAMW)
    rescale(to=to, optimizer=optimizer, recipe=ADAMW, scheduler=cosine_of(optimizer))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(scaled(ADAMW, to).lr, rel=1e-3)


WRITES = {  # what else writes the rate between two steps, and whether that is told of, once
    "nobody": (lambda optimizer, scheduler: None, 0),
    "rescale": (lambda optimizer, scheduler: rescale(to=16, optimizer=optimizer, recipe=SGD, scheduler=scheduler), 0),
    "a resume": (lambda optimizer, scheduler: scheduler.load_state_dict(scheduler.state_dict()), 0),
    "a factor": (lambda optimizer, scheduler: setattr(scheduler, "factor", 0.1), 0),
    "by hand": (lambda optimizer, scheduler: optimizer.param_groups[0].update(lr=0.005), 1),
    "a plateau": (lambda optimizer, scheduler: [scheduler.plateau.step(loss) for loss in (1, 2)], 1),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_rate_that_somebody_else_wrote_is_not_overwritten_without_a_word(name):
    write, told = WRITES[name]
    optimizer = trained(SGD)
    scheduler = SampleScheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100), batch_size=8)
    scheduler.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.step()
            write(optimizer, scheduler)
            scheduler.step(samples=8)
    assert [one.filename for one in said if "written by somebody else" in str(one.message)] == [__file__] * told
