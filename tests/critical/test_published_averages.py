"""Averages of published runs: half-lives and errors by hand, and what the page concludes from them."""

import math

import pytest
from benchmarks import published_averages as averages
from benchmarks.published import fits
from tests.reference import league as slow


@pytest.fixture(scope="module")
def found():
    return fits()


def test_half_lives_and_runs_by_hand(found):
    (_, _, rnnt), *_ = averages.points(found)
    point = next(p for p in rnnt if p.batch == 2048)
    updates = 0.0
    while 0.995**updates > 0.5:
        updates += 0.001
    assert point.half_life == pytest.approx(2048 * updates, rel=1e-4)
    assert point.share == pytest.approx(point.half_life / point.run)
    big = next(of for name, _, of in averages.points(found) if name.startswith("Transformer 1.2B"))
    assert [p.run for p in big[:2]] == pytest.approx([643_000 * 64, 331_000 * 128])
    for p in big[:3]:  # constant in samples from 64 to 256
        assert p.half_life == pytest.approx(big[0].half_life, rel=1e-4)


def test_errors_are_the_slow_ones(found):
    for where in ("below", "above"):
        rows = averages.scores(found, where)
        for name, critical, of in averages.points(found):
            own = [p for p in of if (p.batch <= critical) == (where == "below")]
            assert (name in rows) == (len(own) > 1)
            if name in rows:
                logs = (lambda p: p.half_life, lambda p: p.half_life / p.run, lambda p: p.half_life / p.batch)
                wanted = [slow.scatter([math.log(log(p)) for p in own]) for log in logs]
                assert list(rows[name].values()) == pytest.approx(wanted, abs=1e-12)


def test_pairs_by_hand():
    rows = {(who, key, old, new): (theirs, ours, ratio) for who, key, old, new, theirs, ours, ratio in averages.pairs()}
    theirs, ours, ratio = rows["DINO, what it advises for small batches", "ema.decay", 1024, 256]
    assert (theirs, ours) == pytest.approx((0.9995, math.sqrt(math.sqrt(0.996))))
    assert ratio == pytest.approx(math.log(ours) / math.log(theirs))
    assert rows["Marek et al., GPT-2 small", "optimizer.betas[1]", 512, 1][2] == pytest.approx(1, abs=2e-3)
    assert rows["D-FINE-L, its README", "ema.decay", 32, 64][2] == pytest.approx(1, abs=1e-3)


def test_what_the_page_concludes(found):
    """No rule stands beside rho**kappa: where that changes, the plan should have it."""
    above = averages.scores(found, "above")
    assert len(above) == 4
    assert not averages.carried(found)
    shares = {p.batch: p.share for p in next(averages.points(found))[2]}
    assert shares[2048] == pytest.approx(0.018, abs=5e-4)
    assert shares[6144] == pytest.approx(0.004, abs=5e-4)
