"""Power-function averages: the width of the profile at any stride and batch schedule, and post-hoc synthesis."""

import math

import numpy as np
import pytest
import torch
from tests.reference import averages as truth
from torch import nn

from isobatch.average import PowerEMA, Snapshot, exponent, synthesize
from isobatch.average.power import coefficients, overlap
from isobatch.errors import InputError, NonFiniteError

SCHEDULES = {
    "constant": lambda steps: [8] * steps,
    "ramp": lambda steps: [8 + 8 * j // steps for j in range(steps)],
    "random": lambda steps: np.random.default_rng(0).integers(1, 60, steps).tolist(),
    "halved": lambda steps: [64] * (steps // 5) + [8] * (steps - steps // 5),
}


class Moments(nn.Module):
    """Weights (1, t, t**2) of the time t as a share of the run, so the average tells the width of its profile."""

    def __init__(self, end):
        super().__init__()
        self.w, self.end = nn.Parameter(torch.zeros(3, dtype=torch.float64)), end

    def at(self, seen):
        t = seen / self.end
        self.w.data.copy_(torch.tensor([1.0, t, t * t], dtype=torch.float64))

    @staticmethod
    def width(average):
        one, mean, square = average.tolist()
        assert one == pytest.approx(1, abs=1e-12)
        return float(np.sqrt(square - mean**2))


class OneHot(nn.Module):
    """Weights that are the unit vector of the step, so the average is the profile itself."""

    def __init__(self, steps):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(steps, dtype=torch.float64))

    def at(self, j):
        with torch.no_grad():
            self.w.zero_()
            self.w[j] = 1.0


WIDTHS = (0.05, 0.1, 0.25)


# ema-pytorch: the width of 0.05 becomes 0.25 at strides 10 and 100.
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stride", [1, 10, 100])
def test_the_profile_has_the_width_asked_for(schedule, stride):
    steps = 10_000 if stride == 100 else 2_000
    batches = SCHEDULES[schedule](steps)
    module = Moments(sum(batches))
    averages = PowerEMA(module, sigma_rels=WIDTHS, cadence=stride)
    for j, batch in enumerate(batches):
        module.at(averages.seen + batch)
        averages.update(samples=batch)
        if j == steps // 3:
            state = averages.state_dict()
            averages = PowerEMA(module, sigma_rels=WIDTHS, cadence=stride)
            averages.load_state_dict(state)
    for sigma_rel in WIDTHS:
        assert module.width(averages.average(sigma_rel)["w"]) == pytest.approx(sigma_rel, rel=0.03)


def test_auto_keeps_the_width_and_is_cheap():
    module = Moments(32_000)
    averages = PowerEMA(module, sigma_rels=[0.25], cadence="auto")
    for _ in range(4_000):
        module.at(averages.seen + 8)
        averages.update(samples=8)
    assert averages._engine.clock.applied < 4000 / 2
    assert module.width(averages.average()["w"]) == pytest.approx(0.25, rel=0.005)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_exponent_solves_the_width(sigma_rel):
    assert exponent(sigma_rel) == pytest.approx(truth.gamma_of(sigma_rel), rel=1e-9)


def test_the_widest_profile_is_the_uniform_average():
    assert exponent(1 / np.sqrt(12)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [0, -0.1, 0.3, float("nan")])
def test_bad_widths_are_refused(bad):
    with pytest.raises(InputError, match="sigma_rel"):
        exponent(bad)


def test_overlap_is_the_inner_product_of_profiles():
    for T_a, g_a, T_b, g_b in ((10, 3, 10, 3), (5, 1.5, 9, 17), (9, 17, 5, 1.5), (2, 0, 7, 0)):
        found = overlap(*(np.array(x, float) for x in (T_a, g_a, T_b, g_b)))
        assert float(found) == pytest.approx(truth.profile_overlap(T_a, g_a, T_b, g_b), rel=1e-6)


def snapshots(batches, every, cadence=1, dtype=None):
    module, found = OneHot(len(batches)), []
    averages = PowerEMA(module, sigma_rels=[0.05, 0.1], cadence=cadence)
    direct = PowerEMA(module, sigma_rels=[0.03, 0.075, 0.15], cadence=cadence)
    for j, batch in enumerate(batches):
        module.at(j)
        averages.update(samples=batch)
        direct.update(samples=batch)
        if (j + 1) % every == 0:
            found.append(averages.snapshot(dtype))
    return found, direct


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cadence", [1, 10])
def test_synthesis_equals_a_directly_tracked_average(schedule, cadence):
    batches = SCHEDULES[schedule](600)
    found, direct = snapshots(batches, every=30, cadence=cadence)
    for sigma_rel in (0.075, 0.15):
        made = synthesize(found, exponent(sigma_rel), at=found[-1].seen)["w"]
        tracked = direct.average(sigma_rel)["w"]
        assert float(made.sum()) == pytest.approx(1, abs=1e-6)
        assert float((made - tracked).norm() / tracked.norm()) < 0.05
        times = np.cumsum(batches)
        assert truth.width(made.numpy(), times) == pytest.approx(truth.width(tracked.numpy(), times), rel=0.03)


def test_synthesis_at_an_earlier_moment():
    batches = SCHEDULES["constant"](1200)
    found, _ = snapshots(batches, every=50)
    module = OneHot(len(batches))
    early = PowerEMA(module, sigma_rels=[0.08])
    for j, batch in enumerate(batches[:700]):
        module.at(j)
        early.update(samples=batch)
    made = synthesize(found, exponent(0.08), at=5600)["w"]
    tracked = early.average()["w"]
    assert float((made - tracked).norm() / tracked.norm()) < 0.05


def test_the_stated_error_is_the_distance_of_the_profiles():
    weights, error = coefficients([50.0, 100.0, 100.0], [6.9, 16.9, 6.9], 100.0, 10.0)
    t = (np.arange(200_000) + 0.5) / 200_000 * 100

    def p(T, g):
        return np.where(t < T, (g + 1) * (np.minimum(t, T) / T) ** g / T, 0.0)

    mixed = sum(w * p(T, g) for w, T, g in zip(weights, [50, 100, 100], [6.9, 16.9, 6.9], strict=True))
    expected = np.linalg.norm(mixed - p(100, 10.0)) / np.linalg.norm(p(100, 10.0))
    assert error == pytest.approx(expected, rel=1e-3)
    assert weights.sum() == pytest.approx(1)


def test_snapshots_have_the_dtype_asked_for_and_go_through_a_state():
    found, _ = snapshots([8] * 40, every=20, dtype=torch.float16)
    assert found[0].averages[0]["w"].dtype == torch.float16
    again = Snapshot.load(found[0].state_dict())
    assert again.seen == found[0].seen
    assert again.exponents == found[0].exponents
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(again.averages, found[0].averages, strict=True))


def test_a_snapshot_between_applications_has_the_clock_of_the_average():
    module = OneHot(10)
    averages = PowerEMA(module, cadence=4)
    with pytest.raises(InputError, match="no update"):
        averages.snapshot()
    for j in range(6):
        module.at(j)
        averages.update(samples=8)
    assert averages.snapshot().seen == 32


def test_profiles_out_of_reach_and_foreign_snapshots_are_refused():
    found, _ = snapshots([8] * 40, every=20)
    with pytest.raises(InputError, match="tolerance"):
        synthesize(found, exponent(0.001))
    with pytest.raises(InputError, match="no snapshots"):
        synthesize([], 5.0)
    foreign = Snapshot(8, (2.0,), ({"other": torch.zeros(1)},))
    with pytest.raises(InputError, match="different tensors"):
        synthesize([*found, foreign], exponent(0.07))


def snapshot(seen=8, shape=(1,), value=0.0, names=("w",)):
    averages = tuple({name: torch.full(shape, value + k) for name in names} for k in range(2))
    return Snapshot(seen, (2.0, 5.0), averages)


def without(*path):
    state = snapshot().state_dict()
    place = state
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return state


SYNTHESES = {
    "no exponent": lambda: synthesize([snapshot()], -1.0),
    "NaN": lambda: synthesize([snapshot()], math.nan),
    "a word": lambda: synthesize([snapshot()], "5"),
    "no list": lambda: synthesize(snapshot(), 5.0),
    "nothing": lambda: synthesize(iter(()), 5.0),
    "states": lambda: synthesize([snapshot().state_dict()], 5.0),
    "other shapes": lambda: synthesize([snapshot(), snapshot(16, (2,))], 5.0),
    "other names": lambda: synthesize([snapshot(), snapshot(16, names=("v",))], 5.0),
    "before the run": lambda: synthesize([snapshot(0)], 5.0),
    "tolerance": lambda: synthesize([snapshot()], 5.0, tolerance="much"),
    "an empty state": lambda: Snapshot.load({}),
    "no state": lambda: Snapshot.load(None),
    "no exponents": lambda: Snapshot.load(without("values", "exponents")),
    "no clock": lambda: Snapshot.load(without("values", "seen")),
    "a tensor short": lambda: Snapshot.load(without("tensors", "average.1/w")),
}


@pytest.mark.parametrize("name", SYNTHESES)
def test_what_gives_no_synthesis_is_refused_in_words(name):
    with pytest.raises(InputError):
        SYNTHESES[name]()


def test_a_snapshot_that_is_not_finite_is_refused_by_name():
    with pytest.raises(NonFiniteError, match=r"'w' is not finite in a snapshot"):
        synthesize([snapshot(), snapshot(16, value=math.inf)], 5.0)
    assert synthesize(iter([snapshot(), snapshot(16)]), 5.0, at=16)["w"].item() == pytest.approx(1.0)


def test_a_width_not_tracked_is_refused():
    averages = PowerEMA(OneHot(3), sigma_rels=[0.05, 0.1])
    for which in (None, 0.07):
        with pytest.raises(InputError, match="one of"):
            averages.average(which)
    for bad in ([], [0.1, 0.1]):
        with pytest.raises(InputError, match="different"):
            PowerEMA(OneHot(3), sigma_rels=bad)
