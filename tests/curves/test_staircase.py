"""Schedules: the reference's own steps at its batch, the same sum over any samples at every other."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shape_rows import SHAPE_ROWS

from isobatch import rules, units
from isobatch.curves import SHAPES, DecaySchedule, Staircase
from isobatch.errors import InputError

shapes = st.sampled_from(list(SHAPE_ROWS))


@st.composite
def staircases(draw):
    stair, steps = draw(st.integers(1, 64)), draw(st.integers(2, 60))
    ragged = draw(st.integers(0, stair - 1))
    length = stair * steps - ragged
    warmup = draw(st.floats(0, length))
    return Staircase(length, warmup, draw(shapes), draw(st.floats(0, 1)), stair)


def reference(length, warmup, shape, final, stair, step):
    """The reference run's factor at its own step, in steps: linear warm-up by step + 1, then the shape by step."""
    done = step * stair
    if done < warmup:
        return min(1.0, (step + 1) * stair / warmup)
    share = min(1.0, (done - warmup) / (length - warmup)) if length > warmup else 1.0
    return final + (1 - final) * SHAPE_ROWS[shape](share)


def test_every_shape_has_a_row():
    assert SHAPE_ROWS.keys() == SHAPES.keys()


@settings(max_examples=60)
@given(staircases())
def test_mean_at_the_reference_batch_is_the_reference_exactly(stairs):
    for step in range(math.ceil(stairs.length / stairs.stair)):
        seen = step * stairs.stair
        wanted = reference(stairs.length, stairs.warmup, stairs.shape, stairs.final, stairs.stair, step)
        assert stairs.mean(seen, seen + stairs.stair) == stairs.at(seen) == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=60)
@given(data=st.data())
def test_the_sum_over_samples_does_not_depend_on_the_batches(data):
    stairs = data.draw(staircases())
    end = data.draw(st.integers(1, int(stairs.length) + 1))

    def total(cuts):
        points = sorted({0, end, *cuts})
        return sum(stairs.mean(a, b) * (b - a) for a, b in pairwise(points))

    one, other = (data.draw(st.lists(st.integers(1, end), max_size=12)) for _ in range(2))
    brute = sum(stairs.at(sample) for sample in range(end))
    assert total(one) == pytest.approx(total(other), rel=1e-9, abs=1e-9)
    assert total(one) == pytest.approx(brute, rel=1e-9, abs=1e-9)


def test_sum_of_lr_under_the_rule_is_the_same_at_any_batch():
    stairs = Staircase(length=1000, warmup=96, shape="cosine", stair=8)
    sums = {}
    for batch in (8, 24, 128, 1000):
        points = [*range(0, 1000, batch), 1000]
        steps = pairwise(points)
        sums[batch] = sum(rules.linear(0.1, (b - a) / 8) * stairs.mean(a, b) for a, b in steps)
    assert list(sums.values()) == pytest.approx([sums[8]] * 4, rel=1e-12)


def test_a_step_inside_a_stair_takes_its_value():
    stairs = Staircase(length=100, warmup=50, stair=10)
    assert stairs.mean(12, 15) == stairs.at(12) == pytest.approx(0.4)
    assert stairs.mean(15, 25) == pytest.approx((0.4 + 0.6) / 2)


def test_the_last_value_holds_beyond_the_run():
    stairs = Staircase(length=100, shape="linear", final=0.5, stair=10)
    assert stairs.mean(100, 200) == stairs.at(99) == stairs.at(1e9)


def test_the_first_large_step_does_not_lose_the_warm_up():
    stairs = Staircase(length=4000, warmup=720, shape="constant", stair=8)
    steps = [stairs.mean(a, a + 128) for a in range(0, 768, 128)]
    assert steps[0] == pytest.approx(sum(range(1, 17)) / 16 / 90)
    assert sum(steps) * 16 == pytest.approx(sum(min(1, (k + 1) / 90) for k in range(96)))


@pytest.mark.parametrize(("values", "message"), [
    ({"length": 100, "warmup": 101}, r"schedule.warmup=101 samples must be in \[0, 100\].*shorten the warm-up"),
    ({"length": 100, "warmup": -1}, r"schedule.warmup=-1 samples must be in \[0, 100\]"),
    ({"length": 100, "warmup": math.nan}, r"schedule.warmup=nan"),
    ({"length": 0}, r"schedule length=0 must be in \(0, inf\]"),
    ({"length": math.nan}, "schedule length=nan must be finite"),
    ({"length": 100, "final": 1.5}, r"schedule.final=1\.5 must be in \[0, 1\]"),
    ({"length": 100, "stair": 0}, r"stair=0 must be in \(0, inf\]"),
    ({"length": 100, "shape": "step"},
     "schedule.shape='step' must be one of 'constant', 'linear', 'minus-sqrt' or 'cosine'"),
])  # fmt: skip
def test_bad_schedules_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Staircase(**values)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (6, 5), (-1, 5), (math.nan, 5)])
def test_a_step_must_hold_samples(start, stop):
    with pytest.raises(InputError, match="must hold samples"):
        Staircase(length=100).mean(start, stop)


@settings(max_examples=60)
@given(
    start=st.floats(0.5, 0.9999), rise=st.floats(0, 1), step=st.integers(0, 60), kappa=st.integers(1, 16),
    stair=st.integers(1, 32),
)  # fmt: skip
def test_decay_schedule_is_rho_to_the_kappa_pointwise(start, rise, step, kappa, stair):
    length = 64 * stair
    schedule = DecaySchedule(start, start + rise * (1 - start), length, stair)

    def rho(k):
        done = min(1.0, k * stair / length)
        return schedule.final - (schedule.final - start) * (1 + math.cos(math.pi * done)) / 2

    span = schedule.half_life(step * stair, (step + kappa) * stair)
    product = math.prod(rho(min(k, 63)) for k in range(step, step + kappa))
    assert units.decay_at(span, kappa * stair) == pytest.approx(product, rel=1e-9)
    inside = schedule.half_life(step * stair, (step + 1) * stair)
    assert units.decay_at(inside, stair) == pytest.approx(rho(step), rel=1e-12)


def test_decay_schedule_at_its_edges():
    frozen = DecaySchedule(1.0, 1.0, length=100, stair=10)
    copy = DecaySchedule(0.0, 0.5, length=100, stair=10)
    assert frozen.half_life(0, 40) == math.inf
    assert copy.half_life(0, 10) == 0
    assert 0 < copy.half_life(10, 20) < 10
    with pytest.raises(InputError, match=r"ema final decay=0\.8 must be in \[0\.9, 1\]"):
        DecaySchedule(0.9, 0.8, length=100)
