"""The progressive study: its arms, and how its claims are judged."""

import pytest

from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch_studies import catalogue
from isobatch_studies.claims import criteria
from isobatch_studies.progressive import grid as layout
from isobatch_studies.progressive.page import figure, html
from isobatch_studies.progressive.study import judge_claims

GRID = criteria("progressive")["grid"]


def test_arms_switch_on_a_stop_that_every_batch_divides():
    for task, part in GRID.items():
        places = layout.stops(task, part)
        for arm in layout.arms(task, part):
            if arm.recipe.batch.schedule is not None:
                start = int(arm.recipe.batch.schedule[1][0].split()[0])
                assert start in places
                assert all(start % batch == 0 for _, batch in arm.recipe.batch.schedule)


def test_a_naive_switch_keeps_the_decay_and_the_plan_keeps_the_half_life():
    arms = {arm.kind: arm.recipe for arm in layout.arms("digits", GRID["digits"])}
    for kind, factor in (("up", 1), ("naive", 16)):
        trainer = Trainer(make_run(arms[kind], 0), arms[kind])
        assert trainer.settings(128).lr == pytest.approx(16 * 0.02)
        assert trainer.settings(128).half_life == pytest.approx(factor * arms[kind].half_life)


def test_the_loop_follows_the_schedule():
    recipe = next(arm.recipe for arm in layout.arms("digits", GRID["digits"]) if arm.kind == "up")
    short = recipe.model_copy(
        update={"batch": recipe.batch.model_copy(update={"schedule": (("0 samples", 8), ("64 samples", 128))})}
    )
    trainer, sizes = Trainer(make_run(short, 0), short), []
    trainer.train_to(64 + 300, on_step=lambda step: sizes.append(step.batch))
    assert sizes == [8] * 8 + [128, 128, 44]


def row(task, kind, verdict, worst=(0.1,) * 8, arm=None):
    return {
        "task": task,
        "arm": arm or kind,
        "kind": kind,
        "steps": 10,
        "verdicts": {"average": verdict, "raw": verdict},
        "worst": {"average": 0.1, "raw": 0.1},
        "worst_per_seed": list(worst),
        "final_loss": 0.2,
    }


def rows(up="SAME", naive="DIFFERENT", late=0.05):
    far = [0.3 + 0.01 * seed for seed in range(8)]
    verdicts = {"up": up, "down": up, "naive": naive}
    found = [
        row(task, arm.kind, verdicts[arm.kind], arm=arm.name)
        for task, part in GRID.items()
        for arm in layout.arms(task, part)
        if arm.kind in verdicts
    ]
    return [*found, row("digits", "far large", "DIFFERENT", far), row("digits", "far late", "SAME", [late] * 8)]


def held(found, seeds=8):
    return [outcome.held for outcome in judge_claims(found, seeds, ["digits", "text"])]


def test_claims_are_judged_by_their_criteria():
    assert held(rows()) == [True, True, True]
    assert held(rows(up="UNDECIDED")) == [False, True, True]
    assert held(rows(naive="SAME")) == [True, False, True]
    assert held(rows(late=0.4)) == [True, True, False]
    assert held([found for found in rows() if found["task"] == "digits"]) == [None, None, True]
    assert held(rows(), seeds=3) == [None, None, None]
    for missing in (1, 2, 12):  # one arm of the grid that the budget did not reach
        assert held([found for number, found in enumerate(rows()) if number != missing])[:2] == [None, None]


def test_the_page_holds_claims_and_arms():
    found = rows()
    data = {
        "study": "progressive",
        "title": "Switching",
        "rows": found,
        "claims": [vars(outcome) for outcome in judge_claims(found, 8, ["digits", "text"])],
        "stops": {"digits": [0, 10, 20], "text": [0, 10, 20]},
        "curves": {f"{r['task']} {r['arm']}": [2.0, 1.0, 0.5] for r in found}
        | {f"{task} reference": [2.0, 1.1, 0.5] for task in ("digits", "text")},
    }
    assert "progressive/switch-same" in html(data)
    assert png(figure(data)).startswith(b"\x89PNG")


def test_a_budget_that_reaches_no_arm_gives_claims_without_a_verdict(tmp_path):
    data = catalogue.PROGRESSIVE.run(quick=True, out=tmp_path, workers=1, budget=-1.0)
    assert (data["cells"]["complete"], data["rows"]) == (0, [])
    assert [claim["held"] for claim in data["claims"]] == [None] * 3
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "result.json",
        "switches.png",
        "report.html",
    }
