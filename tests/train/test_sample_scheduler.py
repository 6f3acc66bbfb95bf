"""SampleScheduler: any torch scheduler, read through its mean over samples, and a torch scheduler itself."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from tests.gloo import world
from tests.gradients.test_wrappers import Forwarding, Passing, Sharing
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from isobatch import InputError, Recipe, SampleScheduler, rescale
from isobatch.optimizers import InvariantAdamW

SIZE, STEPS = 8, 20  # samples of a reference step, and steps of the reference run


class CosineDecay(LRScheduler):
    """A user's scheduler that moves the weight decay as well."""

    def step(self, epoch=None):
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.1 * (1 + math.cos(math.pi * self.last_epoch / STEPS)) / 2

    def get_lr(self):
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


def weight():
    return torch.nn.Parameter(torch.zeros(1))


def sgd(**options):
    return SGD([weight()], lr=0.1, momentum=0.9, **options)


def two():
    return SGD([{"params": [weight()]}, {"params": [weight()], "lr": 0.02}], lr=0.1)


def sequence(o):
    return SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 15)], [5])


def sequence_into_a_cycle(o):
    return SequentialLR(o, [ConstantLR(o, 0.5, 4), OneCycleLR(o, 1.0, total_steps=16)], [4])


def sequence_in_a_chain(o):
    return ChainedScheduler([SequentialLR(o, [ConstantLR(o, 0.5, 3), ExponentialLR(o, 0.9)], [4]), StepLR(o, 7, 0.5)])


RATES = [0.3 * 0.8**k for k in range(STEPS)]
SCHEDULERS = {
    "one cycle, momentum": (sgd, lambda o: OneCycleLR(o, 1.0, total_steps=STEPS)),
    "one cycle, three phases": (sgd, lambda o: OneCycleLR(o, 1.0, total_steps=STEPS, three_phase=True)),
    "one cycle, linear": (sgd, lambda o: OneCycleLR(o, 1.0, total_steps=STEPS, anneal_strategy="linear")),
    "one cycle, Adam's beta": (lambda: Adam([weight()], lr=0.1), lambda o: OneCycleLR(o, 1.0, total_steps=STEPS)),
    "one cycle without momentum": (sgd, lambda o: OneCycleLR(o, 1.0, total_steps=STEPS, cycle_momentum=False)),
    "one cycle, two peaks": (two, lambda o: OneCycleLR(o, [1.0, 0.2], total_steps=STEPS, cycle_momentum=False)),
    "cyclic, momentum": (sgd, lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=3)),
    "cyclic, range": (sgd, lambda o: CyclicLR(o, 0.01, 0.1, step_size_up=4, mode="exp_range", gamma=0.9)),
    "chained": (sgd, lambda o: ChainedScheduler([LinearLR(o, 0.1, total_iters=5), ExponentialLR(o, 0.9)])),
    "chained with a cycle": (sgd, lambda o: ChainedScheduler([OneCycleLR(o, 1.0, total_steps=STEPS)])),
    "sequential": (sgd, sequence),
    "sequential into a cycle": (sgd, sequence_into_a_cycle),
    "a sequence in a chain": (sgd, sequence_in_a_chain),
    "restarts": (sgd, lambda o: CosineAnnealingWarmRestarts(o, 3, 2)),
    "polynomial": (sgd, lambda o: PolynomialLR(o, STEPS, 2.0)),
    "steps": (sgd, lambda o: StepLR(o, 3, 0.5)),
    "milestones": (sgd, lambda o: MultiStepLR(o, [2, 2, 7], 0.5)),
    "multiplied": (sgd, lambda o: MultiplicativeLR(o, lambda t: 0.9)),
    "a list that ends": (sgd, lambda o: LambdaLR(o, RATES.__getitem__)),
    "a lambda for each group": (two, lambda o: LambdaLR(o, [lambda t: 1 / (1 + t), lambda t: 0.5**t])),
    "swa": (sgd, lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=10)),
    "a user's, weight decay too": (lambda: AdamW([weight()], lr=0.1), CosineDecay),
    "a tensor": (lambda: Adam([weight()], lr=torch.tensor(0.1)), lambda o: CosineAnnealingLR(o, STEPS)),
    "a tensor, fused": (lambda: Adam([weight()], lr=torch.tensor(0.1), fused=True), lambda o: StepLR(o, 3, 0.5)),
    "numpy's rate": (lambda: SGD([weight()], lr=np.float64(0.1)), lambda o: ExponentialLR(o, 0.9)),
    "our own optimizer": (lambda: InvariantAdamW([weight()], lr=0.1, reference_batch=8), lambda o: StepLR(o, 2)),
}
OPTIONS = ("lr", "momentum", "weight_decay")


def options(optimizer):
    rows = []
    for group in optimizer.param_groups:
        row = {key: float(group[key]) for key in OPTIONS if key in group}
        rows.append(row | {f"beta{n}": float(beta) for n, beta in enumerate(group.get("betas", ()))})
    return rows


def reference(name):
    """What torch itself writes at each of the reference's steps."""
    make, build = SCHEDULERS[name]
    optimizer = make()
    scheduler, rows = build(optimizer), []
    for step in range(STEPS):
        rows.append(options(optimizer))
        optimizer.step()
        if step + 1 < STEPS:
            scheduler.step()
    return rows


def mean(rows, start, stop):
    """The slow mean over samples: one row a sample, the last one for ever."""
    chosen = [rows[min(sample // SIZE, STEPS - 1)] for sample in range(start, stop)]
    return [
        {key: sum(row[n][key] for row in chosen) / len(chosen) for key in chosen[0][n]} for n in range(len(rows[0]))
    ]


def close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("batches", [[8] * 20, [32] * 5, [64, 64, 32], [4] * 40, [12, 1, 83, 64], [160]])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_gets_the_mean_of_the_reference_over_its_samples(name, batches):
    make, build = SCHEDULERS[name]
    rows, optimizer = reference(name), make()
    tensor = optimizer.param_groups[0]["lr"]
    scheduler, seen = SampleScheduler(build(optimizer), batch_size=SIZE, samples=batches[0]), 0
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        close(options(optimizer), mean(rows, seen, seen + batch))
        assert scheduler.get_last_lr() == pytest.approx([float(g["lr"]) for g in optimizer.param_groups], rel=1e-6)
        optimizer.step()
        scheduler.step(samples=batch, next_samples=following)
        seen += batch
    if "one cycle" in name or "a cycle" in name or name == "a list that ends":  # past the last step its values hold
        close(options(optimizer), mean(rows, seen, seen + batches[-1]))
    if isinstance(tensor, torch.Tensor):
        assert optimizer.param_groups[0]["lr"] is tensor


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "a list that ends"])
def test_a_resume_through_json_goes_on_as_if_nothing_had_happened(name):
    make, build = SCHEDULERS[name]
    optimizer, other = make(), make()
    scheduler = SampleScheduler(build(optimizer), batch_size=SIZE)
    for batch in (8, 20, 3):
        optimizer.step()
        scheduler.step(samples=np.int64(batch))
    if name not in ("a tensor", "a tensor, fused"):  # torch's own state holds tensors there
        state = json.loads(json.dumps(scheduler.state_dict()))
    else:
        state = copy.deepcopy(scheduler.state_dict())
    resumed = SampleScheduler(build(other), batch_size=SIZE)
    resumed.load_state_dict(state)
    for batch in (8, 30, 5):
        for o, s in ((optimizer, scheduler), (other, resumed)):
            o.step()
            s.step(samples=batch)
        assert options(other) == options(optimizer)


def test_a_state_of_rates_alone_still_loads():
    """What was stored before momentum and chains were read."""
    optimizer, scheduler = sgd(), None
    scheduler = SampleScheduler(CosineAnnealingLR(optimizer, STEPS), batch_size=SIZE)
    for batch in (8, 20):
        optimizer.step()
        scheduler.step(samples=batch)
    state = scheduler.state_dict()
    old = {key: state[key] for key in ("batch_size", "seen", "factor", "samples", "first", "scheduler")}
    old["rates"] = [view["lr"] for view in state["rates"]]
    again = sgd()
    resumed = SampleScheduler(CosineAnnealingLR(again, STEPS), batch_size=SIZE)
    resumed.load_state_dict(old)
    for o, s in ((optimizer, scheduler), (again, resumed)):
        o.step()
        s.step(samples=40)
    assert options(again) == options(optimizer)


KINDS = {
    "cosine": lambda o: CosineAnnealingLR(o, STEPS),
    "steps": lambda o: StepLR(o, 3),
    "sequence": lambda o: SequentialLR(o, [LinearLR(o, 0.1), StepLR(o, 3)], [4]),
    "sequence turned round": lambda o: SequentialLR(o, [StepLR(o, 3), LinearLR(o, 0.1)], [4]),
    "chain": lambda o: ChainedScheduler([LinearLR(o, 0.1), StepLR(o, 3)]),
}


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("name", KINDS)
def test_the_state_of_another_kind_of_scheduler_is_refused(name, other):
    """torch takes it in silence and goes on by the old settings."""
    scheduler = SampleScheduler(KINDS[name](sgd()), batch_size=8)
    saved = SampleScheduler(KINDS[other](sgd()), batch_size=8)
    saved.step(samples=24)
    before = scheduler.state_dict()
    if name == other:
        scheduler.load_state_dict(saved.state_dict())
        assert scheduler.get_last_lr() == saved.get_last_lr()
        return
    with pytest.raises(InputError, match="the state is of another scheduler than"):
        scheduler.load_state_dict(saved.state_dict())
    assert scheduler.state_dict() == before


def test_it_is_a_torch_scheduler_whose_step_needs_no_arguments():
    optimizer = two()
    scheduler = SampleScheduler(LambdaLR(optimizer, lambda t: 1 / (1 + t)), batch_size=8, samples=16)
    assert isinstance(scheduler, LRScheduler)
    assert scheduler.optimizer is optimizer
    assert scheduler.base_lrs == [0.1, 0.02]
    assert scheduler.last_epoch == 0
    assert scheduler.get_last_lr() == scheduler.get_lr() == pytest.approx([0.075, 0.015])
    optimizer.step()
    scheduler.step()
    assert (scheduler.seen, scheduler.last_epoch) == (16, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.1 * (1 / 3 + 1 / 4) / 2, 0.02 * (1 / 3 + 1 / 4) / 2])
    for bad in (5, 0.25):
        with pytest.raises(InputError, match="no epoch or metric"):
            scheduler.step(bad)
    with pytest.raises(InputError, match="wrap the whole"):
        SequentialLR(optimizer, [scheduler, StepLR(optimizer, 1)], [3])


def test_training_past_a_scheduler_that_fails_there_is_said_once():
    optimizer = sgd()
    scheduler = SampleScheduler(LambdaLR(optimizer, [1.0, 0.5].__getitem__), batch_size=8)
    optimizer.step()
    scheduler.step(samples=8)
    scheduler.step(samples=8)
    assert scheduler.get_last_lr() == [0.05]
    with pytest.warns(UserWarning, match=r"ends after 2 steps \(IndexError"):
        scheduler.step(samples=8)
    scheduler.step(samples=8)
    assert scheduler.get_last_lr() == [0.05]


WRAPPED = {
    "bare": lambda o: o,
    "passing": Passing,
    "forwarding": Forwarding,
    "sharing": Sharing,
    "two of them": lambda o: Passing(Passing(o)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_optimizers_are_seen_through(name):
    optimizer = sgd()
    wrapped = WRAPPED[name](optimizer)
    scheduler = SampleScheduler(PolynomialLR(wrapped, STEPS, 2.0), batch_size=8)
    assert scheduler.optimizer is optimizer
    rows, handle = reference("polynomial"), scheduler.attach(wrapped, samples=np.int64(8))
    for row in rows[:4]:
        close(options(optimizer), row)
        assert wrapped.param_groups is optimizer.param_groups
        optimizer.step()
    handle.remove()
    rescale(to=16, optimizer=wrapped, recipe=KEPT, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * mean(rows, 32, 48)[0]["lr"])


def test_groups_added_later_follow_when_told_to():
    optimizer = two()
    scheduler = SampleScheduler(LambdaLR(optimizer, lambda t: 1 / (1 + t)), batch_size=8)
    optimizer.step()
    scheduler.step(samples=8)
    optimizer.add_param_group({"params": [weight()], "lr": 0.005})
    before = scheduler.state_dict()
    for call in (scheduler.step, scheduler.write):
        with pytest.raises(InputError, match="follow_groups"):
            call()
    assert scheduler.state_dict() == before
    with pytest.raises(InputError, match=r"like=2 must be in \[0, 1\]"):
        scheduler.follow_groups(like=2)
    scheduler.follow_groups(like=1)
    assert scheduler.get_last_lr() == pytest.approx([0.05, 0.01, 0.005])
    scheduler.step(samples=8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 3, 0.02 / 3, 0.01 / 3])
    other = two()
    other.add_param_group({"params": [weight()]})
    resumed = SampleScheduler(LambdaLR(other, lambda t: 1 / (1 + t)), batch_size=8)
    with pytest.raises(InputError, match="groups"):
        resumed.load_state_dict(scheduler.state_dict())  # drives three groups, the stored one two
    third = two()
    resumed = SampleScheduler(LambdaLR(third, lambda t: 1 / (1 + t)), batch_size=8)
    third.add_param_group({"params": [weight()]})
    resumed.load_state_dict(scheduler.state_dict())
    assert options(third) == options(optimizer)


def test_a_group_follows_the_momentum_of_a_cycle_too():
    optimizer = sgd()
    scheduler = SampleScheduler(OneCycleLR(optimizer, 1.0, total_steps=STEPS), batch_size=8)
    for _ in range(3):
        optimizer.step()
        scheduler.step(samples=8)
    optimizer.add_param_group({"params": [weight()]})
    scheduler.follow_groups()
    scheduler.step(samples=8)
    first, second = optimizer.param_groups
    assert second["momentum"] == first["momentum"] < 0.95


def test_a_scheduler_that_is_called_once_a_process_counts_a_step_once(tmp_path):
    """Accelerate's way: as many calls as processes. A step that the scaler skipped is none either."""

    def ranked(rank):
        optimizer = sgd()
        scheduler = SampleScheduler(CosineAnnealingLR(optimizer, STEPS), batch_size=8, samples=16)
        for count in range(1, 4):
            optimizer.step()
            scheduler.step()
            scheduler.step()
            assert (scheduler.seen, scheduler.last_epoch) == (16 * count, count)
        scheduler.step(samples=8)  # what is said counts
        assert scheduler.seen == 56
        torch.distributed.barrier()  # who leaves first must not break the other's connection
        (tmp_path / f"done-{rank}").touch()

    world(2, tmp_path, ranked)
    assert len(list(tmp_path.glob("done-*"))) == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_call_after_a_step_that_a_scaler_skipped_counts_nothing(fused):
    """As Lightning calls it, whose trainers do not ask whether a step was made."""
    optimizer = torch.optim.AdamW([weight()], lr=0.1, fused=fused)
    scheduler = SampleScheduler(CosineAnnealingLR(optimizer, STEPS), batch_size=8)
    scaler, seen = torch.amp.GradScaler("cpu", init_scale=4.0), []
    for step in range(4):
        value = optimizer.param_groups[0]["params"][0]
        value.grad = torch.full_like(value, float("inf") if step == 1 else 1.0)
        scaler.scale(torch.zeros(1))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        seen.append(scheduler.seen)
    assert seen == [8, 8, 16, 24]
    other, copied = copy.deepcopy((optimizer, scheduler))
    other.param_groups[0]["params"][0].grad = torch.ones(1)
    for _ in range(2):
        other.step()
        copied.step()
    assert (copied.seen, scheduler.seen) == (40, 24)


REFUSED = {
    "no scheduler": lambda o: SampleScheduler(o, batch_size=8),
    "a metric": lambda o: SampleScheduler(torch_schedulers.ReduceLROnPlateau(o), batch_size=8),
    "itself": lambda o: SampleScheduler(SampleScheduler(StepLR(o, 1), batch_size=8), batch_size=8),
    "one inside a chain that was stepped": lambda o: SampleScheduler(ChainedScheduler([stepped(o)]), batch_size=8),
    "what torch cannot step": lambda o: torch_steps(SampleScheduler(chain_in_a_sequence(o), batch_size=8)),
    "no batch": lambda o: SampleScheduler(StepLR(o, 1), batch_size=0),
    "half a batch": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8.5),
    "no samples": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8, samples=0),
    "samples that are none": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).step(samples=float("nan")),
    "words": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).step(samples="8"),
    "another optimizer": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).attach(sgd(), samples=8),
    "the state of torch's": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).load_state_dict(
        StepLR(o, 1).state_dict()
    ),
    "another reference": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).load_state_dict(
        SampleScheduler(StepLR(o, 1), batch_size=4).state_dict()
    ),
    "other groups": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8).load_state_dict(
        SampleScheduler(StepLR(two(), 1), batch_size=8).state_dict()
    ),
}


def stepped(optimizer):
    scheduler = StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    return scheduler


def chain_in_a_sequence(o):
    chain = ChainedScheduler([ConstantLR(o, 0.5, 3), ExponentialLR(o, 0.9)])
    return SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), chain], [5])


def torch_steps(scheduler):
    for _ in range(6):
        scheduler.step()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_driven_is_refused_in_words(name):
    with pytest.raises(InputError):
        REFUSED[name](sgd())


RECIPE = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}})
KEPT = Recipe.parse({**RECIPE.model_dump(exclude_unset=True), "rules": {"momentum": "keep"}})
ADAM = Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "adam", "lr": 0.1, "betas": [0.95, 0.999]}})
BARE = {
    "constant": lambda o: LambdaLR(o, lambda t: 1.0),
    "cosine": lambda o: CosineAnnealingLR(o, 10),
    "one cycle": lambda o: OneCycleLR(o, 1.0, total_steps=10),
    "plateau": torch_schedulers.ReduceLROnPlateau,
    "chained": lambda o: ChainedScheduler([StepLR(o, 1), ExponentialLR(o, 0.9)]),
    "sequential": lambda o: SequentialLR(o, [StepLR(o, 1), ExponentialLR(o, 0.9)], [3]),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
    "wrapped, not given": lambda o: SampleScheduler(StepLR(o, 1), batch_size=8),
}


@pytest.mark.parametrize("name", [name for name in BARE if name != "plateau"])
def test_rescale_beside_a_scheduler_that_it_was_not_given_is_refused(name):
    optimizer = sgd()
    BARE[name](optimizer)
    before = options(optimizer)
    with pytest.raises(InputError, match="'initial_lr'"):
        rescale(to=32, optimizer=optimizer, recipe=RECIPE)
    assert options(optimizer) == before
    assert not rescale(to=8, optimizer=optimizer, recipe=RECIPE).moved


def test_a_plateau_multiplies_what_rescale_wrote():
    optimizer = sgd()
    scheduler = BARE["plateau"](optimizer, patience=0, factor=0.5)
    rescale(to=32, optimizer=optimizer, recipe=KEPT)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 / 4)


def test_rescale_moves_the_rate_of_a_schedule_for_good():
    optimizer = sgd()
    scheduler = SampleScheduler(CosineAnnealingLR(optimizer, STEPS), batch_size=8)
    rescale(to=32, optimizer=optimizer, recipe=KEPT, scheduler=scheduler)
    rates = [0.1 * (1 + math.cos(math.pi * t / STEPS)) / 2 for t in range(STEPS)]
    for step in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(4 * sum(rates[4 * step : 4 * step + 4]) / 4)
        optimizer.step()
        scheduler.step()


def test_rescale_takes_a_cycled_beta_along_and_refuses_what_would_be_undone():
    optimizer = Adam([weight()], lr=0.1, betas=(0.95, 0.999))
    scheduler = SampleScheduler(OneCycleLR(optimizer, 1.0, total_steps=STEPS), batch_size=8)
    optimizer.step()
    scheduler.step(samples=8)
    rescale(to=16, optimizer=optimizer, recipe=ADAM, scheduler=scheduler)
    rows = reference_adam()
    mean_beta = (rows[1] + rows[2]) / 2
    assert optimizer.param_groups[0]["betas"] == pytest.approx((mean_beta**2, 0.999**2))
    moved = sgd()
    cycle = SampleScheduler(OneCycleLR(moved, 1.0, total_steps=STEPS), batch_size=8)
    moved.step()
    cycle.step(samples=8)
    before = options(moved)
    with pytest.raises(InputError, match="moves momentum"):
        rescale(to=32, optimizer=moved, recipe=RECIPE, scheduler=cycle)
    assert options(moved) == before
    rescale(to=32, optimizer=moved, recipe=KEPT, scheduler=cycle)
    assert moved.param_groups[0]["lr"] > before[0]["lr"]


def reference_adam():
    optimizer = Adam([weight()], lr=0.1, betas=(0.95, 0.999))
    scheduler, rows = OneCycleLR(optimizer, 1.0, total_steps=STEPS), []
    for _ in range(5):
        rows.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    return rows


def test_a_scheduler_of_another_reference_or_optimizer_is_refused():
    optimizer = sgd()
    with pytest.raises(InputError, match="reference batch is 4"):
        rescale(to=32, optimizer=optimizer, recipe=KEPT, scheduler=SampleScheduler(StepLR(optimizer, 1), batch_size=4))
    with pytest.raises(InputError, match="another SGD"):
        rescale(to=32, optimizer=sgd(), recipe=KEPT, scheduler=SampleScheduler(StepLR(optimizer, 1), batch_size=8))


def recipe_of(name, **more):
    return Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": name, "lr": 0.1, **more}})


class Mine(AdamW):
    pass


class Decoupled(SGD):
    pass


FITS = {
    "sgd": (lambda p: SGD(p, lr=0.1), recipe_of("sgd")),
    "adam": (lambda p: Adam(p, lr=0.1), recipe_of("adam")),
    "adamw": (lambda p: AdamW(p, lr=0.1, weight_decay=0.1), recipe_of("adamw", weight_decay=0.1)),
    "a user's adamw": (lambda p: Mine(p, lr=0.1), recipe_of("adamw", weight_decay=0.01)),
    "adam with decoupled decay": (
        lambda p: Adam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        recipe_of("adamw", weight_decay=0.1),
    ),
    "adam without decay": (lambda p: Adam(p, lr=0.1), recipe_of("adamw")),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), recipe_of("rmsprop")),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=0.1), recipe_of("adam")),
    "radam": (lambda p: torch.optim.RAdam(p, lr=0.1), recipe_of("adam")),
    "nadam by its own name": (
        lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        recipe_of("nadamw", weight_decay=0.1),
    ),
    "radam with decoupled decay": (
        lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        recipe_of("adamw", weight_decay=0.1),
    ),
    "adam with L2, said": (
        lambda p: Adam(p, lr=0.1, weight_decay=0.1),
        recipe_of("adamw", weight_decay=0.1, decay="coupled"),
    ),
    "a user's sgd with decoupled decay": (
        lambda p: Decoupled(p, lr=0.1, weight_decay=0.1),
        recipe_of("sgd", weight_decay=0.1, decay="decoupled"),
    ),
    "invariant": (lambda p: InvariantAdamW(p, lr=0.1, reference_batch=8), recipe_of("invariant-adamw")),
}
UNFIT = {
    "sgd under adamw": (FITS["sgd"][0], recipe_of("adamw")),
    "adamw under sgd": (FITS["adamw"][0], recipe_of("sgd")),
    "adam with L2 under adamw": (lambda p: Adam(p, lr=0.1, weight_decay=0.1), recipe_of("adamw", weight_decay=0.1)),
    "adamw under adam with L2": (FITS["adamw"][0], recipe_of("adam", weight_decay=0.1)),
    "decay that the recipe has not": (FITS["adamw"][0], recipe_of("adam")),
    "rmsprop under adam": (FITS["rmsprop"][0], recipe_of("adam")),
    "adam under rmsprop": (FITS["adam"][0], recipe_of("rmsprop")),
    "invariant under adamw": (FITS["invariant"][0], recipe_of("adamw")),
    "adamw under invariant": (FITS["adamw"][0], recipe_of("invariant-adamw")),
    "nadam under sgd": (FITS["nadam"][0], recipe_of("sgd")),
    "adam with decoupled decay under adam": (FITS["adam with decoupled decay"][0], recipe_of("adam", weight_decay=0.1)),
    "radam with L2 under adamw": (
        lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
        recipe_of("adamw", weight_decay=0.1),
    ),
    "nadam under lion": (FITS["nadam"][0], recipe_of("lion")),
    "radam under lion": (FITS["radam"][0], recipe_of("lion")),
    "nadam under lamb": (FITS["nadam"][0], recipe_of("lamb")),
    "adamw under adamp": (FITS["adamw"][0], recipe_of("adamp")),
    "a user's adamw under lion": (FITS["a user's adamw"][0], recipe_of("lion")),
    "sgd under muon": (FITS["sgd"][0], recipe_of("muon")),
    "muon under sgd": (lambda p: torch.optim.Muon([t.data.reshape(1, -1) for t in p], lr=0.1), recipe_of("sgd")),
    "sgd under lars": (FITS["sgd"][0], recipe_of("lars")),
}


@pytest.mark.parametrize("name", FITS)
def test_the_recipe_of_this_optimizer_rescales_it(name):
    make, recipe = FITS[name]
    assert rescale(to=16, optimizer=make([weight()]), recipe=recipe).moved


@pytest.mark.parametrize("name", UNFIT)
def test_the_recipe_of_another_optimizer_is_refused(name):
    make, recipe = UNFIT[name]
    optimizer = make([weight()])
    before = options(optimizer)
    with pytest.raises(InputError, match="whose rules differ"):
        rescale(to=16, optimizer=optimizer, recipe=recipe)
    assert options(optimizer) == before


@pytest.mark.parametrize("wrapper", [Passing, Forwarding, Sharing])
@pytest.mark.parametrize("name", ["sgd under adamw", "adam with L2 under adamw", "nadam under lion"])
def test_the_recipe_of_another_optimizer_is_refused_through_wrappers(name, wrapper):
    make, recipe = UNFIT[name]
    with pytest.raises(InputError, match="whose rules differ"):
        rescale(to=16, optimizer=wrapper(wrapper(make([weight()]))), recipe=recipe)


def test_a_failing_rescale_puts_values_back_into_the_same_tensors(monkeypatch):
    optimizer = Adam([weight()], lr=torch.tensor(0.1))
    tensor, scheduler = optimizer.param_groups[0]["lr"], None
    scheduler = SampleScheduler(StepLR(optimizer, 3), batch_size=8)
    monkeypatch.setattr("isobatch.rules.noise_share_after", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rescale(to=32, optimizer=optimizer, recipe=recipe_of("adam"), scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] is tensor
    assert float(tensor) == pytest.approx(0.1)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
