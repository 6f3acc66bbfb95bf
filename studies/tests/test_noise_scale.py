"""The noise-scale study: its grid, how its claims are judged, and one tiny run of the whole of it."""

import json
import math
import re
from dataclasses import asdict

import pytest
import torch

from isobatch.critical import Goal, Point, Sweep, fit
from isobatch.plan import Recipe
from isobatch.tasks import make_run
from isobatch.train import Trainer
from isobatch_studies import catalogue
from isobatch_studies.claims import criteria
from isobatch_studies.noise_scale import grid as layout
from isobatch_studies.noise_scale import looks, study
from isobatch_studies.noise_scale.judging import judge, largest_ratio, row
from isobatch_studies.noise_scale.page import figures, html, table
from isobatch_studies.noise_scale.probing import NoiseCurve, NoiseProbe, drawn, probe

RULES = criteria("noise-scale")
DOMAIN = layout.domains(RULES["grid"])[0]


def reading(seed=0, scale=100.0, growth=2.0, label="x", bad=()):
    """Noise scale growing from scale to growth*scale while the loss falls from 2 to 1."""
    values = [2 - k / 11 for k in range(12)]
    scales = [scale * growth ** (2 - value) for value in values]
    good = [k not in bad for k in range(12)]
    return NoiseCurve(label, seed, 8, list(range(1, 13)), values, scales, [s / 2 for s in scales],
                   [2 * s for s in scales], good)  # fmt: skip


def swept(critical=100.0, odd=1.0, left=()):
    """A sweep on the hyperbola; odd seeds have another critical batch."""
    points, batches = [], (8, 32, 128, 512)
    for b in batches:
        seeds = tuple(200 * (1 + critical * (odd if seed % 2 else 1) / b) for seed in range(4))
        points.append(Point(b, 0.1, math.exp(sum(map(math.log, seeds)) / 4), 0.01, seeds, False))
    made = fit([p.batch for p in points], [p.steps for p in points])
    goals = tuple(Goal(goal, tuple(points), (), made, "") for goal in (1.0, 0.3))
    return Sweep(DOMAIN.recipe, "loss", goals, 4, (), left, 1.0)


def made(scale=100.0, growth=2.0, critical=100.0, odd=1.0, **more):
    found = swept(critical, odd)
    return row(DOMAIN, found, layout.nearest(found), [reading(seed, scale, growth, **more) for seed in range(4)])


def held(rows, beside=None, seeds=4):
    rows = [{**found, "domain": f"domain {index}"} for index, found in enumerate(rows)]
    return [found.held for found in judge(rows, beside or {}, seeds)]


def test_a_row_knows_start_average_and_ratio():
    found = made(scale=100.0, growth=2.0, critical=150.0)
    assert found["critical_average"]["value"] == pytest.approx(150, rel=1e-3)
    assert found["at"]["batch"] == 128
    assert found["simple_start"]["value"] == pytest.approx(100)
    mean = sum(100 * 2 ** (k / 11) for k in range(12)) / 12
    assert found["simple_average"]["value"] == pytest.approx(mean)
    assert found["ratio"] == pytest.approx(mean / 150, rel=1e-3)
    assert found["rise"]["value"] == pytest.approx(2)
    assert found["calibrated"] == pytest.approx(1, rel=1e-3)
    json.dumps(found)


def test_claims_are_judged_by_their_criteria():
    assert held([made(), made()])[:3] == [True, True, True]
    assert held([made(), made(scale=2000.0)])[0] is False
    assert held([made(), made(odd=3.0)])[1] is False
    assert held([made(), made(growth=0.5)])[2] is False
    unread = row(DOMAIN, swept(), None, None)
    assert unread["complete"] is False
    assert held([made(), unread])[:3] == [None, None, None]
    assert held([made(scale=2000.0), unread])[0] is False
    assert held([made()], seeds=2) == [None] * 5


def test_measurements_that_are_not_identified_are_left_out_and_too_few_leave_no_value():
    few = made(bad=(3, 5, 7))
    assert few["simple_average"] is not None
    none = made(bad=(3, 5, 7, 8, 9))
    assert (none["simple_average"], none["ratio"], none["rise"]) == (None, None, None)
    assert made(bad=(0,))["simple_start"] is None


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_one_stop_less_is_told_where_it_adds_a_seed_and_the_verdicts_least_stays():
    few = made(bad=(3, 5, 7, 8, 9)) | {"domain": "few"}
    judged, less, other = cells(looks.stops(json.loads(json.dumps({"rows": [few, made()]}))))
    assert judged == ["few", "8", "0 of 4", "no value", "", ""]
    mean = sum(100 * 2 ** (k / 11) for k in range(12) if k not in (3, 5, 7, 8, 9)) / 7
    assert less == ["few", "7", "4 of 4", f"{mean:.3g} [{mean:.3g}, {mean:.3g}]", f"{mean / 100:.2f}", "1.00"]
    assert other[:3] == ["digits", "8", "4 of 4"]
    assert looks.stops(None) == looks.fits({"rows": []}) == "No run is complete.\n"


def test_what_seeds_alone_leave_open_is_told_beside_what_the_batches_do():
    def told(*factors):
        sweep, batches = [], (8, 32, 128, 512)
        for b, factor in zip(batches, factors, strict=True):
            seeds = tuple(197.3 * factor * (1 + 97.3 / b) * (1 + 0.001 * seed) for seed in range(4))
            sweep.append(Point(b, 0.1, math.exp(sum(map(math.log, seeds)) / 4), 0.01, seeds, False))
        fitted = fit(batches, [point.steps for point in sweep])
        goal = {"goal": 0.3, "points": [vars(p) for p in sweep], "fit": json.loads(json.dumps(asdict(fitted)))}
        (cell,) = cells(looks.fits({"rows": [{"domain": "x", "goals": [goal]}]}))
        assert cell[:3] == ["x", "0.3", "4"]
        return [[float(number) for number in re.findall(r"[0-9.]+(?:e\+\d+)?", text)] for text in cell[3:]]

    (value, low, high), alone, (residual,) = told(1, 1, 1, 1)
    assert (value, low, high, residual) == (97.3, 97.3, 97.3, 0)
    assert alone == pytest.approx([97.3] * 3, rel=0.01)
    (_, low, high), (_, few, many), (residual,) = told(1.2, 0.9, 0.9, 1.2)
    assert high > 2 * low
    assert many < 1.01 * few
    # logs of the factors are off their mean by .144; a bend takes little of it, n - 2 counts the rest
    assert 12 < residual < 24


def test_groups_are_compared_at_equal_loss():
    groups = {"a": [reading(scale=100.0)], "b": [reading(scale=149.0)], "c": [reading(scale=110.0)]}
    found = largest_ratio(groups)
    assert found is not None
    assert found[0] == pytest.approx(1.49, rel=1e-6)
    assert found[1] == "a and b"
    assert held([made()], {"widths": groups, "temperature": groups})[3:] == [True, True]
    groups["b"] = [reading(scale=250.0)]
    assert held([made()], {"widths": groups, "temperature": groups})[3:] == [False, False]
    assert largest_ratio({"a": groups["a"]}) is None


def test_the_probes_hold_what_the_claims_take():
    known = layout.domains(RULES["grid"])
    beside = layout.beside(RULES["grid"], known, 4, 12)
    assert {p.recipe.options["width"] for p in beside["widths"]} == {24, 48, 96}
    heats = {p.recipe.optimizer.lr / p.recipe.batch.size for p in beside["temperature"]}
    assert len(heats) == 1
    ends = {p.steps[-1] * p.recipe.batch.size for p in beside["temperature"]}
    assert ends == {4800}
    assert all(len(p.steps) == 12 for p in beside["temperature"])
    for domain in known:
        run = make_run(domain.recipe, 0)
        assert len(run.samples) >= domain.chunk * domain.chunks * (0.5 if domain.name == "text" else 1)
        assert domain.metric in run.evaluate()


@pytest.mark.parametrize("task", ["digits", "a2c-cartpole"])
def test_measuring_does_not_disturb_the_run(task):
    recipe = Recipe.parse({"task": task, "batch": {"size": 20}, "options": {"width": 8},
                           "optimizer": {"name": "sgd", "lr": 0.01}, "schedule": {"length": "20 samples"}})  # fmt: skip
    job = NoiseProbe("x", recipe, 0, (2, 4, 6), 10, 8, "loss")
    found = probe(job)
    alone = Trainer(make_run(recipe, 0), recipe, order_seed=0)
    for _ in range(6):
        alone.step()
    assert found.values[-1] == alone.run.evaluate()["loss"]
    assert found.steps == [2, 4, 6]
    parts = drawn(alone.run, 10, 8, 3)
    again = drawn(alone.run, 10, 8, 3)
    assert len(parts) == 8
    assert all(torch.equal(a[0], b[0]) for a, b in zip(parts, again, strict=True))


TINY = {
    "seeds": 2,
    "domains": {
        "digits": {
            "recipe": {"task": "digits", "batch": {"size": 16}, "options": {"width": 8},
                       "optimizer": {"name": "sgd", "lr": 0.4}},
            "unit": "images", "metric": "loss", "goals": [2.0, 1.6], "batches": [8, 32, 128, 512], "limit": 120,
            "chunk": 16, "chunks": 32,
        }
    },
    "widths": None,
    "temperature": {"domain": "digits", "batches": [4, 16], "lr": 0.05, "samples": 480},
}  # fmt: skip


@pytest.mark.slow
def test_a_tiny_study_runs_resumes_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "criteria", lambda name, grid="": {**RULES, "quick": TINY})
    done = []
    none = catalogue.NOISE_SCALE.run(quick=True, out=tmp_path, workers=1, budget=0.0)
    assert none["cells"] == {"complete": 0, "of": 1}
    assert all(claim["held"] is None for claim in none["claims"])
    whole = catalogue.NOISE_SCALE.run(quick=True, out=tmp_path, workers=1, on_done=done.append)
    assert whole["cells"] == {"complete": 1, "of": 1}
    assert whole["rows"][0]["critical_average"] is not None
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    again = catalogue.NOISE_SCALE.run(quick=True, out=tmp_path, workers=1)
    assert cells == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert again["rows"] == whole["rows"]
    assert (tmp_path / "scales.png").read_bytes().startswith(b"\x89PNG")
    assert "noise-scale/batch-independent" in (tmp_path / "report.html").read_text()


def test_the_page_holds_table_claims_and_pictures():
    rows = [made(), row(DOMAIN, swept(), None, None)]
    data = {"study": "noise-scale", "title": "Noise", "rows": rows, "claims": [vars(o) for o in judge(rows, {}, 4)]}
    cells = table(data)
    assert cells[1][3].startswith("100 [")
    assert cells[2][5] == "no value"
    assert "noise-scale/within-order-of-magnitude" in html(data)


def test_every_domain_that_is_drawn_is_named():
    whole = made() | {"domain": "whole"}
    known = whole["simple_average"]
    rows = [whole | {"simple_start": known}, whole | {"domain": "early", "simple_start": known, "simple_average": None}]
    drawn = figures({"rows": [*rows, whole | {"domain": "none", "simple_start": None, "simple_average": None}]})
    (axes,) = drawn["scales"].axes
    assert axes.get_legend_handles_labels()[1] == ["within a factor of ten", "whole", "early, start only"]
