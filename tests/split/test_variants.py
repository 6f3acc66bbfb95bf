"""Trainers in other forms, in float64 and in their own types."""

import pytest
from tests.split.variants import VARIANTS
from tests.zoo.broken import BROKEN

from isobatch.split import split


def _quick(names):
    """The names; those after the second with the same causes are slow."""
    seen = []
    for name in names:
        seen.append(tuple(VARIANTS[name][1]))
        yield pytest.param(name, marks=[pytest.mark.slow] if seen.count(seen[-1]) > 2 or seen[-1] in IN_ZOO else [])


IN_ZOO = {tuple(causes) for _, causes, _ in BROKEN.values()}


@pytest.mark.parametrize("float64", [pytest.param(None, id="float64"), pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(_quick(VARIANTS)))
def test_a_variant_is_named_or_left_alone(name, float64):
    make, causes, code = VARIANTS[name]
    report = split(make, float64=float64)
    assert [cause.name for cause in report.causes] == causes, str(report)
    assert report.exit_code == code, str(report)
