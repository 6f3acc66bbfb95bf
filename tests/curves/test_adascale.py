"""AdaScale: the reference at its own batch, linear where noise is all, longer where it is not; its clock is kept."""

import math

import pytest

from isobatch.control import AdaScale
from isobatch.curves import Staircase
from isobatch.errors import InputError

STAIRS = Staircase(length=800, warmup=80, shape="cosine", stair=8)


def run(noise_scale, batch):
    schedule, rates = AdaScale(0.1, STAIRS, batch_size=8), []
    while not schedule.finished:
        rates.append(schedule.step(batch=batch, noise_scale=noise_scale))
    return rates


def test_at_the_base_batch_it_is_the_reference_whatever_the_noise():
    for noise in (0.0, 30.0, math.inf):
        assert run(noise, 8) == pytest.approx([0.1 * STAIRS.at(8 * step) for step in range(100)])


@pytest.mark.parametrize(("noise", "gain"), [(math.inf, 4.0), (24.0, (1 + 3) / (1 + 24 / 32)), (0.0, 1.0)])
def test_a_step_counts_for_its_gain(noise, gain):
    rates = run(noise, 32)
    assert len(rates) == math.ceil(100 / gain)
    # the sum of rates is the reference's own sum, up to the last step that reaches beyond the end
    assert sum(rates) == pytest.approx(sum(run(noise, 8)), rel=0.01)
    sigma2, mu2, s = noise / 8, 1.0, 4.0
    if math.isfinite(noise):
        assert gain == pytest.approx((sigma2 + mu2) / (sigma2 / s + mu2))


def test_the_clock_goes_on_and_refuses_what_it_cannot_use():
    one = AdaScale(0.1, STAIRS, batch_size=8)
    for batch in (8, 32, 16):
        one.step(batch=batch, noise_scale=20.0)
    other = AdaScale(0.1, STAIRS, batch_size=8)
    other.load_state_dict(one.state_dict())
    assert other.step(batch=64, noise_scale=20.0) == one.step(batch=64, noise_scale=20.0)
    with pytest.raises(InputError, match="base batch is 8, this one's 16"):
        AdaScale(0.1, STAIRS, batch_size=16).load_state_dict(one.state_dict())
    for bad in (-1.0, math.nan):
        with pytest.raises(InputError, match="noise scale"):
            one.step(batch=8, noise_scale=bad)
    with pytest.raises(InputError, match="batch"):
        one.step(batch=0, noise_scale=1.0)
    one.tau = 100.0
    with pytest.raises(InputError, match="the reference's run is over"):
        one.step(batch=8, noise_scale=1.0)


@pytest.mark.parametrize("state", [{}, {"tau": 3.0}, {"tau": "late", "batch_size": 8}, {"tau": -1, "batch_size": 8}])
def test_a_damaged_state_is_refused(state):
    one = AdaScale(0.1, STAIRS, batch_size=8)
    with pytest.raises(InputError, match=r"not tau and batch_size|tau in the state"):
        one.load_state_dict(state)
    assert one.tau == 0
