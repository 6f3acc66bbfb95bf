"""The sample clock against the loop written out by hand: averages, noise, schedulers, ranks, skips, states."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from tests.gloo import world
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import isobatch as ib
from isobatch.average import MultiEMA, SwitchEMA
from isobatch.control import BatchSchedule
from isobatch.errors import InputError
from isobatch.train import SampleClock


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def data(rows, seed=0):
    x = torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1)


def loss(model, x, y):
    return (model(x).squeeze(-1) - y).square().mean()


STEPS = [[4, 4, 4], [4, 4, 4], [4, 2], [4, 4, 4], [3, 1, 4], [4, 4, 4], [5, 5, 5], [4, 4], [2, 6], [4, 4, 4]] * 3


def parts(step, sizes):
    x, y = data(sum(sizes), step)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def by_hand(weighted, tokens=False):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    ema, noise = ib.ModelEMA(model, half_life=50), ib.NoiseScale(model, every=1)
    for step, sizes in enumerate(STEPS):
        total = sum(sizes)
        for x, y in parts(step, sizes):
            if weighted:
                with noise.chunk(len(x)):
                    (loss(model, x, y) * len(x) / total).backward()
            else:
                (loss(model, x, y) / len(sizes)).backward()
        noise.update(samples=total)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(samples=total)
    return model, ema, noise


def clocked(weighted, *, block=True):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model, every=1))
    for step, sizes in enumerate(STEPS):
        total = sum(sizes)
        for x, y in parts(step, sizes):
            scaled = loss(model, x, y) * (len(x) / total if weighted else 1 / len(sizes))
            held = clock.micro(len(x), len(x) if weighted else None)
            if block:
                with held:
                    scaled.backward()
            else:
                scaled.backward()
        assert clock.ready() == total
        optimizer.step()
        optimizer.zero_grad()
        clock.applied()
    return model, clock


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_averages_and_noise_are_those_of_the_loop_by_hand(weighted, block):
    model, ema, noise = by_hand(weighted)
    same, clock = clocked(weighted, block=block)
    assert clock.seen == clock.drawn == ema.seen == noise.seen == clock.noise.seen == sum(map(sum, STEPS))
    assert (clock.steps, clock.skips) == (len(STEPS), 0)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, tensor in ema.average().items():
        assert torch.equal(tensor, clock.average.average()[name])
    assert noise.estimate().to_json() == clock.noise.estimate().to_json()


def test_weights_are_what_the_noise_scale_counts_and_rows_what_the_average_counts():
    model = net()
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model, every=1))
    for x, y, tokens in zip(*[t.split(4) for t in data(8)], (30, [1, 2, 3, 4]), strict=True):
        with clock.micro(len(x), tokens):
            loss(model, x, y).backward()
    assert clock.ready() == 8
    clock.applied()
    assert (clock.noise.seen, clock.average.seen, clock.seen) == (40, 8, 8)


def test_a_clock_of_tokens_counts_weights():
    model = net()
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), unit="tokens")
    clock.micro(4, 37)
    assert clock.ready() == 37
    clock.applied()
    assert (clock.seen, clock.average.seen) == (37, 37)
    clock.micro(4)
    with pytest.raises(InputError, match="weight=tokens"):
        clock.ready()


def test_a_skipped_step_moves_drawn_alone():
    model = net()
    before = copy.deepcopy(model.state_dict())
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model, every=1))
    with clock.micro(4):
        loss(model, *data(4)).backward()
    clock.skipped()
    with clock.micro(4):
        (loss(model, *data(4)) * float("inf")).backward()
    clock.ready()
    clock.skipped()
    assert (clock.seen, clock.drawn, clock.steps, clock.skips) == (0, 8, 0, 2)
    assert clock.average.seen == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in clock.average.average().items())
    assert clock.noise.estimate().measurements == 0


def test_a_step_of_masked_tokens_alone_moves_nothing_but_the_count_of_steps():
    model = net()
    clock = SampleClock(average=ib.ModelEMA(model, half_life=9), noise=ib.NoiseScale(model, every=1), unit="tokens")
    with clock.micro(4, 0):
        (loss(model, *data(4)) * 0).backward()
    assert clock.ready() == 0
    clock.applied()
    assert (clock.seen, clock.average.seen, clock.noise.seen, clock.steps) == (0, 0, 0, 1)


def scheduler_of(model):
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    lambdas = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return optimizer, ib.SampleScheduler(lambdas, batch_size=8)


@pytest.mark.parametrize("trainer_steps", [False, True])
def test_a_scheduler_gets_the_samples_that_each_step_really_has(trainer_steps):
    optimizer, scheduler = scheduler_of(net())
    clock = SampleClock(scheduler=scheduler, steps_scheduler=not trainer_steps)
    known, rates = scheduler_of(net()), []
    for size in (8, 8, 4, 16, 8):
        clock.micro(size)
        clock.ready()
        known[1].samples = size
        known[1].write()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        assert rates[-1] == known[0].param_groups[0]["lr"]
        optimizer.step()
        known[0].step()
        known[1].step(samples=size)
        if trainer_steps:
            scheduler.step()
        clock.applied()
    assert scheduler.seen == clock.seen == 44
    assert rates[:2] == [1.0, 0.5]


def chain(optimizer):
    parts = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4) for _ in range(2)]
    return torch.optim.lr_scheduler.ChainedScheduler(parts)


def sequence(optimizer):
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 3))  # lr 0 at first
    rest = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, rest], [3])


@pytest.mark.parametrize("sizes", [[8] * 8, [8, 12, 16, 28], [4] * 16, [64]], ids=str)
def test_several_schedulers_on_one_clock_are_what_each_would_be_alone(sizes):
    """One an optimizer, the settings of every step and of a resume in the middle of a change of the batch."""

    def made():
        optimizers = [torch.optim.SGD(net(seed).parameters(), 0.5) for seed in range(3)]
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizers[2], 1.0, total_steps=12)
        inner = [sequence(optimizers[0]), chain(optimizers[1]), cycle]
        return optimizers, [ib.SampleScheduler(one, batch_size=8) for one in inner]

    optimizers, schedulers = made()
    clock = SampleClock(scheduler=schedulers)
    alone, known = made()
    for number, size in enumerate(sizes):
        if number == len(sizes) // 2:
            state = json.loads(json.dumps(clock.state_dict()))
            optimizers, schedulers = made()
            clock = SampleClock(scheduler=schedulers)
            clock.load_state_dict(state)
        clock.micro(size)
        clock.ready()
        for one, scheduler in zip(alone, known, strict=True):
            scheduler.samples = size
            scheduler.write()
            one.step()
            one_of = [(mine["lr"], mine.get("momentum")) for mine in one.param_groups]
            assert one_of == [(g["lr"], g.get("momentum")) for g in optimizers[alone.index(one)].param_groups]
            scheduler.step(samples=size)
        for optimizer in optimizers:
            optimizer.step()
        clock.applied()
    assert [scheduler.seen for scheduler in clock.schedulers] == [sum(sizes)] * 3
    assert clock.scheduler is schedulers[0]


def test_a_state_of_one_scheduler_still_loads():
    state = SampleClock(scheduler=scheduler_of(net())[1]).state_dict()
    (state["scheduler"],) = state.pop("schedulers")
    SampleClock(scheduler=scheduler_of(net())[1]).load_state_dict(state)
    with pytest.raises(InputError, match="schedulers: 1 in the state, 0 here"):
        SampleClock().load_state_dict(state)


TWICE = {  # who else moves a member of the clock in the same step, and what is said
    "attach of the average": (lambda o, e, s: e.attach(o, 8), "ModelEMA was updated since ready"),
    "update by hand": (
        lambda o, e, s: o.register_step_post_hook(lambda *_: e.update(samples=8)),
        "ModelEMA was updated",
    ),
    "attach of the scheduler": (lambda o, e, s: s.attach(o, 8), "steps_scheduler=False"),
    "step by hand": (lambda o, e, s: o.register_step_post_hook(lambda *_: s.step()), "steps_scheduler=False"),
}


@pytest.mark.parametrize("name", TWICE)
def test_what_the_loop_moves_itself_is_not_moved_twice(name):
    other, said = TWICE[name]
    model = net()
    optimizer, scheduler = scheduler_of(model)
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), scheduler=scheduler)

    def step():
        clock.micro(8)
        clock.ready()
        optimizer.step()
        clock.applied()

    step()
    scheduler.step()  # out of habit, after a step of the optimizer that the clock has counted: counts nothing
    assert scheduler.seen == clock.seen == 8
    other(optimizer, clock.average, scheduler)
    with pytest.raises(InputError, match=said):
        step()


def test_the_next_batch_follows_the_schedule():
    clock = SampleClock(batches=BatchSchedule(((0, 8), (16, 32))))
    batches = []
    for _ in range(4):
        batches.append(clock.next_batch)
        clock.micro(clock.next_batch)
        clock.ready()
        clock.applied()
    assert batches == [8, 8, 32, 32]
    assert SampleClock().next_batch is None


def test_states_go_on_bit_for_bit():
    def run(stop, state=None, weights=None):
        model = net()
        optimizer, scheduler = scheduler_of(model)
        clock = SampleClock(
            average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model, every=2), scheduler=scheduler
        )
        if state is not None:
            model.load_state_dict(weights)
            clock.load_state_dict(state)
        for step in range(clock.steps, stop):
            for x, y in parts(step, STEPS[step]):
                with clock.micro(len(x)):
                    (loss(model, x, y) * 1e-2 / len(STEPS[step])).backward()
            clock.ready()
            optimizer.step()
            optimizer.zero_grad()
            clock.applied()
        return model, clock

    whole = run(20)[1]
    model, half = run(9)
    tree, tensors = ib.checkpoint.tree.split(half.state_dict())
    state = ib.checkpoint.tree.join(json.loads(json.dumps(tree)), copy.deepcopy(tensors))
    again = run(20, state, model.state_dict())[1]
    assert again.seen == whole.seen
    assert again.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert again.noise.estimate().to_json() == whole.noise.estimate().to_json()
    for name, tensor in whole.average.average().items():
        assert torch.equal(tensor, again.average.average()[name])


def test_several_optimizers_share_the_sums_and_have_a_noise_scale_each():
    one, two = net(0), net(1)
    noises = [ib.NoiseScale(one, every=1), ib.NoiseScale(two, every=1)]
    clock = SampleClock(noise=noises)
    for step in range(3):
        clock.micro(4)
        for number, model in enumerate((one, two)):
            loss(model, *data(4, step)).backward()
            assert clock.ready(noise=number) == 4
            model.zero_grad()
        clock.applied()
    assert [noise.seen for noise in noises] == [12, 12]


def test_what_is_discarded_was_never_counted():
    model = net()
    clock = SampleClock(noise=ib.NoiseScale(model, every=1))
    with clock.micro(100, 100):
        loss(model, *data(4)).backward()
    assert clock.pending
    clock.discard()
    assert not clock.pending
    model.zero_grad()
    with clock.micro(4, 4):
        loss(model, *data(4)).backward()
    assert clock.ready() == 4


def test_two_ranks_count_what_one_counts(tmp_path):
    _, ema, noise = by_hand(True)

    def action(rank):
        mine = DistributedDataParallel(net())
        optimizer = torch.optim.SGD(mine.parameters(), 0.01)
        clock = SampleClock(average=ib.ModelEMA(mine, half_life=50), noise=ib.NoiseScale(mine, every=1))
        for step, sizes in enumerate(STEPS):
            x, y = data(sum(sizes), step)
            cut = sum(sizes) // 3
            x, y = (x[:cut], y[:cut]) if rank == 0 else (x[cut:], y[cut:])
            with clock.micro(len(x), len(x)):
                (loss(mine, x, y) * len(x) * 2 / sum(sizes)).backward()
            assert clock.ready() == sum(sizes)
            optimizer.step()
            optimizer.zero_grad()
            clock.applied()
        torch.save(
            {**clock.average.average(), "seen": torch.tensor([clock.seen, clock.noise.seen])}, tmp_path / str(rank)
        )

    world(2, tmp_path, action)
    for rank in range(2):
        found = torch.load(tmp_path / str(rank), weights_only=True)
        assert found.pop("seen").tolist() == [ema.seen, noise.seen]
        for name, tensor in ema.average().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_refusals():
    clock = SampleClock()
    for call in (clock.ready, clock.applied, clock.skipped):
        with pytest.raises(InputError):
            call()
    clock.micro(4, 4)
    with pytest.raises(InputError, match="give it for all, or none"):
        clock.micro(4)
    clock.ready()
    with pytest.raises(InputError, match="applied\\(\\) or skipped\\(\\)"):
        clock.micro(4)
    with pytest.raises(InputError, match='unit=\'rows\' must be "samples" or "tokens"'):
        SampleClock(unit="rows")
    for rows, weight in itertools.product((-1, float("nan")), (1, -1)):
        with pytest.raises(InputError):
            SampleClock().micro(rows, weight)
    with pytest.raises(InputError, match="state"):
        clock.load_state_dict({"clock": {}})
    state = SampleClock(unit="tokens").state_dict()
    with pytest.raises(InputError, match="tokens"):
        clock.load_state_dict(state)
    with pytest.raises(InputError, match="averages"):
        clock.load_state_dict(SampleClock(average=ib.ModelEMA(net(), half_life=1)).state_dict())


@pytest.mark.parametrize("weight", [None, 5, [2, 1, 1, 1]], ids=["alike", "weighted", "by rows"])
@pytest.mark.parametrize("failed", [0, 1])
def test_a_micro_batch_that_failed_is_not_counted(weight, failed):
    """Such as one that ran out of memory, and is tried again in other parts."""
    model = net()
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model, every=1))

    def passes(break_at=None):
        for number in range(2):
            with clock.micro(4, weight):
                (loss(model, *data(4, number)) / 2).backward()
                if number == break_at:
                    raise MemoryError

    with pytest.raises(MemoryError):
        passes(break_at=failed)
    assert clock.pending is (failed == 1)
    clock.discard()
    with pytest.raises(MemoryError), clock.micro(4, weight):
        raise MemoryError
    model.zero_grad()
    passes()
    assert clock.ready() == 8
    clock.applied()
    assert (clock.seen, clock.average.seen, clock.noise.estimate().measurements) == (8, 8, 1)


def full_clock():
    model = net()
    averages = [ib.ModelEMA(model, half_life=50), MultiEMA(model, half_lives=[8, 80])]
    return SampleClock(average=averages, noise=ib.NoiseScale(model, every=1), scheduler=scheduler_of(model)[1])


DAMAGES = {  # what is wrong with a state, and what is said
    "no unit": (lambda s: s["clock"].pop("unit"), r"lacks \['unit'\]"),
    "no count": (lambda s: s["clock"].pop("drawn"), r"lacks \['drawn'\]"),
    "a word for a count": (lambda s: s["clock"].update(seen="many"), "seen in the state='many' must be a number"),
    "no list": (lambda s: s.update(averages=None), "no state of a SampleClock"),
    "noise in another unit": (lambda s: s["noises"][0]["values"]["settings"].update(unit="rows"), "unit='rows'"),
    "a schedule without rates": (lambda s: s["schedulers"][0].pop("rates"), "no state of a SampleScheduler"),
    "a schedule of another kind": (
        lambda s: s["schedulers"][0].update(scheduler=stepper(True).state_dict()),
        r"another scheduler than LambdaLR: it lacks \['lr_lambdas'\] and holds \['gamma', 'step_size'\]",
    ),
    "samples of a schedule": (lambda s: s["schedulers"][0].update(samples=-8), "samples in the state=-8 must be"),
    "an average of another kind": (lambda s: s["averages"].reverse(), "the state is of a MultiEMA"),
    "the last average": (lambda s: s["averages"][1].pop("values"), "not a state of an average"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_refused_as_a_whole(name):
    damage, said = DAMAGES[name]
    clock, other = full_clock(), full_clock()
    clock.scheduler.optimizer.step()
    for average in clock.averages:
        average.load_state_dict(copy.deepcopy(average.state_dict()))
        with torch.no_grad():
            [tensor.add_(1) for tensor in average.state_dict()["tensors"].values()]
    clock.micro(8)
    clock.ready()
    clock.applied()
    state = copy.deepcopy(clock.state_dict())
    plain, tensors = ib.checkpoint.tree.split(copy.deepcopy(other.state_dict()))
    damage(state)
    with pytest.raises(InputError, match=said):
        other.load_state_dict(state)
    now = ib.checkpoint.tree.split(other.state_dict())
    assert now[0] == plain
    torch.testing.assert_close(now[1], tensors, rtol=0, atol=0)


@pytest.mark.parametrize(
    "weights", [[3, 4], np.array([3, 4]), torch.tensor([3, 4]), torch.tensor([3.0, 4.0])], ids=repr
)
def test_weights_of_rows_may_be_a_tensor(weights):
    clock = SampleClock(unit="tokens")
    clock.micro(2, weights)
    assert clock.ready() == 7


def test_a_state_of_other_members_says_what_to_give():
    model = net()
    full = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model)).state_dict()
    with pytest.raises(InputError, match="noise scales: 1 in the state, 0 here; give noise= as the run"):
        SampleClock(average=ib.ModelEMA(model, half_life=50)).load_state_dict(full)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["copy", "pickle"])
def test_a_clock_and_its_noise_scale_are_not_copied_but_their_states_are(copied):
    model = net()
    clock = SampleClock(average=ib.ModelEMA(model, half_life=50), noise=ib.NoiseScale(model))
    for thing in (clock, clock.noise):
        with pytest.raises(InputError, match=r"cannot be copied; give its state_dict\(\)"):
            copied(thing)
    copied(clock.average)
    copied(clock.state_dict())


def stepper(wrapped=False):
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    return torch.optim.lr_scheduler.StepLR(optimizer, 3) if wrapped else optimizer


def rivals():
    optimizer = stepper()
    made = [torch.optim.lr_scheduler.StepLR(optimizer, steps) for steps in (3, 5)]
    return [ib.SampleScheduler(one, batch_size=8) for one in made]


EMA = ib.ModelEMA(net(), half_life=8)
RECIPE = ib.Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}})
STRANGERS = {  # what a user gives by mistake, each to who takes something else; and the way out
    "average: a model": (lambda: SampleClock(average=net()), "average=Sequential .* isobatch.ModelEMA"),
    "average: torch's": (
        lambda: SampleClock(average=AveragedModel(net())),
        "average=AveragedModel .*ModelEMA",
    ),
    "average: a word": (lambda: SampleClock(average=["ema"]), "average=str"),
    "average: the same twice": (lambda: SampleClock(average=[EMA, EMA]), "average= holds the same ModelEMA twice"),
    "average: one inside the other": (
        lambda: SampleClock(average=[EMA, SwitchEMA(EMA, every=8)]),
        "average= holds the same ModelEMA twice",
    ),
    "noise: the same twice": (
        lambda: SampleClock(noise=[ib.NoiseScale(net())] * 2),
        "noise= holds the same NoiseScale",
    ),
    "noise: a switch": (lambda: SampleClock(noise=True), r"noise=bool .* isobatch.NoiseScale\(model\)"),
    "scheduler: torch's": (
        lambda: SampleClock(scheduler=stepper(True)),
        "scheduler=StepLR .*SampleScheduler",
    ),
    "scheduler: numbers": (
        lambda: SampleClock(scheduler=[1, 2]),
        "scheduler=int .* a list of them, one an optimizer",
    ),
    "scheduler: two of one optimizer": (
        lambda: SampleClock(scheduler=rivals()),
        r"two of 2 schedulers drive the same SGD.*SequentialLR, ChainedScheduler",
    ),
    "batches: a number": (lambda: SampleClock(batches=64), "batches=64 must be a BatchSchedule"),
    "optimizer: a model": (lambda: SampleClock(optimizer=net()), "optimizer=Sequential is no torch.optim.Optimizer"),
    "measure: parameters": (lambda: ib.NoiseScale(net().parameters()), "model=generator must be the torch.nn.Module"),
    "measure: a scheduler": (lambda: ib.NoiseScale(net(), stepper(True)), "optimizer=StepLR is no"),
    "measure: several": (lambda: ib.NoiseScale(net(), [stepper()]), "optimizer=list is no"),
    "measure: another model's": (
        lambda: ib.NoiseScale(net(), stepper()),
        "optimizer=SGD trains 4 tensors, .* none of them is one of the 4 parameters of Sequential; .* or none: geom",
    ),
    "average: attached to another's": (
        lambda: ib.ModelEMA(net(), half_life=8).attach(stepper(), 8),
        "optimizer=SGD trains 4 .* 4 parameters of Sequential; .* call update",
    ),
    "average: watching another's": (lambda: ib.ModelEMA(net(), half_life=8).watch(stepper()), "none of them is one"),
    "measure: no state": (lambda: ib.NoiseScale(net()).load_state_dict({}), "no state of a NoiseScale"),
    "measure: a model's state": (
        lambda: ib.NoiseScale(net()).load_state_dict(net().state_dict()),
        "no state of a Noise",
    ),
    "rescale: a file": (
        lambda: ib.rescale(to=16, optimizer=stepper(), recipe="r.toml"),
        r"Recipe.load\(path\)",
    ),
    "rescale: a model": (lambda: ib.rescale(to=16, optimizer=stepper(), recipe=RECIPE, ema=net()), "ema=Sequential"),
    "rescale: a number": (lambda: ib.rescale(to=16, optimizer=stepper(), recipe=RECIPE, noise=9.0), "noise_share="),
    "rescale: a loader": (
        lambda: ib.rescale(to=16, optimizer=stepper(), recipe=RECIPE, loader=torch.utils.data.DataLoader([1])),
        r"loader=DataLoader has no rescale\(batch_size\); leave it out",
    ),
    "lend: nothing": (
        lambda: ib.ModelEMA(net(), half_life=8).applied(None).__enter__(),
        "model=NoneType must be",
    ),
    "lend: an optimizer": (lambda: ib.ModelEMA(net(), half_life=8).applied(stepper()).__enter__(), "model=SGD must be"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_of_another_kind_is_refused_where_it_is_given(name):
    make, said = STRANGERS[name]
    with pytest.raises(InputError, match=said):
        make()


def test_an_invariant_optimizer_is_told_behind_a_wrapper_too():
    inner = ib.InvariantAdamW(net().parameters(), lr=0.1, reference_batch=8)
    wrapper = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    wrapper.optimizer, wrapper.param_groups, wrapper.state = inner, inner.param_groups, inner.state
    assert SampleClock(optimizer=wrapper).invariant is inner
