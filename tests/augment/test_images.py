"""Augmentation by place: the same view in any batch, the slow twin image by image, and known answers."""

import math

import numpy as np
import pytest
import torch
from tests.reference import image_views as slow

from isobatch.augment import Draws, Views, augment
from isobatch.errors import InputError

OFF = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0, "flip": 0.0, "crop": (1.0, 1.0), "ratio": 1.0}


def images(n=12, side=9, channels=3):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_that_of_the_slow_twin(channels):
    x, views = images(channels=channels), Views(size=7)
    places, copies = torch.arange(100, 112), torch.full((12,), 3)
    got, numbers = augment(x, places, 4, views, 3), Draws(4, places, copies).uniform(14)
    for index in range(12):
        wanted = slow.view(x[index].double().numpy(), numbers[index].tolist(), vars(views))
        assert np.abs(got[index].numpy() - wanted).max() < 2e-5, index


def test_micro_batches_and_order_do_not_change_a_view():
    x, places = images(), torch.arange(50, 62)
    whole = augment(x, places, 0, Views(size=9))
    shuffled = torch.tensor([7, 2, 11, 0])
    torch.testing.assert_close(augment(x[shuffled], places[shuffled], 0, Views(size=9)), whole[shuffled])
    assert not torch.allclose(augment(x, places, 1, Views(size=9)), whole)
    assert not torch.allclose(augment(x, places + 12, 0, Views(size=9)), whole)
    assert not torch.allclose(augment(x, places, 0, Views(size=9), 1), whole)


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
