"""Student's t against scipy, and what has no quantile."""

import math

import pytest
from scipy.special import stdtrit

from isobatch.errors import InputError
from isobatch.student import student_t


@pytest.mark.parametrize("freedom", [0.3, 0.7, 1, 1.5, 2, 3, 4.5, 9, 30, 100.3, 1e3, 9_999, 1e4, 1e5, 1e7, 1e11])
@pytest.mark.parametrize("probability", [1e-6, 0.025, 0.4, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9999])
def test_the_quantile_is_scipys(freedom, probability):
    assert student_t(freedom, probability) == pytest.approx(float(stdtrit(freedom, probability)), rel=1e-10)


def test_the_middle_and_the_ends():
    assert student_t(3, 0.5) == 0.0
    assert student_t(math.inf, 0.975) == pytest.approx(1.959963984540054)
    assert student_t(1, 0.75) == pytest.approx(1)
    assert student_t(1e-3, 1 - 1e-12) == math.inf, "beyond every float"


@pytest.mark.parametrize(("freedom", "probability"), [(0, 0.9), (-1, 0.9), (math.nan, 0.9), (3, 0), (3, 1)])
def test_what_has_no_quantile_is_refused(freedom, probability):
    with pytest.raises(InputError, match=r"must be (positive|in \(0, 1\))"):
        student_t(freedom, probability)
