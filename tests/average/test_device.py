"""An average away from its weights: copied over before each update, and back where it is lent.

Without a second device the copies are forced on the first one, so that all but the transfer itself is what it is there.
"""

import pytest
import torch
from tests.average.kinds import ALL, BATCHES, model, step
from torch import nn

from isobatch.average import ModelEMA, Storage
from isobatch.errors import InputError, NonFiniteError
from isobatch.modules import DeviceCopies, devices

CUDA = torch.cuda.is_available()
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]


@pytest.fixture
def away(monkeypatch):
    """Every average that names a device lies away from its weights."""
    monkeypatch.setattr(devices, "apart", lambda tensor, device: device is not None)


def trained(kind, device=None, at="cpu"):
    net, path = model().to(at), model()
    average = kind.make(net, storage=Storage(device=device))
    for seed, samples in enumerate(BATCHES):
        step(path, seed)
        with torch.no_grad():
            for p, moved in zip(net.parameters(), path.parameters(), strict=True):
                p.copy_(moved)
        average.update(samples=samples)
    return net, average


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_kind_is_away_bit_for_bit_what_it_is_beside(away, kind):
    (net, far), (own, near) = trained(kind, "cpu"), trained(kind)
    same(dict(net.named_parameters()), dict(own.named_parameters()))  # SwitchEMA writes them
    raw = {name: p.detach().clone() for name, p in net.named_parameters()}
    x = torch.ones(2, 3, dtype=torch.float64)
    for teacher in (far.teacher(which=kind.which), far.average_model(kind.which)):
        assert torch.equal(teacher(x), near.teacher(which=kind.which)(x))
    with far.applied(net, kind.which), near.applied(own, kind.which):
        same(dict(net.named_parameters()), dict(own.named_parameters()))
    same(dict(net.named_parameters()), raw)
    assert far.report(kind.which) == near.report(kind.which)
    _, fresh = trained(kind)
    fresh.load_state_dict(far.state_dict())
    same(fresh.average(kind.which), near.average(kind.which))
    far.load_state_dict(near.state_dict())
    for average, weights in ((far, net), (near, own)):
        step(weights, 5)
        average.update(samples=8)
        average.copy_to(weights, kind.which)
    same(dict(net.named_parameters()), dict(own.named_parameters()))


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"buffers": "average"}, {"dtype": torch.float16}])
def test_narrow_averages_and_buffers_too(away, options):
    found = []
    for device in ("cpu", None):
        net = model(torch.float32)
        ema = ModelEMA(net, half_life=50, device=device, **options)
        for seed in range(4):
            step(net, seed)
            ema.update(samples=8)
        found.append(ema.average())
    same(*found)


def test_the_copies_are_made_once_and_follow_a_model_that_is_cast(away):
    net = model(torch.float32)
    ema = ModelEMA(net, half_life=50, device="cpu")
    copies = [copy.data_ptr() for _, copy in ema._engine.buffers.intake.copies[0]._pairs]
    for seed in range(3):
        step(net, seed)
        ema.update(samples=8)
    assert [copy.data_ptr() for _, copy in ema._engine.buffers.intake.copies[0]._pairs] == copies
    net.double()
    step(net, 4)
    ema.update(samples=8)
    assert all(tensor.isfinite().all() and tensor.dtype == torch.float64 for tensor in ema.average().values())


def test_what_is_not_finite_is_named_and_mended_from_the_present_weights(away):
    net = model(torch.float32)
    ema = ModelEMA(net, half_life=50, device="cpu")
    before = {name: tensor.clone() for name, tensor in ema.average().items()}
    kept = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        ema.update(samples=8)
    same(ema.average(), before)
    with torch.no_grad():
        net[0].weight.copy_(kept)
    ema.update(samples=8)
    ema.average()["0.weight"][0, 0] = torch.nan
    ema._engine.buffers.check._stale = 1
    with torch.no_grad():
        net[0].weight[0, 0] = 7  # newer than the copy
    with pytest.warns(UserWarning, match="start again at the present weights"):
        assert ema.average()["0.weight"][0, 0] == 7


def test_beside_its_weights_nothing_is_copied():
    net = nn.Linear(3, 2)
    ema = ModelEMA(net, half_life=50, device="cpu")
    assert not ema._engine.buffers.intake.copies[0]._pairs
    assert ema.teacher().weight.data_ptr() == ema.average()["weight"].data_ptr()


@pytest.mark.parametrize("device", ["meta", "nowhere", 3.5, [], *([] if CUDA else ["cuda", 0])])
def test_a_device_that_is_not_there_is_refused_with_the_way_out(device):
    for make in (lambda: ModelEMA(nn.Linear(1, 1), half_life=8, device=device), lambda: Storage(device=device)):
        with pytest.raises(InputError, match=r"device=.*leave it out"):
            make()


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_kind_takes_the_device_itself_and_two_are_refused(kind, monkeypatch):
    assert kind.make(model(), device="cpu")._engine.buffers.storage.place() == torch.device("cpu")
    monkeypatch.setattr(Storage, "place", lambda self: self.device)
    with pytest.raises(InputError, match="give one of them"):
        kind.make(model(), device="cuda", storage=Storage(device="cpu"))


def test_a_sharded_model_is_refused_elsewhere(away):
    copies = DeviceCopies(torch.device("cpu"))
    with pytest.raises(InputError, match="sharded 'w'; leave device out"):
        copies.bind({"w": torch.zeros(2)}, spread=True)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=on_gpu, id=kind.name) for kind in ALL])
def test_on_the_cpu_beside_a_model_on_a_gpu(kind):
    net, far = trained(kind, "cpu", "cuda")
    own, near = trained(kind, None, "cuda")
    x = torch.ones(2, 3, dtype=torch.float64, device="cuda")
    close = {"rtol": 1e-12, "atol": 1e-12}
    for name, tensor in far.average(kind.which).items():
        assert tensor.device.type == "cpu"
        torch.testing.assert_close(tensor, near.average(kind.which)[name].cpu(), **close)
    torch.testing.assert_close(far.teacher(which=kind.which)(x), near.teacher(which=kind.which)(x), **close)
    with far.applied(net, kind.which), near.applied(own, kind.which):
        for mine, theirs in zip(net.parameters(), own.parameters(), strict=True):
            assert mine.is_cuda
            torch.testing.assert_close(mine, theirs, **close)
    near.load_state_dict(far.state_dict())
    assert near.report(kind.which).distance == pytest.approx(far.report(kind.which).distance)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_it_takes_no_memory_beside_the_model():
    net = nn.Linear(2048, 2048, device="cuda")
    before = torch.cuda.memory_allocated()
    ema = ModelEMA(net, half_life=50, device="cpu")
    ema.update(samples=8)
    assert torch.cuda.memory_allocated() - before < 1 << 16
