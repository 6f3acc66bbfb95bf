"""The adaptive study: its arms, both savings against their definitions, its claims, and one tiny run of it."""

import json
import math

import numpy as np
import pytest

from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch_studies import catalogue
from isobatch_studies.adaptive import study
from isobatch_studies.adaptive.judging import judge, observed, predicted, rows, savings
from isobatch_studies.adaptive.page import figure, html
from isobatch_studies.adaptive.paths import Path
from isobatch_studies.claims import criteria

RULES = criteria("adaptive")


def path(arm="adaptive", batches=(16,) * 100, goal_at=800, noise=((0, 100.0),), final=0.2, seed=0, end=0.25):
    """Log loss falls in a straight line and is `end` at goal_at samples."""
    seen = [int(s) for s in np.cumsum(batches)]
    losses = [end * math.exp((goal_at - s) / 1000) for s in seen]
    marks = [2.0 - 0.17 * k for k in range(10)] + [final]
    values = {model: {"loss": marks} for model in ("raw", "average")}
    return Path(arm, seed, list(batches), seen, losses, [list(pair) for pair in noise], values, 1.0)


def test_the_way_to_a_goal_is_interpolated():
    found = path(goal_at=808).reach(0.25)
    assert found == pytest.approx((50.5, 808))
    assert path().reach(1e-9) is None
    mixed = path(batches=[16] * 10 + [32] * 100, goal_at=176)
    assert mixed.reach(0.25) == pytest.approx((10.5, 176))


def test_observed_savings_are_read_off_the_front():
    fixed = [path("fixed 16", [16] * 200, 1600), path("fixed 64", [64] * 200, 3200)]  # 100 steps, 50 steps
    run = path(batches=[32] * 200, goal_at=2263)  # in the middle in logarithms: 70.7 steps on the front
    assert observed(run, fixed, 0.25) == pytest.approx(1 - (2263 / 32) / (100 / math.sqrt(2)), abs=2e-3)
    beaten = [*fixed, path("fixed 128", [128] * 200, 1500)]  # fewer samples and fewer steps than both
    assert observed(run, beaten, 0.25) == pytest.approx(1 - (2263 / 32) / (1500 / 128), rel=1e-6)
    assert observed(run, fixed[:1], 0.25) is None


def test_predicted_savings_are_the_papers_formula():
    steady = path(noise=((0, 100.0),), batches=[16] * 100)
    assert predicted(steady, 0.25) == pytest.approx(0, abs=1e-12)  # gamma = 1 where the noise scale does not move
    n = [25.0] * 25 + [400.0] * 25
    b = [2 * x**0.5 for x in n]
    moving = path(
        batches=[int(x) for x in b] * 1 + [40] * 50, goal_at=sum(map(int, b)), noise=((0, 25.0), (251, 400.0))
    )
    ds = [1 / (1 + x / y) for x, y in zip(n, b, strict=True)]
    S_min, E_min = sum(ds), sum(x * d for x, d in zip(n, ds, strict=True))
    gamma = sum(x**0.5 * d for x, d in zip(n, ds, strict=True)) ** 2 / (S_min * E_min)
    E = sum(b)
    S_fixed, S = S_min * (1 + 1 / (E / E_min - 1)), S_min * (1 + gamma / (E / E_min - 1))
    assert pytest.approx(50, rel=1e-9) == S  # fixed exchange rate: the formula is exact
    assert predicted(moving, 0.25) == pytest.approx(1 - S / S_fixed, abs=0.01)
    assert predicted(path(noise=()), 0.25) is None


def arms(seeds=8, gap=0.0, full=0.2, bare=0.3):
    found = {"fixed 16": [path("fixed 16", [16] * 200, 1600 + 3 * s, seed=s) for s in range(seeds)],
             "fixed 64": [path("fixed 64", [64] * 200, 3200 + 3 * s, seed=s) for s in range(seeds)]}  # fmt: skip
    at = 2263 * (1 + gap)
    runs = [path("adaptive", [32] * 200, at + 3 * s, final=full + 1e-4 * s, seed=s) for s in range(seeds)]
    found["adaptive"] = runs
    found["adaptive, learning rate only"] = [path(final=bare + 1e-4 * s, seed=s) for s in range(seeds)]
    return found


def held(paths, seeds=8, complete=True):
    table = rows(paths, 0.25, "fixed 16")
    return [o.held for o in judge(table, savings(paths, 0.25), seeds, complete=complete)]


def test_claims_are_judged_by_their_criteria():
    assert held(arms())[1] is True
    assert held(arms(full=0.4))[1] is False
    assert held(arms(bare=0.2))[1] is False
    assert held(arms(gap=0.5))[0] is False
    assert held(arms(), seeds=3) == [None, None]
    assert held(arms(), complete=False) == [None, None]
    paths = arms()
    paths["adaptive"][0].noise = []
    assert held(paths)[0] is None


def test_the_arms_move_what_they_say():
    found = study.arms(RULES, RULES["fixed"])
    assert list(found)[:2] == ["fixed 16", "fixed 32"]
    for arm, factor in (("adaptive", 1), ("adaptive, learning rate only", 4)):
        trainer = Trainer(make_run(found[arm], 0), found[arm])
        assert trainer.settings(64).lr == pytest.approx(0.2)
        assert trainer.settings(64).half_life == pytest.approx(1600 * factor)
        assert trainer.batch_at(0) == 16


def test_a_tiny_study_runs_resumes_and_draws(tmp_path, monkeypatch):
    short = json.loads(json.dumps(RULES))
    short["recipe"] |= {"options": {"width": 8}, "schedule": {"length": "2560 samples"}}
    short |= {"goal": 2.0, "quick": {"seeds": 2, "fixed": [16, 64]}}
    short["adaptive"]["settle"] = "200 samples"
    monkeypatch.setattr(study, "criteria", lambda name, grid="": short)
    none = catalogue.ADAPTIVE.run(quick=True, out=tmp_path, workers=1, budget=0.0)
    assert none["cells"] == {"complete": 0, "of": 4}
    done = []
    whole = catalogue.ADAPTIVE.run(quick=True, out=tmp_path, workers=1, on_done=done.append)
    assert (len(done), whole["cells"]["complete"]) == (8, 4)
    assert [row["steps"][0] for row in whole["rows"][:2]] == [160, 40]
    assert all(claim["held"] is None for claim in whole["claims"])
    assert catalogue.ADAPTIVE.run(quick=True, out=tmp_path, workers=1)["rows"] == whole["rows"]
    assert png(figure(whole)).startswith(b"\x89PNG")
    assert "adaptive/ema-moved-same" in html(whole)
