"""The weights of one update: closed forms against 60 digits, limits, and no cancellation."""

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.average.clock import hold, plain
from isobatch.errors import InputError


def exact_hold(halves, steps):
    """The closed form with S = (1 - rho**k) / (1 - rho) in 60 digits; steps None is the limit of many."""
    with localcontext() as context:
        context.prec = 60
        lam = Decimal(halves) * Decimal(2).ln()
        R = (-lam).exp()
        if steps is None:
            after = 1 - (1 - R) / lam
        else:
            k = Decimal(steps)
            rho = (-lam / k).exp()
            after = (k - rho * (1 - R) / (1 - rho)) / k
        return float(R), float(1 - R - after), float(after)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(1e-12, 50.0), st.one_of(st.none(), st.floats(0.01, 1e4)))
def test_hold_agrees_with_sixty_digits(halves, steps):
    found, expected = hold(halves, steps), exact_hold(halves, steps)
    assert found.keep == pytest.approx(expected[0], rel=1e-12)
    assert found.after == pytest.approx(expected[2], rel=1e-9)
    assert found.before == pytest.approx(expected[1], rel=1e-6, abs=1e-9 * plain(halves))
    assert sum(found) == pytest.approx(1, abs=1e-15)


# The table of the first-order-hold variant, post-step reference run.
@pytest.mark.parametrize(
    ("rho", "kappa", "before", "after"),
    [
        (0.9999, 8, 0.00035, 0.00045),
        (0.99, 64, 0.208246, 0.266157),
        (0.9, 32, 0.237256, 0.728407),
        (0.9, 128, 0.070311, 0.929688),
    ],
)
def test_hold_has_the_known_numbers(rho, kappa, before, after):
    found = hold(-kappa * math.log2(rho), kappa)
    assert found.before == pytest.approx(before, abs=1e-6)
    assert found.after == pytest.approx(after, abs=1e-6)


def test_hold_at_the_reference_batch_is_the_plain_update():
    found = hold(-math.log2(0.99), 1)
    assert found.before == pytest.approx(0, abs=1e-15)
    assert found.after == pytest.approx(0.01, rel=1e-12)


@given(st.floats(1e-9, 20), st.floats(0.1, 0.9), st.floats(0.5, 500))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_two_holds_at_a_constant_rate_are_one(halves, cut, steps):
    one = hold(halves, steps)
    first, second = hold(halves * cut, steps * cut), hold(halves * (1 - cut), steps * (1 - cut))
    zeta, theta = 0.3, (1.0, 1.0 + 2.0 * cut, 3.0)
    once = one.keep * zeta + one.before * theta[0] + one.after * theta[2]
    middle = first.keep * zeta + first.before * theta[0] + first.after * theta[1]
    twice = second.keep * middle + second.before * theta[1] + second.after * theta[2]
    assert twice == pytest.approx(once, rel=1e-9)


def test_limits():
    assert hold(math.inf, 5) == (0, 0, 1)
    assert hold(0.0, 5) == (1, 0, 0)
    assert hold(0.0) == (1, 0, 0)
    assert (plain(0), plain(math.inf)) == (0, 1)
    assert plain(1e-15) == pytest.approx(1e-15 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("bad", [lambda: plain(-1), lambda: plain(math.nan), lambda: hold(1, 0), lambda: hold(-1)])
def test_bad_spans_are_refused(bad):
    with pytest.raises(InputError):
        bad()
