"""Trainers in other forms, in float64 and in their own types."""

import pytest
from tests.split.variants import VARIANTS

from isobatch.split import split


@pytest.mark.parametrize("float64", [pytest.param(None, id="float64"), pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_named_or_left_alone(name, float64):
    make, causes, code = VARIANTS[name]
    report = split(make, float64=float64)
    assert [cause.name for cause in report.causes] == causes, str(report)
    assert report.exit_code == code, str(report)
