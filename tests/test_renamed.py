"""Old public names still answer, with a warning that names the new one."""

import importlib
import warnings

import pytest
import torch
from torch import nn

from isobatch.augment import BatchAugmentation, identity
from isobatch.renamed import old_names
from isobatch.tasks import LossNeeds, Run, TensorSamples

NAMES = [
    ("isobatch.tasks", "Lesson", "isobatch.tasks.loss_context", "LossContext"),
    ("isobatch.tasks", "Teaching", "isobatch.tasks.loss_context", "LossNeeds"),
    ("isobatch.tasks.games", "Outcome", "isobatch_studies.tasks.games", "Transition"),
    ("isobatch.tasks.games", "Rollouts", "isobatch_studies.tasks.games", "Rollouts"),
    ("isobatch.train", "Verdict", "isobatch.train.guard", "StepVerdict"),
    ("isobatch.noise", "Verdict", "isobatch.noise.estimate", "Identification"),
    ("isobatch.checkpoint", "Step", "isobatch.checkpoint.writer", "StepFolder"),
    ("isobatch.augment.concurrently", "Maker", "isobatch.augment.concurrently", "DirectionProvider"),
]


@pytest.mark.parametrize(("module", "old", "home", "new"), NAMES)
def test_an_old_name_is_the_new_one(module, old, home, new):
    with pytest.warns(DeprecationWarning, match=f"^{module}.{old} is now {home}.{new}$".replace(".", r"\.")):
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module(home), new)


@pytest.mark.parametrize("module", sorted({module for module, *_ in NAMES}))
def test_a_name_that_never_was_is_refused(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def run(**parts):
    return Run(nn.Linear(1, 1), TensorSamples(torch.ones(2, 1)), lambda *_: torch.zeros(()), lambda _: {}, **parts)


def test_a_run_takes_what_its_loss_needs_under_the_old_name():
    needs = LossNeeds(teacher="eval")
    with pytest.warns(DeprecationWarning, match=r"Run\(teaching=\.\.\.\) is now Run\(needs=\.\.\.\)"):
        old = run(teaching=needs)
    assert old.needs is needs
    with pytest.warns(DeprecationWarning, match=r"Run\.teaching is now Run\.needs"):
        assert old.teaching is needs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(needs=needs).needs is needs


@pytest.mark.parametrize(("old", "new"), [("turns", "count"), ("turn", "rows")])
def test_batch_augmentation_answers_to_its_old_words(old, new):
    made = BatchAugmentation(identity, 2)
    with pytest.warns(DeprecationWarning, match=rf"BatchAugmentation\.{old} is now BatchAugmentation\.{new}"):
        assert getattr(made, old) == getattr(made, new)


def test_the_warning_points_at_who_asked():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        old_names("isobatch.units", {"entire": "isobatch.units.whole"})("entire")
    assert said[0].filename == __file__
