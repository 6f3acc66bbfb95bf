"""Every broken trainer is named, no correct one is accused."""

import pytest
from tests.zoo.broken import BROKEN
from tests.zoo.correct import CORRECT
from tests.zoo.others_in_layers import ALL

from isobatch.split import split


def _first(names, key):
    """The names, all but the first of a kind marked slow."""
    seen = set()
    for name in names:
        marks = [pytest.mark.slow] if key(name) in seen else []
        seen.add(key(name))
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(_first(CORRECT, lambda name: list(CORRECT).index(name) % 10)))
def test_no_correct_trainer_is_accused(name):
    report = split(CORRECT[name])
    assert not report.causes, str(report)
    assert report.exit_code == 0, str(report)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch notices one of the bugs itself
@pytest.mark.parametrize("name", list(_first(BROKEN, lambda name: BROKEN[name][1])))
def test_every_bug_is_named(name):
    make, wanted, _ = BROKEN[name]
    report = split(make)
    assert [cause.name for cause in report.causes] == list(wanted), str(report)
    assert report.exit_code == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:std\\(\\)")  # bugs that torch notices
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
@pytest.mark.parametrize("name", ALL)
def test_trainers_in_other_styles(name):
    make, wanted = ALL[name]
    report = split(make)
    assert [cause.name for cause in report.causes] == list(wanted), str(report)
    assert report.exit_code == (4 if wanted else 0), str(report)


def test_the_zoo_is_large_enough_and_every_bug_has_a_source():
    assert len(CORRECT) >= 12
    assert len([source for _, _, source in BROKEN.values() if source.startswith("https://github.com/")]) >= 24
