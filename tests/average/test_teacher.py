"""The average as a module of its own, and the running mean of what a loss observes."""

import pytest
import torch
from tests.average.kinds import KINDS
from torch import nn

from isobatch import ModelEMA
from isobatch.average import ObservedMean
from isobatch.errors import InputError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def moved(model, ema, samples=10):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ema.update(samples=samples)


def test_it_follows_the_average_without_a_copy_and_costs_no_gradient():
    model = net()
    ema = ModelEMA(model, half_life=20)
    teacher = ema.teacher()
    moved(model, ema)
    assert ema.teacher() is teacher
    x = torch.randn(5, 1, 4, 4)
    model.eval()
    with ema.applied(model):
        wanted = model(x)
    assert torch.equal(teacher(x), wanted)
    assert not any(p.requires_grad for p in teacher.parameters())
    held = {p.data_ptr() for p in teacher.parameters()}
    assert held == {value.data_ptr() for value in ema.average().values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_copied_at_each_asking(dtype):
    model = net()
    ema = ModelEMA(model, half_life=20, dtype=dtype)
    ema.teacher()
    moved(model, ema)
    for p, value in zip(ema.teacher().parameters(), ema.average().values(), strict=True):
        assert p.dtype == torch.float32
        assert torch.equal(p, value.float())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_can_teach(kind):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = kind.make(model)
    average.teacher(which=kind.which)
    for _ in range(5):
        moved(model, average)
    for p, value in zip(
        average.teacher(which=kind.which).parameters(), average.average(kind.which).values(), strict=True
    ):
        assert torch.equal(p, value.to(p.dtype))


def test_a_model_that_was_cast_gets_another_teacher():
    model = net()
    ema = ModelEMA(model, half_life=20)
    first = ema.teacher()
    model.double()
    assert ema.teacher() is not first
    assert ema.teacher()(torch.randn(5, 1, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_in_training_mode_batch_norm_takes_its_own_batch_and_keeps_nothing():
    model = net()
    ema = ModelEMA(model, half_life=20)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.randn(5, 1, 4, 4)
    out = ema.teacher("train")(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(out, model.train()(x))
    assert not torch.equal(ema.teacher("eval")(x), out)


def test_bad_words_are_refused():
    with pytest.raises(InputError, match=r'mode=.*must be "eval" or "train"'):
        ModelEMA(net(), half_life=20).teacher("learn")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"half_life=-1 must be in"):
        ObservedMean(torch.zeros(2), -1)
    with pytest.raises(InputError, match=r"observed \[3, 4\]; the mean takes \[n, \*\[2\]\]"):
        ObservedMean(torch.zeros(2), 1).add(torch.zeros(3, 4))


@pytest.mark.parametrize("sizes", [[8] * 6, [48], [8, 16, 24], [3, 45]])
def test_a_running_mean_keeps_its_half_life_at_any_batch(sizes):
    """Of a constant stream it depends on the samples alone: c = (1 - 2**(-n/H)) x."""
    mean = ObservedMean(torch.zeros(2, dtype=torch.float64), 24)
    for size in sizes:
        mean.add(torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(size, 2))
        mean.commit(samples=size)
    torch.testing.assert_close(mean.value, torch.tensor([0.75, 1.5], dtype=torch.float64))


def test_nothing_observed_and_discarded_move_nothing_and_half_life_zero_copies():
    mean = ObservedMean(torch.zeros(1), 0)
    mean.commit(samples=3)
    mean.add(torch.ones(2, 1))
    mean.discard()
    mean.commit(samples=3)
    assert mean.value.item() == 0
    mean.add(torch.ones(2, 1))
    mean.commit(samples=2)
    assert mean.value.item() == 1
