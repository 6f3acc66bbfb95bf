"""Every broken trainer is named, no correct one is accused."""

import pytest
from tests.zoo.broken import BROKEN
from tests.zoo.correct import CORRECT

from isobatch.split import split


@pytest.mark.parametrize("name", CORRECT)
def test_no_correct_trainer_is_accused(name):
    report = split(CORRECT[name])
    assert not report.causes, str(report)
    assert report.exit_code == 0, str(report)


@pytest.mark.parametrize("name", BROKEN)
def test_every_bug_is_named(name):
    make, wanted, _ = BROKEN[name]
    report = split(make)
    assert [cause.name for cause in report.causes] == list(wanted), str(report)
    assert report.exit_code == 4
