"""Weights whose copies are under way: same order, same numbers, and nobody reads a copy before it is there.

Without a second device the copies are forced on the first one, and a stand-in for the transfer plays a slow device: it
holds what was in the tensors when the copy was ordered, as a stream does, and writes it only when somebody waits; until
then the host memory is not a number, so whoever reads it early, or orders a copy over what is still needed, spoils the
average.
"""

import pytest
import torch
from tests.average.kinds import ALL, BATCHES, model, step
from torch import nn

from isobatch.average import ModelEMA, Storage, SwitchEMA
from isobatch.errors import InputError, NonFiniteError
from isobatch.modules import devices

OVERLAP = Storage(device="cpu", overlap=True)
AT_ONCE = Storage(device="cpu")


class Slow:
    """A transfer that arrives when it is waited for."""

    ordered = 0

    def __init__(self, pairs):
        Slow.ordered += 1
        self._late = [(copy, tensor.detach().clone()) for tensor, copy in pairs]
        for copy, _ in self._late:
            copy.fill_(torch.nan)

    def wait(self):
        for copy, values in self._late:
            copy.copy_(values)
        self._late = []


@pytest.fixture(autouse=True, params=["plain copies", "a slow device"])
def away(monkeypatch, request):
    monkeypatch.setattr(devices, "apart", lambda tensor, device: device is not None)
    if request.param == "a slow device":
        monkeypatch.setattr(devices, "Transfer", Slow)


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def pair(make, dtype=torch.float64):
    nets = model(dtype), model(dtype)
    return nets, tuple(make(net, storage=storage) for net, storage in zip(nets, (OVERLAP, AT_ONCE), strict=True))


def both(nets, averages, seed, samples):
    for net, average in zip(nets, averages, strict=True):
        step(net, seed)
        average.update(samples=samples)


def spoil(net):
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(torch.nan)  # a write right after update() must not reach what it took


def under_way(average):
    return average._engine.buffers.intake._under_way is not None


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_kind_is_bit_for_bit_what_it_is_at_once_update_after_update(kind):
    nets, (late, now) = pair(kind.make)
    overlapped = 0
    for seed, samples in enumerate(BATCHES):
        both(nets, (late, now), seed, samples)
        overlapped += under_way(late)
        same(dict(nets[0].named_parameters()), dict(nets[1].named_parameters()))  # SwitchEMA writes them
        assert late.seen == now.seen
        assert late.n_averaged == now.n_averaged
    assert overlapped >= 2
    same(late.average(kind.which), now.average(kind.which))
    assert not under_way(late)
    assert late._engine.clock == now._engine.clock
    assert late.report(kind.which) == now.report(kind.which)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.reference], ids=lambda kind: kind.name)
def test_the_samples_of_a_step_stay_with_its_weights_by_the_reference(kind):
    net = model()
    average = kind.make(net, storage=OVERLAP)
    path = [net[0].weight.detach().numpy().copy()]
    for seed, samples in enumerate(BATCHES):
        step(net, seed)
        path.append(net[0].weight.detach().numpy().copy())
        average.update(samples=samples)
    found = average.average(kind.which)["0.weight"].numpy()
    near = 2e-9 if kind.name == "ramp" else 1e-12  # the ramp's reference is a Riemann sum
    assert abs(found - kind.reference(path, BATCHES)).max() < near


def test_weights_that_change_right_after_the_update_do_not_reach_the_average():
    nets, (late, now) = pair(lambda net, **options: ModelEMA(net, half_life=50, **options))
    for seed, samples in enumerate(BATCHES):
        both(nets, (late, now), seed, samples)
        kept = [p.detach().clone() for p in nets[0].parameters()]
        spoil(nets[0])
        if seed % 3 == 0:
            same(late.average(), now.average())
        with torch.no_grad():
            for p, value in zip(nets[0].parameters(), kept, strict=True):
                p.copy_(value)
    same(late.average(), now.average())


USES = {
    "average": lambda average, net: average.average(),
    "report": lambda average, net: average.report(),
    "applied": lambda average, net: average.applied(net).__enter__() or dict(net.named_parameters()),
    "average_model": lambda average, net: dict(average.average_model().named_parameters()),
    "teacher": lambda average, net: dict(average.teacher().named_parameters()),
    "copy_to": lambda average, net: average.copy_to(net) or dict(net.named_parameters()),
    "state_dict": lambda average, net: average.state_dict()["tensors"],
    "state_dict, values": lambda average, net: average.state_dict()["values"],
}


@pytest.mark.parametrize("use", USES)
def test_whoever_uses_it_waits_for_what_is_under_way(use):
    nets, (late, now) = pair(lambda net, **options: ModelEMA(net, half_life=50, **options))
    for seed in range(3):
        both(nets, (late, now), seed, 8)
    assert under_way(late)
    mine, theirs = USES[use](late, nets[0]), USES[use](now, nets[1])
    assert not under_way(late)
    assert mine == theirs if use in ("report", "state_dict, values") else same(mine, theirs) is None


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"buffers": "average"}, {"kind": "hold"}])
def test_a_resumed_run_goes_on_alike_also_with_roundings_drawn_at_random(options):
    make = lambda net, **more: ModelEMA(net, decay=0.9, batch_size=8, **options, **more)  # noqa: E731
    nets, averages = pair(make, torch.float32)
    for seed in range(5):
        both(nets, averages, seed, 8)
    states = [average.state_dict() for average in averages]
    fresh = tuple(make(net, storage=storage) for net, storage in zip(nets, (OVERLAP, AT_ONCE), strict=True))
    for seed in range(20, 22):
        both(nets, fresh, seed, 8)  # something is under way where the state comes in
    for average, state in zip(fresh, states, strict=True):
        average.load_state_dict(state)
    for seed in range(5, 9):
        both(nets, fresh, seed, 8)
    same(fresh[0].state_dict()["tensors"], fresh[1].state_dict()["tensors"])
    assert fresh[0].state_dict()["values"] == fresh[1].state_dict()["values"]


@pytest.mark.parametrize("cadence", [1, 2])
def test_what_is_not_finite_is_named_with_its_own_step_and_both_steps_are_left_out(cadence):
    net = model()
    ema = ModelEMA(net, half_life=50, cadence=cadence, storage=OVERLAP)
    for seed in range(2 * cadence):
        step(net, seed)
        ema.update(samples=8)
    before = {name: tensor.clone() for name, tensor in ema.average().items()}
    clock = ema._engine.clock
    for _ in range(cadence - 1):
        ema.update(samples=8)
        clock = ema._engine.clock
    kept = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    ema.update(samples=8)
    at = ema.seen
    with torch.no_grad():
        net[0].weight.copy_(kept)  # finite again: what is under way is not
    with pytest.raises(NonFiniteError, match=rf"'0\.weight' is not finite after {at} samples") as caught:
        ema.update(samples=8)
    assert caught.value.seen == at
    assert caught.value.parameter == "0.weight"
    assert ema._engine.clock == clock
    assert not under_way(ema)
    same(ema.average(), before)
    other = model()
    other.load_state_dict(net.state_dict())
    fresh = ModelEMA(other, half_life=50, cadence=cadence, storage=AT_ONCE)
    fresh.load_state_dict(ema.state_dict())
    for seed in range(10, 14):
        both((net, other), (ema, fresh), seed, 8)
    same(ema.average(), fresh.average())


@pytest.mark.parametrize(
    "use", [lambda a, net: a.average(), lambda a, net: a.state_dict(), lambda a, net: a.applied(net).__enter__()]
)
def test_what_is_not_finite_is_named_before_it_is_used(use):
    net = model()
    ema = ModelEMA(net, half_life=50, storage=OVERLAP)
    ema.update(samples=8)
    spoil(net)
    ema.update(samples=8)
    assert ema.seen == 16
    with pytest.raises(NonFiniteError, match="not finite after 16 samples"):
        use(ema, net)
    assert ema.seen == 8
    assert all(tensor.isfinite().all() for tensor in ema.average().values())


def test_a_state_or_a_reset_replaces_what_is_under_way_even_where_it_is_not_finite():
    net = model()
    ema = ModelEMA(net, half_life=50, storage=OVERLAP)
    good = {n: p.detach().clone() for n, p in net.state_dict().items()}
    step(net, 1)
    ema.update(samples=8)
    found = ema.state_dict()
    state = {**found, "tensors": {n: t.clone() for n, t in found["tensors"].items()}}
    for replace in (lambda: ema.load_state_dict(state), ema.reset, lambda: ema.load_average(good)):
        step(net, 1)
        ema.update(samples=8)
        spoil(net)
        ema.update(samples=8)
        net.load_state_dict(good)
        replace()
        assert all(tensor.isfinite().all() for tensor in ema.average().values())


def test_a_model_that_is_cast_or_grows_while_copies_are_under_way():
    nets, averages = pair(lambda net, **options: ModelEMA(net, half_life=50, **options), torch.float32)
    for seed in range(2):
        both(nets, averages, seed, 8)
    for net in nets:
        net.double()
    for seed in range(2, 5):
        both(nets, averages, seed, 8)
    for net in nets:
        torch.manual_seed(0)
        net.append(nn.Linear(2, 2).double())
    with pytest.warns(UserWarning, match="3.weight"):
        both(nets, averages, 5, 8)
    both(nets, averages, 6, 8)
    same(*(average.average() for average in averages))


def test_tensors_that_hold_infinities_by_design_are_those_of_their_own_step():
    nets = [nn.BatchNorm1d(2).double() for _ in range(2)]
    for net in nets:
        net.register_buffer("mask", torch.tensor([0.0, -torch.inf], dtype=torch.float64))
    late, now = (
        ModelEMA(net, half_life=50, buffers="average", storage=storage)
        for net, storage in zip(nets, (OVERLAP, AT_ONCE), strict=True)
    )
    for n in range(3):
        for net, average in zip(nets, (late, now), strict=True):
            net.mask[0] = n
            average.update(samples=8)
            net.mask[0] = 100 + n
        same(late.average(), now.average())


def test_one_transfer_an_update_and_two_memories_in_turn(monkeypatch):
    monkeypatch.setattr(devices, "Transfer", Slow)
    net = model()
    ema = ModelEMA(net, half_life=50, storage=OVERLAP)
    begun, sides = Slow.ordered, []
    for seed in range(4):
        step(net, seed)
        ema.update(samples=8)
        sides.append(ema._engine.buffers.intake._under_way[0])
    assert sides == [0, 1, 0, 1]
    assert Slow.ordered == begun + 4


def test_what_is_read_in_place_is_taken_in_at_once(monkeypatch):
    monkeypatch.setattr(devices, "apart", lambda tensor, device: tensor.dim() > 1)  # a model on two devices
    net = model()
    switch = SwitchEMA(ModelEMA(net, half_life=50, storage=OVERLAP), every=64)
    switch.update(samples=8)
    assert not under_way(switch)


@pytest.mark.parametrize("options", [{"overlap": True}, {"overlap": "yes", "device": "cpu"}, {"overlap": 2}])
def test_overlap_needs_a_device_and_is_a_yes_or_no(options):
    with pytest.raises(InputError, match=r'overlap=.*device="cpu"'):
        Storage(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_weights_that_change_at_once_do_not_reach_the_average(monkeypatch):
    monkeypatch.undo()
    nets = [nn.Linear(2048, 2048, device="cuda", dtype=torch.float64) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    late, now = (
        ModelEMA(net, half_life=50, storage=storage) for net, storage in zip(nets, (OVERLAP, AT_ONCE), strict=True)
    )
    for n in range(6):
        for net, average in zip(nets, (late, now), strict=True):
            with torch.no_grad():
                net.weight.fill_(n)
            average.update(samples=8)
            with torch.no_grad():
                net.weight.fill_(-1)
    assert under_way(late)
    same(late.average(), now.average())
