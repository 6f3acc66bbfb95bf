"""The LEGW study: what its arms change, how the base rate is chosen, and how its claims are judged."""

import json
import math

import numpy as np
import pytest

from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch.verify.workers import Curve
from isobatch_studies import catalogue
from isobatch_studies.claims import criteria
from isobatch_studies.legw import grid as layout
from isobatch_studies.legw import study
from isobatch_studies.legw.page import figure, html
from isobatch_studies.paired import choose, interval, last

TASKS = criteria("legw")["tasks"]


def test_the_arms_differ_in_rate_and_warm_up_alone():
    recipes = {name: layout.arm("lstm", name, 0.1, 16, seed=3) for name in layout.ARMS}
    assert {name: round(r.optimizer.lr, 6) for name, r in recipes.items()} == {
        "base": 0.1, "LEGW": 0.4, "linear": 1.6, "square root, base warm-up": 0.4,
    }  # fmt: skip
    warmups = {name: recipe.staircase().warmup for name, recipe in recipes.items()}
    assert warmups == {"base": 384, "LEGW": 16 * 384, "linear": 384, "square root, base warm-up": 384}
    assert {recipe.batch.size for name, recipe in recipes.items() if name != "base"} == {256}
    for recipe in recipes.values():
        assert recipe.optimizer.momentum == 0.9
        assert recipe.options == {"fold": 3, "validation": 158}
        one = Trainer(make_run(recipe, 0), recipe)
        assert len(one.run.samples) == layout.TRAIN
        one.step()


def test_reported_runs_use_other_seeds_than_the_selection_and_share_initial_weights():
    chosen = {job.seed for job in layout.selection("lstm", TASKS["lstm"], 2)}
    groups = layout.reported("lstm", TASKS["lstm"], dict.fromkeys(range(5), 0.1), 20)
    assert chosen == set(range(1000, 1010))
    assert [sorted({job.seed for job in group}) for group in groups] == [[seed] for seed in range(20)]
    assert all(len({job.order_seed for job in group}) == len(layout.ARMS) for group in groups)


def test_intervals_and_choices():
    values = np.random.default_rng(0).normal(3, 1, 20)
    found = interval(values.tolist())
    assert found.low < 3 < found.high
    assert found.high - found.low == pytest.approx(2 * 2.093024 * values.std(ddof=1) / math.sqrt(20), rel=1e-6)
    assert interval([1.0]).high == math.inf
    assert choose({0.4: [98.0], 0.1: [98.0], 0.2: [97.0]}) == 0.1
    diverged = Curve("a", 0, {"raw": {"accuracy": [math.nan]}}, 3, 1.0, "stopped")
    assert last(diverged, "accuracy", 10.0) == last(Curve("a", 0, {}, 0, 0.0), "accuracy", 10.0) == 10.0


def row(task, legw=0.0, linear=-20.0, seeds=20, base=98.0):
    jitter = np.random.default_rng(1).normal(0, 0.5, seeds)
    shifts = {"LEGW": legw, "linear": linear, "square root, base warm-up": legw}
    values = {"base": [base] * seeds, **{name: (base + shift + jitter).tolist() for name, shift in shifts.items()}}
    return {
        "task": task, "metric": TASKS[task]["metric"], "kappa": 16, "seeds": seeds, "rates": {"0": 0.2},
        "distance": {"0": 4.0}, "validation": {"0.2": 98.0}, "values": values,
        "means": {name: interval(found).to_dict() for name, found in values.items()},
        "gaps": {n: interval(np.subtract(values[n], values["base"]).tolist()).to_dict() for n in shifts},
        "stopped": dict.fromkeys(values, 0), "steps": dict.fromkeys(values, 150),
    }  # fmt: skip


def held(*rows):
    return [outcome.held for outcome in study.judge_claims(list(rows))]


def test_every_arm_stands_beside_the_base_batch_and_beside_legw():
    table = study.beside([row("lstm", legw=-1.0, linear=-20.0)])
    ahead = np.random.default_rng(1).normal(0, 0.5, 20).mean()
    assert [line[1] for line in table[1:]] == ["base", "LEGW", "linear", "square root, base warm-up"]
    wanted = ["", f"{ahead - 1:.2f}", f"{ahead - 20:.2f}", f"{ahead - 1:.2f}"]
    assert [line[4].split(" ")[0] for line in table[1:]] == wanted
    assert [line[5].split(" ")[0] for line in table[1:]] == ["", "", "19.00", "0.00"]
    assert study.beside([]) == table[:1]


def test_claims_are_judged_by_their_criteria():
    assert held(row("lstm"), row("cnn-lars")) == [True, True, None, True]
    assert held(row("lstm", legw=-2.0, linear=-10.0), row("cnn-lars", legw=-2.1)) == [False, False, None, False]
    tight = row("lstm-lm", base=2.0)
    tight["gaps"]["LEGW"] = {"mean": 0.05, "low": 0.01, "high": 0.09, "values": 20}
    assert held(tight) == [None, None, True, None]
    assert held(row("lstm", seeds=5)) == [None] * 4
    assert "fails at 4 times its rate" in study.judge_claims([row("lstm")])[1].evidence


def test_the_page_holds_claims_and_arms():
    rows = [row("lstm"), row("cnn-lars")]
    claims = [vars(outcome) for outcome in study.judge_claims(rows)]
    data = {"study": "legw", "title": "LEGW", "rows": rows, "claims": claims}
    assert "legw/16x-noninferior" in html(data)
    assert png(figure(data)).startswith(b"\x89PNG")
    assert png(figure({**data, "rows": []})).startswith(b"\x89PNG")


def test_it_runs_from_selection_to_claims(tmp_path, monkeypatch):
    small = criteria("legw")
    small["quick"] = {"seeds": 2, "selection_seeds": 1, "tasks": ["lstm"]}
    small["tasks"]["lstm"]["rates"] = [0.1, 0.2]
    monkeypatch.setattr(study, "criteria", lambda name, grid="": small)
    schedule = {"length": "512 samples", "warmup": "32 samples"}
    monkeypatch.setitem(layout._BASES["lstm"], "schedule", schedule)
    data = catalogue.LEGW.run(quick=True, out=tmp_path, workers=1)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert [claim["held"] for claim in stored["claims"]] == [None] * 4
    assert set(data["rows"][0]["rates"]) == {"0", "1", "2", "3", "4"}
    assert data["rows"][0]["steps"]["LEGW"] == 2
