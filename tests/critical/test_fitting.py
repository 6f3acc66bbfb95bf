"""A table's fit: the slow reference, planted truths, outliers of every kind, rare evaluations, and coverage."""

import math

import numpy as np
import pytest
from benchmarks.fit_coverage import coverage
from tests.reference import critical as slow

from isobatch.critical import Table, TablePoint, bend, fit_table
from isobatch.critical.hyperbola import critical_batches, fit
from isobatch.errors import InputError

BATCHES = (16, 64, 256, 1024, 4096, 16384)


def table(rows, unit="samples", size=None):
    return Table("runs", unit, tuple(TablePoint(float(b), tuple(map(float, v))) for b, v in rows.items()), size)


def planted(critical=500.0, least=1e6, seeds=3, spread=0.05, seed=0, batches=BATCHES):
    rng = np.random.default_rng(seed)
    return {b: least * (1 + b / critical) * np.exp(spread * rng.standard_normal(seeds)) for b in batches}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.01, 0.2])
def test_the_fit_is_the_slow_one(seed, spread):
    rows = planted(seed=seed, spread=spread)
    found = fit_table(table(rows), outliers=False, draws=100).hyperbola
    least, critical, low, high = slow.hyperbola(list(rows), [np.exp(np.log(v).mean()) for v in rows.values()])
    assert found.samples.value == pytest.approx(least, rel=1e-4)
    assert found.critical.value == pytest.approx(critical, rel=1e-4)
    assert found.critical.low == pytest.approx(low, rel=0.01)
    assert found.critical.high == pytest.approx(high, rel=0.01)


def test_steps_samples_tokens_and_epochs_say_the_same():
    rows = planted()
    samples = fit_table(table(rows))
    steps = fit_table(table({b: v / b for b, v in rows.items()}, "steps"))
    epochs = fit_table(table({b: v / 5000 for b, v in rows.items()}, "epochs", 5000))
    for other, factor in ((steps, 1), (epochs, 5000)):
        assert other.hyperbola.critical.value == pytest.approx(samples.hyperbola.critical.value, rel=1e-6)
        assert other.hyperbola.steps.value * other.scale == pytest.approx(samples.hyperbola.steps.value, rel=1e-6)
        assert other.hyperbola.samples.value * factor == pytest.approx(samples.hyperbola.samples.value, rel=1e-6)
    assert (
        "steps need the samples of one"
        in fit_table(table({b: v / 5000 for b, v in rows.items()}, "epochs")).sentences[1]
    )


@pytest.mark.parametrize(("batch", "seed", "factor"), [(16, 0, 10), (1024, 2, 10), (16384, 1, 0.1), (64, 1, 3)])
def test_a_seed_that_is_off_is_named_and_left_out(batch, seed, factor):
    clean, rows = fit_table(table(planted())), planted()
    rows[batch][seed] *= factor
    found = fit_table(table(rows))
    (named,) = found.outliers
    assert (named.batch, named.value) == (batch, rows[batch][seed])
    assert named.ratio == pytest.approx(factor, rel=0.2)
    assert found.hyperbola.critical.value == pytest.approx(clean.hyperbola.critical.value, rel=0.15)
    assert any("left out as an outlier" in line for line in found.sentences)
    assert not fit_table(table(rows), outliers=False).outliers


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("factor", [10, 0.2])
def test_a_batch_of_one_value_that_is_off_the_others_is_left_out(batch, factor):
    rows = planted(seeds=1, spread=0.02)
    rows[batch] = rows[batch] * factor
    found = fit_table(table(rows))
    assert [o.batch for o in found.outliers] == [batch]
    assert found.outliers[0].ratio == pytest.approx(factor, rel=0.25)
    assert found.hyperbola.critical.value == pytest.approx(500, rel=0.3)
    assert found.seeds is None


def test_wide_seeds_are_no_outliers():
    rows = planted(seeds=60, spread=0.3, seed=1)
    assert len(fit_table(table(rows)).outliers) <= 1


@pytest.mark.parametrize(
    "values", [[0.85, 0.75, 0.8], [1157627904, 1258291200, 1207959552], [34, 37, 36], [120, 90, 150]]
)
def test_evaluations_show_how_far_apart_they_lie(values):
    found = fit_table(table({16: values} | {b: [values[0] * (1 + b / 500)] * 3 for b in BATCHES[1:]}))
    assert found.points[0].quantum == pytest.approx(slow.quantum(values))


def test_rare_evaluations_take_off_half_and_widen():
    exact = {b: np.full(3, 1e6 * (1 + b / 500)) for b in BATCHES[:4]}
    fine, every = fit_table(table(exact)).hyperbola, 1.5e5
    rare = fit_table(table({b: np.ceil(v / every) * every for b, v in exact.items()}))
    assert {p.quantum for p in rare.points} == {every}
    assert rare.points[0].mean == pytest.approx(rare.points[0].values[0] - every / 2)
    width = math.log(rare.hyperbola.critical.high / rare.hyperbola.critical.low)
    assert width > 10 * math.log(fine.critical.high / fine.critical.low)
    assert rare.hyperbola.critical.low < 500 < rare.hyperbola.critical.high
    assert any("evaluated rarely" in line for line in rare.sentences)
    # residuals that are nothing by chance promise nothing
    steps = [m * 1e6 * (1 + b / 500) / b for b, m in zip(BATCHES, [1] * 6, strict=True)]
    known = fit(BATCHES, steps, known=0.1).critical
    assert known.high / known.low > 1.2


@pytest.mark.parametrize(("exponent", "better"), [(2.5, True), (1.0, False), (0.4, True)])
def test_a_free_exponent_is_offered_where_it_fits_better(exponent, better):
    rng = np.random.default_rng(2)
    rows = {b: 1e6 * (1 + (b / 500) ** exponent) * np.exp(0.01 * rng.standard_normal(3)) for b in BATCHES}
    found = fit_table(table(rows))
    assert found.bend.better is better
    assert found.bend.exponent == pytest.approx(exponent, rel=0.1)
    assert any("fits better" in line for line in found.sentences) is better
    assert bend(BATCHES[:4], [100, 50, 30, 20]) is None


def test_a_batch_left_out_is_predicted_from_the_others():
    rows = planted(seed=5)
    found = fit_table(table(rows))
    for p in found.points:
        rest = {q.batch: q.mean for q in found.points if q is not p}
        least, critical, *_ = slow.hyperbola(list(rest), list(rest.values()))
        assert p.left_out == pytest.approx(math.log(p.mean / (least * (1 + p.batch / critical))), abs=1e-4)
    errors = [p.left_out for p in found.points]
    assert found.left_out == pytest.approx(math.sqrt(np.mean(np.square(errors))))


def test_the_seeds_alone_are_drawn_with_replacement():
    rows = planted(seeds=8, spread=0.1)
    found = fit_table(table(rows), draws=2000).seeds
    rng, drawn = np.random.default_rng(1), []
    for _ in range(150):
        means = [np.log(rng.choice(v, len(v))).mean() for v in rows.values()]
        drawn.append(slow.hyperbola(list(rows), np.exp(means))[1])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, rel=0.12)
    assert found.high == pytest.approx(high, rel=0.12)


def test_many_fits_at_once_are_the_single_ones():
    rng = np.random.default_rng(0)
    many = np.stack([100 * (1 + 300 / np.array(BATCHES)) * np.exp(0.1 * rng.standard_normal(6)) for _ in range(20)])
    single = [fit(BATCHES, one).critical.value for one in many]
    assert critical_batches(BATCHES, many) == pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize(("batches", "kind"), [(4, "both"), (6, "quantised"), (10, "outlier")])
def test_intervals_cover_at_the_stated_rate(batches, kind):
    """150 trials: 90% to 98% widened by what so few can be off; `benchmarks/fit_coverage.py` takes 1,000."""
    row = coverage(batches, kind, 150, seed=1)
    assert 0.89 <= row["covered"] <= 0.995
    assert row["outliers_right"] > 0.95


def test_refusals():
    with pytest.raises(InputError, match="2 batches; a fit takes at least 3"):
        fit_table(table({8: [1], 16: [2]}))
    with pytest.raises(InputError, match="draws"):
        fit_table(table(planted()), draws=10)
    with pytest.raises(InputError, match="level"):
        fit_table(table(planted()), level=1.0)
