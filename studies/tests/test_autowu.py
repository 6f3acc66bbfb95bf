"""The AutoWU study: what its arms change, and how its claims are judged."""

import json

import numpy as np
import pytest

from isobatch.report import png
from isobatch_studies import catalogue
from isobatch_studies.autowu import grid as layout
from isobatch_studies.autowu import study
from isobatch_studies.autowu.page import figure, html
from isobatch_studies.claims import criteria
from isobatch_studies.paired import interval

RULES = criteria("autowu")
CELLS = layout.cells(RULES, quick=False)


def test_the_cells_are_three_batches_of_two_optimizers_and_a_short_budget():
    assert [(cell.optimizer, cell.batch) for cell in CELLS[1:]] == [
        (optimizer, batch) for batch in (512, 128, 32) for optimizer in ("adamp", "lamb")
    ]
    assert (CELLS[0].optimizer, CELLS[0].batch, CELLS[0].epochs) == ("adamw", 64, 20)
    assert len(layout.cells(RULES, quick=True)) == 2


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.label)
def test_arms_share_everything_but_the_schedule(cell):
    made = {arm: layout.recipe(cell, arm, 0.01, seed=7) for arm in cell.arms}
    assert made["chosen peak"].optimizer.lr == 0.01
    for arm, recipe in made.items():
        search = recipe.search()
        assert (search is None) == (arm == "chosen peak")
        assert recipe.options == {"norm": cell.optimizer != "adamw", "fold": 2, "validation": 158}
        if search is not None and arm != "as published":
            assert search.growth.overshoot <= 0.25 * (1 + 1e-9)
        if search is not None and arm == "as published":
            assert search.growth.overshoot == pytest.approx(30 / 20)


def row(cell, gaps, seeds=20):
    jitter = np.random.default_rng(1).normal(0, 0.2, seeds)
    values = {"chosen peak": [98.0] * seeds, **{arm: (98 + gap + jitter).tolist() for arm, gap in gaps.items()}}
    return {
        "cell": cell.label, "optimizer": cell.optimizer, "batch": cell.batch, "epochs": cell.epochs, "seeds": seeds,
        "peaks": {"0": 0.01}, "validation": {"0.01": 98.0}, "values": values,
        "means": {arm: interval(found).to_dict() for arm, found in values.items()},
        "gaps": {arm: interval(np.subtract(values[arm], 98.0).tolist()).to_dict() for arm in gaps},
        "stopped": dict.fromkeys(values, 0),
    }  # fmt: skip


def rows(untuned=-0.3, published=-40.0, mended=-0.5, seeds=20):
    short = {"AutoWU": mended, "AutoWU, rollback": mended, "as published": published}
    return [
        row(CELLS[0], short, seeds),
        *(row(cell, {"AutoWU": untuned, "AutoWU, rollback": untuned}, seeds) for cell in CELLS[1:]),
    ]


def held(found):
    return [outcome.held for outcome in study.judge_claims(found)]


def test_claims_are_judged_by_their_criteria():
    assert held(rows()) == [True, True, True]
    assert held(rows(untuned=-1.0)) == [False, True, False]
    assert held(rows(published=-9.0)) == [True, False, True]
    assert held(rows(mended=-2.5)) == [True, False, True]
    assert held(rows(seeds=5)) == [None] * 3
    assert held(rows(untuned=-1.0)[:4]) == [False, True, False]
    assert held(rows()[:4]) == [None, True, None]
    assert held(rows()[1:]) == [True, None, True]
    assert held([]) == [None] * 3


def test_the_page_holds_claims_and_arms():
    found = rows()
    claims = [vars(outcome) for outcome in study.judge_claims(found)]
    data = {"study": "autowu", "title": "AutoWU", "rows": found, "claims": claims}
    assert "autowu/untuned-noninferior" in html(data)
    assert png(figure(data)).startswith(b"\x89PNG")
    assert png(figure({**data, "rows": []})).startswith(b"\x89PNG")


def test_it_runs_from_selection_to_claims(tmp_path, monkeypatch):
    small = {**RULES, "peaks": [0.01, 0.1], "quick": {**RULES["quick"], "seeds": 2}}
    monkeypatch.setattr(study, "criteria", lambda name, grid="": small)
    monkeypatch.setattr(layout, "TRAIN", 64)
    monkeypatch.setitem(layout.ARMS, "AutoWU", {"search": {"overshoot": 5.0}})
    monkeypatch.setitem(layout.ARMS, "AutoWU, rollback", {"search": {"overshoot": 5.0, "rollback": True}})
    monkeypatch.setitem(layout.ARMS, "as published", {"search": {"tests": "64 samples"}})
    data = catalogue.AUTOWU.run(quick=True, out=tmp_path, workers=1)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert [claim["held"] for claim in stored["claims"]] == [None] * 3
    assert len(data["rows"]) == 2
    assert set(data["rows"][0]["peaks"]) == {"0", "1", "2", "3", "4"}
