"""What a task may say of its metrics, and what is refused."""

import math

import pytest
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.tasks import LOSS, PERCENT, Metric, make_run
from isobatch.tasks.metric import headline

NATS = {"unit": "nats", "scale": 2.0}


@pytest.mark.parametrize(("words", "message"), [
    ({"kind": "rate"}, "kind='rate' must be \"ratio\" or \"difference\""),
    ({"better": "up"}, "better='up' must be \"lower\" or \"higher\""),
    ({"unit": "percent"}, 'a "ratio" metric has no unit'),
    ({"scale": 1.0}, 'a "ratio" metric has no unit'),
    ({"kind": "difference"}, 'a "difference" metric needs unit="percent"'),
    ({"kind": "difference", "unit": "nats"}, "unit='nats' needs scale=.*now None"),
    ({"kind": "difference", "unit": "nats", "scale": 0.0}, "needs scale="),
    ({"kind": "difference", "unit": "nats", "scale": -1.0}, "needs scale="),
    ({"kind": "difference", "unit": "nats", "scale": math.inf}, "needs scale="),
    ({"kind": "difference", "unit": "nats", "scale": math.nan}, "needs scale="),
    ({"kind": "difference", "unit": "percent", "scale": 1.0}, "scale=1 contradicts unit='percent', which is 100"),
])  # fmt: skip
def test_a_declaration_that_cannot_be_judged_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        Metric(**{"kind": "ratio", "better": "lower", **words})


def test_units_with_a_range_bring_their_scale():
    assert PERCENT.scale == 100
    assert Metric("difference", better="higher", unit="fraction").scale == 1
    assert Metric("difference", better="lower", unit="percent", scale=100.0) == Metric("difference", "lower", "percent")


@pytest.mark.parametrize(("metric", "value", "message"), [
    (LOSS, 1e-9, None), (LOSS, 0.0, "a ratio needs values above 0"), (LOSS, -1.0, "a ratio needs values above 0"),
    (LOSS, math.nan, None), (LOSS, math.inf, None),
    (PERCENT, 0.0, None), (PERCENT, 100.0, None), (PERCENT, 100.00001, None), (PERCENT, 100.1, "outside 0 to 100"),
    (PERCENT, -0.1, "outside 0 to 100"),
    (Metric("difference", "higher", "fraction"), 1.0, None),
    (Metric("difference", "higher", "fraction"), 55.0, "percent"),
    (Metric("difference", "lower", **NATS), -1e6, None),
])  # fmt: skip
def test_values_are_held_against_their_declaration(metric, value, message):
    if message is None:
        metric.check("m", value, "here")
        return
    with pytest.raises(InputError, match=rf"m is .* here.*{message}"):
        metric.check("m", value, "here")


@pytest.mark.parametrize(("declared", "measured", "wanted", "message"), [
    ({"a": PERCENT}, {"a": 50.0}, "a", None),
    ({"loss": LOSS, "a": PERCENT}, {"loss": 1.0, "a": 50.0}, "loss", None),
    ({"loss": LOSS, "a": PERCENT, "late": PERCENT}, {"loss": 1.0, "a": 50.0}, "loss", None),
    ({"a": PERCENT, "b": PERCENT}, {"a": 1.0, "b": 50.0}, None, "declares no headline among a, b; set headline=True"),
    ({"a": LOSS, "b": LOSS}, {"a": 1.0, "b": 50.0}, None, "declares 2 headline among a, b"),
    ({"loss": LOSS}, {"loss": 1.0, "a": 50.0}, None, "does not declare its metric 'a'"),
    ({}, {"val_loss": 1.0}, None, "does not declare its metric 'val_loss'"),
    ({}, {}, None, "measures nothing"),
    ({"loss": LOSS}, {"loss": math.nan}, None, "loss is nan before training"),
    ({"loss": LOSS}, {"loss": 0.0}, None, "loss is 0 before training, and a ratio needs values above 0"),
])  # fmt: skip
def test_one_metric_is_the_headline(declared, measured, wanted, message):
    if message is None:
        assert headline("mine", declared, measured) == wanted
        return
    with pytest.raises(InputError, match=message):
        headline("mine", declared, measured)


def test_another_metric_may_be_asked_for():
    declared, measured = {"loss": LOSS, "a": PERCENT}, {"loss": 1.0, "a": 50.0}
    assert headline("mine", declared, measured, "a") == "a"
    with pytest.raises(InputError, match="task='mine' has no metric 'b'; its metrics: loss, a"):
        headline("mine", declared, measured, "b")


@pytest.mark.parametrize(("task", "data_size"), [("digits", 1437), ("quadratic", 256)])
def test_shipped_tasks_declare_what_they_measure(task, data_size):
    run = make_run(recipe(task=task, data_size=data_size), 0)
    assert headline(task, run.declared, run.evaluate()) == "loss"
