"""The closing line, and what loggers are told."""

import dataclasses

import pytest

from isobatch.integrations.report import is_larger_worth_it
from isobatch.noise import Identification, undefined

KNOWN = dataclasses.replace(undefined("x"), value=400.0, low=300.0, high=500.0, verdict=Identification.IDENTIFIED)


@pytest.mark.parametrize(("batch", "said"), [
    (100, "Yes: the batch is 100 samples, the noise scale 400 (95% interval 300 to 500); twice the batch would take "
          "about 40% fewer steps and 20% more samples."),
    (400, "It is near the balance: the batch is 400 samples, the noise scale 400 (95% interval 300 to 500); twice the "
          "batch would take about 25% fewer steps and 50% more samples."),
    (4000, "No: the batch is 4,000 samples, the noise scale 400 (95% interval 300 to 500); twice the batch would take "
           "about 5% fewer steps and 91% more samples."),
])  # fmt: skip
def test_the_question_is_answered_from_an_identified_noise_scale(batch, said):
    assert is_larger_worth_it(KNOWN, batch) == f"Is a larger batch worth it? {said}"


def test_what_is_not_known_is_said():
    assert "Not known yet: noise scale undefined: one chunk" in is_larger_worth_it(undefined("one chunk"), 8)
    vague = dataclasses.replace(KNOWN, verdict=Identification.NOT_IDENTIFIED, sentence="needs more")
    assert is_larger_worth_it(vague, 8) == "Is a larger batch worth it? Not known yet: needs more."
