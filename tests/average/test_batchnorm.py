"""Batch-norm recalibration: pooled moments, ragged batches, and a model left as it was."""

import numpy as np
import pytest
import torch
from tests.average.kinds import model
from tests.reference import averages as truth
from torch import nn

from isobatch.average import ModelEMA, recalibrate
from isobatch.average.statistics import Moments
from isobatch.errors import InputError


def data(count=103):
    generator = torch.Generator().manual_seed(0)
    return 1000 + 3 * torch.randn(count, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[103], [50, 50, 3], [2, 99, 2], [25, 26, 26, 26]])
def test_statistics_are_pooled_over_all_samples(sizes):
    layer = nn.BatchNorm1d(5).double()
    batches = list(data().split(sizes))
    assert recalibrate(layer, batches) == len(sizes)
    mean, variance = truth.pooled_moments([b.numpy() for b in batches])
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-9)
    assert layer.num_batches_tracked == len(sizes)


def test_pictures_are_pooled_over_space():
    layer = nn.BatchNorm2d(2).double()
    pictures = torch.randn(7, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    recalibrate(layer, [(pictures[:4], "label"), [pictures[4:]]])
    flat = pictures.transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean, flat.mean(1))
    torch.testing.assert_close(layer.running_var, flat.var(1))


def test_only_batch_norm_runs_in_training_mode_and_all_modes_come_back():
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(5), nn.Linear(5, 5)).double()
    module[2].eval()
    module[1].momentum = 0.3
    seen = []
    module[2].register_forward_hook(lambda m, args, out: seen.append((module[0].training, m.training)))
    recalibrate(module, [data()])
    assert seen == [(False, False)]
    assert [m.training for m in module] == [True, True, False]
    assert module[1].momentum == 0.3
    np.testing.assert_allclose(module[1].running_mean.numpy(), data().numpy().mean(0))


def test_an_exception_leaves_the_statistics_as_they_were():
    module = nn.Sequential(nn.BatchNorm1d(5)).double()
    kept = {n: t.clone() for n, t in module.state_dict().items()}

    def batches():
        yield data()
        raise KeyError("disk")

    with pytest.raises(KeyError, match="disk"):
        recalibrate(module, batches())
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in kept.items())
    assert module[0].training


def test_no_batches_are_refused_and_no_layers_are_nothing():
    with pytest.raises(InputError, match="no batches"):
        recalibrate(nn.BatchNorm1d(5), [])
    assert recalibrate(nn.Linear(1, 1), []) == 0


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.BatchNorm2d(5)], ids=["rows", "pictures"])
def test_a_batch_of_no_rows_counts_for_nothing(layer, place):
    more = (5, 3, 3) if isinstance(layer, nn.BatchNorm2d) else (5,)
    generator = torch.Generator().manual_seed(place)
    batches = [torch.randn(n, *more, generator=generator, dtype=torch.float64) for n in (4, 7)]
    wide = layer.double()
    recalibrate(wide, [*batches[:place], torch.zeros(0, *more, dtype=torch.float64), *batches[place:]])
    pooled = [b.transpose(0, 1).flatten(1).T.numpy() for b in batches]
    mean, variance = truth.pooled_moments(pooled)
    torch.testing.assert_close(wide.running_mean, torch.from_numpy(mean))
    torch.testing.assert_close(wide.running_var, torch.from_numpy(variance))


def test_one_value_gives_no_variance():
    moments = Moments()
    moments.add(torch.ones(1, 2))
    with pytest.raises(InputError, match="variance"):
        moments.variance()


def test_the_averaged_model_is_recalibrated_and_the_raw_one_is_not():
    module = model()
    ema = ModelEMA(module, half_life=10)
    with torch.no_grad():
        module[0].bias.add_(100.0)
    ema.update(samples=5)
    raw = {n: t.clone() for n, t in module.state_dict().items()}
    averaged = ema.average_model()
    inputs = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    recalibrate(averaged, inputs.split(20), forward=lambda m, batch: m(batch))
    torch.testing.assert_close(averaged[1].running_mean, averaged[0](inputs).mean(0))
    assert not averaged.training
    assert all(torch.equal(t, raw[n]) for n, t in module.state_dict().items())
