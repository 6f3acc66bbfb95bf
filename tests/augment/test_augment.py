"""Augmentation by place: the same view in any batch, the slow twin image by image, and known answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.reference import augment as slow

from isobatch.augment import Views, augment, uniform
from isobatch.errors import InputError

OFF = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0, "flip": 0.0, "crop": (1.0, 1.0), "ratio": 1.0}


def images(n=12, side=9, channels=3):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 5))
def test_draws_are_those_of_splitmix_in_python_integers(seed, place, count):
    got = uniform(seed, torch.tensor([place]), count)[0]
    assert got.tolist() == slow.uniform(seed, place, count)


def test_draws_are_uniform_and_independent():
    u = uniform(5, torch.arange(40_000), 6).double().numpy()
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in u.T)
    mixed = np.column_stack([u[:-1], u[1:], uniform(6, torch.arange(39_999), 2).numpy()])
    assert np.abs(np.corrcoef(mixed.T) - np.eye(14)).max() < 0.025


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_that_of_the_slow_twin(channels):
    x, views = images(channels=channels), Views(size=7)
    got = augment(x, torch.arange(100, 112), 4, views)
    for index in range(12):
        wanted = slow.view(x[index].double().numpy(), slow.uniform(4, 100 + index, 14), vars(views))
        assert np.abs(got[index].numpy() - wanted).max() < 2e-5, index


def test_micro_batches_and_order_do_not_change_a_view():
    x, places = images(), torch.arange(50, 62)
    whole = augment(x, places, 0, Views(size=9))
    shuffled = torch.tensor([7, 2, 11, 0])
    torch.testing.assert_close(augment(x[shuffled], places[shuffled], 0, Views(size=9)), whole[shuffled])
    assert not torch.allclose(augment(x, places, 1, Views(size=9)), whole)
    assert not torch.allclose(augment(x, places + 12, 0, Views(size=9)), whole)


def test_nothing_switched_on_changes_nothing_and_each_part_does_what_it_says():
    x = images()
    same = augment(x, torch.arange(12), 0, Views(size=9, **OFF))
    torch.testing.assert_close(same, x)
    mirrored = augment(x, torch.arange(12), 0, Views(size=9, **{**OFF, "flip": 1.0}))
    torch.testing.assert_close(mirrored, x.flip(3))
    grey = augment(x, torch.arange(12), 0, Views(size=9, **{**OFF, "grey": 1.0}))
    assert float((grey[:, 0] - grey[:, 2]).abs().max()) < 1e-6
    inverted = augment(x, torch.arange(12), 0, Views(size=9, **{**OFF, "solarize": 1.0}))
    assert float(inverted.max()) <= 0.5
    flat = torch.full((3, 3, 9, 9), 0.25)
    blurred = augment(flat, torch.arange(3), 0, Views(size=9, **{**OFF, "blur": 1.0}))
    torch.testing.assert_close(blurred, flat)


def test_whole_numbers_are_read_as_shares_of_255():
    pixels = (images() * 255).to(torch.uint8)
    got = augment(pixels, torch.arange(12), 0, Views(size=9))
    torch.testing.assert_close(got, augment(pixels / 255, torch.arange(12), 0, Views(size=9)))
    assert got.dtype == torch.float32
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


@pytest.mark.parametrize(("given", "message"), [
    ({"size": 0}, "size=0 must be at least 1"),
    ({"crop": (0.0, 1.0)}, r"crop=0 must be in \(0, 1\]"),
    ({"crop": (0.9, 0.3)}, r"crop=\(0\.9, 0\.3\) must rise"),
    ({"grey": 1.5}, r"grey=1\.5 must be in \[0, 1\]"),
    ({"hue": math.nan}, r"hue=nan"),
])  # fmt: skip
def test_bad_settings_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Views(**given)
