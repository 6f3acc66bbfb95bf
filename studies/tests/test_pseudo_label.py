"""The pseudo-label study: its arms, how its claims are judged, what counts as collapse, and one tiny run of it all."""

import json

import pytest
from studies.tests.tasks.speech import small

from isobatch.errors import InputError
from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.verify.workers import Curve
from isobatch_studies import catalogue
from isobatch_studies.claims import criteria
from isobatch_studies.pseudo_label import grid as layout
from isobatch_studies.pseudo_label import study
from isobatch_studies.pseudo_label.judging import judge_claims
from isobatch_studies.pseudo_label.page import figure
from isobatch_studies.tasks.speech import pools

PART = criteria("pseudo-label")["grid"]
PLACES = layout.stops(PART)


def arms(**parts):
    return {arm.name: arm for arm in layout.arms({**PART, **parts}, 40.0)}


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr(pools, "corpus", small.corpus)


def test_the_start_and_every_switch_lie_on_a_stop_that_every_batch_divides():
    base = layout.reference(PART)
    assert base.options["start"] in PLACES
    assert all(stop % (base.batch.size * 8) == 0 for stop in PLACES)
    for arm in arms().values():
        if arm.kind == "progressive":
            assert int(arm.recipe.batch.schedule[1][0].split()[0]) in PLACES[1:-1]


def test_small_kappas_start_by_samples_and_large_ones_by_the_error():
    found = {arm.kappa: arm.recipe.options for arm in arms().values() if arm.kind == "rule"}
    assert {kappa: options.get("start_error") for kappa, options in found.items()} == {0.5: None, 2: None, 4: 40, 8: 40}


def test_the_rule_keeps_the_half_life_and_the_unscaled_arm_the_decay(noise):
    base = layout.reference(PART)
    for arm in arms().values():
        recipe = arm.recipe.model_copy(update={"options": {**arm.recipe.options, **small.OPTIONS}})
        trainer = Trainer(make_run(recipe, 0), recipe)
        batch = round(base.batch.size * arm.kappa)
        factor = arm.kappa if arm.kind == "unscaled" else 1
        assert trainer.settings(batch).half_life == pytest.approx(factor * base.half_life)
        power = 1 if arm.form == "invariant" else 0.5
        assert trainer.settings(batch).lr == pytest.approx(base.optimizer.lr * arm.kappa**power)


def test_streams_of_the_sample_order_differ_between_arms():
    names = [layout.REFERENCE, *arms()]
    assert len({layout._stream(name) for name in names}) == len(names)


def curve(wer=30.0, empty=0.0, start=6400.0, dev=40.0):
    series = {name: [value] * 11 for name, value in (("wer", wer), ("empty", empty), ("start", start), ("dev", dev))}
    return Curve("x", 0, {"average": series, "raw": series}, 10, 1.0)


@pytest.mark.parametrize(("values", "expected"), [
    ({}, False), ({"empty": 60.0}, True), ({"wer": 96.0}, True), ({"wer": 99.0, "start": -1.0}, False),
])  # fmt: skip
def test_collapse_is_a_teacher_that_labels_and_says_nothing_right(values, expected):
    assert study.collapsed(curve(**values)) is expected


def test_the_error_at_the_start_is_the_references_own():
    assert layout.start_error(PART, [curve(dev=40.0), curve(dev=45.04)]) == 42.5


def row(kind, kappa, form, verdict, name=None, **more):
    gap = {"verdicts": {"average": verdict}, "worst": {"average": 0.1}}
    return {"arm": name or f"{kind} {kappa}", "kind": kind, "kappa": kappa, "form": form, **gap, **more}


def rows(rule="SAME", unscaled="DIFFERENT", switched="SAME", help=(5.0, 1.0, 9.0)):
    found = [
        row("control", 1, "square root", "SAME", layout.AGAIN),
        row("control", 1, "square root", "DIFFERENT", layout.SUPERVISED, wer_gap=help, loss_gap=help),
    ]
    for form in PART["forms"]:
        for kappa in PART["kappas"]:
            found += [row("rule", kappa, form, rule)]
            found += [row("unscaled", kappa, form, unscaled)] if form in PART["unscaled"] else []
        found += [row("progressive", kappa, form, switched) for kappa, _ in PART["progressive"]]
    return found


def held(found, seeds=12, part=PART):
    return {claim["id"].partition("/")[2]: claim["held"] for claim in judge_claims(found, seeds, part)}


def test_claims_hold_and_fail_by_their_criteria():
    good = dict.fromkeys(
        ["rule-same", "invariant-same", "unscaled-different", "labels-help", "labels-lower-loss", "control-same"], True
    )
    assert held(rows()) == {**good, "progressive-mends": None}
    assert held(rows(rule="UNDECIDED"))["rule-same"] is False
    assert held(rows(rule="DIFFERENT"))["progressive-mends"] is True
    assert held(rows(rule="DIFFERENT", switched="UNDECIDED"))["progressive-mends"] is False
    assert held(rows(unscaled="UNDECIDED"))["unscaled-different"] is False
    assert held(rows(help=(5.0, -1.0, 9.0)))["labels-help"] is False


def test_claims_without_their_arms_or_seeds_get_no_verdict():
    assert set(held(rows(), seeds=3).values()) == {None}
    assert set(held([]).values()) == {None}
    some = [r for r in rows() if (r["kind"], r["kappa"], r["form"]) != ("unscaled", 0.5, "invariant")]
    assert held(some)["unscaled-different"] is None
    one = [row("rule", 8, "square root", "UNDECIDED"), row("rule", 8, "invariant", "SAME")]
    assert held(one) == {**dict.fromkeys(held([])), "rule-same": False}, "one that fails decides"


def test_a_tiny_run_of_the_whole_study(noise, tmp_path, monkeypatch):
    rules = json.loads(json.dumps(criteria("pseudo-label")))
    recipe = rules["quick"]["recipe"]
    recipe["schedule"] = {"length": "320 samples", "warmup": "32 samples"}
    recipe["options"] = {**small.OPTIONS, "start": 96, "look": 32}
    rules["quick"].update(seeds=2, kappas=[8], forms=["invariant"], progressive=[[8, 0.5]])
    monkeypatch.setattr(study, "criteria", lambda name: rules)
    data = catalogue.PSEUDO_LABEL.run(quick=True, out=tmp_path, workers=1)
    assert data["cells"] == {"complete": 3, "of": 3}
    assert [r["kind"] for r in data["rows"]] == ["control", "rule", "unscaled", "progressive"]
    assert data["rows"][0]["starts"] == [96, 96]
    assert all(claim["held"] is None for claim in data["claims"])
    assert data["rows"][1]["steps"] == 10
    with pytest.raises(InputError, match="before the reference"):
        catalogue.PSEUDO_LABEL.run(quick=True, workers=1, budget=0.0)
    alone = {**data, "rows": data["rows"][:1]}
    assert png(figure(alone)).startswith(b"\x89PNG"), "no arm yet"
    again = catalogue.PSEUDO_LABEL.run(quick=True, out=tmp_path, workers=1, budget=0.0)
    assert again == data
    assert {"result.json", "curves.png", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert "SYNTHETIC" in (tmp_path / "report.html").read_text()
