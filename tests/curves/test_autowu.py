"""AutoWU: growth, tests, vote, patience, turn and decay by the sheet; the process against scikit-learn; the mends."""

import json
import math

import numpy as np
import pytest
from tests.recipes import recipe
from tests.reference import autowu as slow

from isobatch.curves import AutoWU, Growth, Look, interval_for
from isobatch.errors import InputError
from isobatch.train.regression import LossEvidence, LossRegression, chance, features

YES, NO = Look((0.99,) * 5, (0.5,) * 5), Look((0.99, 0.99, 0.9, 0.9, 0.95), (0.5,) * 5)


def losses(count, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = np.arange(count) / count
    return x, 2 * np.exp(-4 * x) + 3 * (x - 0.6).clip(min=0) ** 2 + noise * rng.normal(size=count)


def drive(rate, steps, look, size=1.0):
    """Feed steps of falling loss; return where it turned."""
    for step in range(steps):
        rate.observe(1.0 / (step + 1), step * size, (step + 1) * size)
        if rate.due:
            rate.decide(look)
        if not rate.searching:
            return (step + 1) * size
    return None


@pytest.mark.parametrize("decay", ["cosine", "hold"])
def test_growth_turn_and_decay_are_the_sheets(decay):
    rate = AutoWU(Growth(length=200, stair=1, low=1e-5, every=10, decay=decay))
    for t in range(30):
        wanted = slow.schedule(t, T=200, W=100, lr_min=1e-5, lr_max=1)
        assert rate.mean(t, t + 1) == pytest.approx(wanted, rel=1e-12)
        rate.observe(1.0, t, t + 1)
        if rate.due:
            assert (t + 1) % 10 == 0
            assert rate.decide(YES) == (t == 29)
    now = slow.schedule(29, T=200, W=100, lr_min=1e-5, lr_max=1)
    assert rate.peak == pytest.approx(1e-5 * (now / 1e-5) ** 0.5)
    assert (rate.turned, rate.place) == (30, 15)
    hold = 0.2 if decay == "hold" else None
    for t in range(30, 200):
        wanted = slow.schedule(t, T=200, W=100, lr_min=1e-5, lr_max=1, switch=30, lr_peak=rate.peak, hold=hold)
        assert rate.mean(t, t + 1) == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_without_a_turn_the_decay_starts_from_the_rate_reached():
    rate = AutoWU(Growth(length=200, stair=1, every=10))
    assert drive(rate, 200, NO) == 100
    assert rate.peak == pytest.approx(slow.schedule(99, T=200, W=100, lr_min=1e-5, lr_max=1))


def test_a_majority_and_the_last_patience_looks_are_needed():
    rate = AutoWU(Growth(length=2000, stair=1, every=10))
    looks = [YES, YES, NO, YES, YES, NO, YES, YES, YES]
    found = []
    for step in range(90):
        rate.observe(1.0, step, step + 1)
        if rate.due:
            found.append(rate.decide(looks[len(found)]))
    assert found == [False] * 8 + [True]


def test_losses_that_are_not_finite_are_left_out_and_keep_their_place():
    rate = AutoWU(Growth(length=100, stair=1))
    for step, loss in enumerate([3.0, math.nan, 2.0, math.inf]):
        rate.observe(loss, step, step + 1)
    assert rate.points() == ([0.0, 0.5], [3.0, 2.0])


def test_the_sum_of_the_factor_over_samples_does_not_depend_on_the_batches():
    rate = AutoWU(Growth(length=400, stair=4))
    parts = sum((b - a) * rate.mean(a, b) for a, b in ((0, 4), (4, 17), (17, 18), (18, 80)))
    assert parts == pytest.approx(80 * rate.mean(0, 80), rel=1e-12)


def test_state_goes_on_bit_for_bit():
    growth = Growth(length=2000, stair=1, every=10)
    one = AutoWU(growth)
    drive(one, 27, YES)
    other = AutoWU(growth)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for rate in (one, other):
        for step in range(27, 40):
            rate.observe(1.0, step, step + 1)
            if rate.due:
                rate.decide(YES)
    assert one.turned == other.turned == 30
    assert one.state_dict() == other.state_dict()


def test_a_finer_grid_bounds_the_overshoot_in_a_short_run():
    """30/E decades when tests come once an epoch, a quarter of one on the grid, however few epochs there are."""
    for epochs in (20, 120):
        end = epochs * 100 / 2
        published = Growth(length=epochs * 100, stair=1, every=100)
        assert published.overshoot == pytest.approx(30 / epochs)
        every = interval_for(0.25, 1e-5, 3, end)
        assert every == pytest.approx(end / 60)
        assert Growth(length=epochs * 100, stair=1, every=every).overshoot == pytest.approx(0.25)


@pytest.mark.parametrize("count", [3, 40, 300])
def test_the_process_is_the_exact_one(count):
    x, y = losses(count)
    c, s, noise = 0.2, 0.7, 0.013
    evidence = LossEvidence(x, y)
    constant = count / 2 * math.log(2 * math.pi)
    assert -count * evidence.negative(c, s, noise) - constant == pytest.approx(slow.log_evidence(x, y, c, s, noise))
    h = 1e-6
    for i, slope in enumerate(evidence.slope(c, s, noise)):
        up, down = ([v + sign * h * (k == i) for k, v in enumerate((c, s, noise))] for sign in (1, -1))
        assert slope == pytest.approx((evidence.negative(*up) - evidence.negative(*down)) / (2 * h), rel=1e-5, abs=1e-7)
    weights, covariance = evidence.posterior(c, s, noise)
    phi = features(np.linspace(0, 1, 500))
    expected = phi @ weights
    p, place = slow.chance_and_place(x, y, c, s, noise)
    assert chance(expected, phi, covariance) == pytest.approx(p, abs=1e-8)
    assert np.linspace(0, 1, 500)[expected.argmin()] == pytest.approx(place)


@pytest.mark.parametrize(("count", "noise"), [(30, 0.0), (60, 0.3), (100, 2.0)])
def test_a_look_fits_as_adam_does_on_the_dense_evidence(count, noise):
    x, y = losses(count, noise=noise)
    regression = LossRegression()
    wanted = slow.fit(x, y, regression.raw)
    regression.look(x, y)
    assert [regression.mean, *regression.raw] == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def test_looks_see_a_turn_and_no_turn_and_are_the_same_after_a_resume():
    x, y = losses(700)
    regression = LossRegression()
    for cut in (150, 250):
        look = regression.look(x[:cut] * 700 / cut, y[:cut])
        assert max(look.chances) < 0.9
    again = LossRegression()
    again.load_state_dict(json.loads(json.dumps(regression.state_dict())))
    look = regression.look(x, y)
    assert again.look(x, y) == look
    assert min(look.chances) > 0.95
    assert len(set(look.places)) > 1
    assert all(0.5 < place < 0.75 for place in look.places)
    assert LossRegression().look([0.0], [1.0]).chances == (0.0,) * 5


@pytest.mark.parametrize(("published", "wrong"), [(True, True), (False, False)])
def test_scattered_losses_that_fall_are_not_taken_for_a_turn(published, wrong):
    """The published process is sure of turns that are none; the mended one is not."""
    turned = 0
    for seed in range(4):
        x = np.arange(400) / 400
        y = 4 * np.exp(-1.5 * x) + 2 * np.random.default_rng(seed).normal(size=400)
        regression, row = LossRegression(published=published), 0
        for cut in range(10, 401, 30):
            look = regression.look(np.arange(cut) / cut, y[:cut])
            row = row + 1 if sum(found > 0.95 for found in look.chances) > 2 else 0
            turned += row == 3
    assert (turned > 0) == wrong


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e-3, 1e-2, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_losses_are_counted_in_decides_nothing(unit, sign):
    """Squared errors of 0.001 and sums of hundreds turn where cross-entropies do, and not where they only fall."""
    x = np.arange(400) / 400
    noise = 0.05 * np.random.default_rng(1).normal(size=400)
    turning, falling = sign * 1.5 + 6 * (x - 0.6) ** 2 + noise, sign * 4 + 2 * np.exp(-2 * x) + noise
    turned, fell = LossRegression(), LossRegression()
    for cut in range(150, 401, 50):
        up, down = (one.look(np.arange(cut) / cut, unit * y[:cut]) for one, y in ((turned, turning), (fell, falling)))
        assert max(down.chances) < 0.95
    assert min(up.chances) > 0.95
    assert all(abs(place - 0.6) < 0.05 for place in up.places)
    assert LossRegression().look(x, 0 * x).chances == LossRegression().look(x, 0 * x + unit).chances


def searched(search=None, **parts):
    schedule = {"length": "300 epochs", "warmup": None, "shape": "autowu", "search": search}
    return recipe(optimizer={"name": "adamp", "lr": 1.0}, schedule=schedule, ema=None, **parts)


def test_a_plan_keeps_the_range_and_leaves_the_peak_to_the_search():
    base = searched()
    plan = base.at(64)
    assert plan.recipe.optimizer.lr == 1.0
    assert "search finds the peak" in plan.row("optimizer.lr").because
    rate = plan.recipe.search()
    assert rate is not None
    assert rate.growth.stair == 8
    assert recipe().search() is None


@pytest.mark.parametrize(("search", "message"), [
    ({"lr_min": 1.0}, r"schedule\.search\.lr_min=1 must be below optimizer\.lr=1"),
    ({"lr_min": 2.0}, r"lr_min=2 must be below optimizer\.lr=1"),
    ({"patience": 200, "tests": "1 epoch"}, r"patience=200 tests.*outlast the warm-up of 150000"),
    ({"patience": 0}, "patience=0"),
    ({"confidence": 0.4}, "confidence=0.4"),
    ({"overshoot": 1e-4}, r"overshoot=0\.0001 decades cannot be kept.*allow it or raise lr_min"),
    ({"lr_mim": 0.1}, "unknown key schedule.search.lr_mim; did you mean 'lr_min'"),
])  # fmt: skip
def test_a_search_that_cannot_work_is_refused(search, message):
    with pytest.raises(InputError, match=message):
        searched(search)


def test_settings_that_contradict_the_search_are_refused():
    with pytest.raises(InputError, match="autowu has a warm-up and a decay of its own"):
        recipe(schedule={"length": "10 epochs", "warmup": "1 epoch", "shape": "autowu"})
    with pytest.raises(InputError, match=r'needs schedule\.shape = "autowu"'):
        recipe(schedule={"length": "10 epochs", "shape": "cosine", "search": {}})
    for bad, message in (
        ({"low": 1.5}, "must be in"),
        ({"decay": "linear"}, "decay='linear'"),
        ({"low": 0.0}, "lr_min"),
    ):
        with pytest.raises(InputError, match=message):
            Growth(**{"length": 100, "stair": 1, **bad})
