"""The Adam study: its grid, its resumable runs, its prediction, and how its claims are judged."""

import math

import pytest
import torch

from isobatch import rules
from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.verify import cells
from isobatch.verify.workers import Curve
from isobatch_studies.adam import coordinates
from isobatch_studies.adam import grid as layout
from isobatch_studies.adam.page import figure, html
from isobatch_studies.adam.quadratic import sweep
from isobatch_studies.adam.study import judge_claims
from isobatch_studies.claims import claims, criteria

DIGITS = criteria("adam")["grid"]["digits"]


def row(task, batch, kappa, rule, verdict, predicted=0.0, worst=0.0):
    return {
        "task": task,
        "batch": batch,
        "kappa": kappa,
        "rule": rule,
        "share": 0.9,
        "predicted": predicted,
        "verdicts": {"average": verdict, "raw": verdict},
        "worst": {"average": worst, "raw": worst},
    }


def full(invariant="SAME", kept="DIFFERENT", far="DIFFERENT", large="UNDECIDED"):
    rows = []
    for task, batch, kappa in (("digits", 8, 0.25), ("digits", 8, 16), ("text", 4, 8)):
        rows.append(row(task, batch, kappa, "invariant", invariant))
        rows.append(row(task, batch, kappa, "invariant, EMA unscaled", kept))
    for n in range(6):
        verdict = far if n >= 4 else "SAME"
        rows.append(row("digits", 8, 4 + n, "square root", verdict, predicted=-0.08 * n, worst=0.1 * n))
    steps = (1, 8, "SAME"), (1, 16, "SAME"), (4, 4, "SAME"), (1, 32, large), (4, 8, large)
    return rows + [row("text-short", batch, kappa, "invariant", verdict) for batch, kappa, verdict in steps]


def held(rows, seeds=8):
    return [outcome.held for outcome in judge_claims(rows, seeds)]


def test_claims_are_judged_by_their_criteria():
    assert held(full()) == [True] * 5
    assert held(full(invariant="UNDECIDED")) == [True, False, True, False, True]
    assert held(full(kept="SAME")) == [True, True, True, False, True]
    assert held(full(far="SAME")) == [False, True, True, True, True]
    assert held(full(large="SAME")) == [True, True, True, True, False]
    assert held(full(), seeds=7) == [None] * 5
    assert held([]) == [None] * 5


def test_every_claim_has_its_fixed_id_and_its_source():
    assert list(claims("adam")) == [
        "adam/sqrt-needs-noise",
        "adam/invariant-same",
        "adam/share-predicts-sqrt-error",
        "adam/ema-rule-holds-with-invariant",
        "adam/limit-is-the-step",
    ]
    assert all(claim.source and claim.margin and claim.seeds == 8 for claim in claims("adam").values())


def test_cells_hold_whole_batches_and_at_least_twenty_steps():
    found = layout.cells("digits", DIGITS)
    assert layout.Cell("digits", 8, 16) in found
    assert layout.Cell("digits", 1, 0.25) not in found
    assert all(21555 / cell.target >= 20 for cell in found)


def test_references_of_one_process_differ_in_the_size_of_their_steps_alone():
    grid = criteria("adam")["grid"]["text-short"]
    fine, coarse = (layout.reference("text-short", batch, grid) for batch in (1, 4))
    assert fine.optimizer.lr == pytest.approx(coarse.optimizer.lr / 2)
    assert [beta**4 for beta in fine.optimizer.betas] == pytest.approx(coarse.optimizer.betas)
    assert fine.half_life == pytest.approx(coarse.half_life)
    assert fine.staircase().length == coarse.staircase().length == 4096
    cells = layout.cells("text-short", grid)
    assert {(cell.batch, cell.target) for cell in cells} == {(1, 4), (1, 8), (1, 16), (1, 32), (4, 16), (4, 32)}
    arm = layout.arm(layout.Cell("text-short", 1, 32), "invariant", fine, 10.0)
    assert (arm.optimizer.lr, arm.batch.size) == (pytest.approx(16e-3), 32)


def test_the_runs_of_a_reference_share_their_stops_and_have_orders_of_their_own():
    groups = layout.groups("digits", 8, DIGITS, seeds=2, noise_scale=100.0)
    jobs = [job for group in groups for job in group]
    assert len({job.stops for job in jobs}) == 1
    assert len({(job.arm, job.seed) for job in jobs}) == len(jobs)
    assert len({job.order_seed for job in jobs}) == len(jobs)
    invariant = next(job.recipe for job in jobs if job.arm == "digits B=8 x16 invariant")
    assert invariant.optimizer.name == "invariant-adamw"
    assert invariant.optimizer.lr == pytest.approx(16 * 3e-4)
    assert invariant.half_life == pytest.approx(5542)
    kept = next(job.recipe for job in jobs if job.arm == "digits B=8 x16 invariant, EMA unscaled")
    assert kept.half_life == pytest.approx(16 * 5542)


def test_the_quadratic_confirms_the_predicted_drift_error():
    for found in sweep([0.5, 0.9], [0.25, 4], replicas=200):
        assert found["predicted"] == pytest.approx(rules.drift_error(found["kappa"], found["share"]))
        assert found["square root"] == pytest.approx(found["predicted"], abs=0.03)
        assert abs(found["noise-aware"]) < 0.03
        assert abs(found["invariant"]) < 0.03
        assert abs(found["linear"]) > 0.1


def test_finished_runs_are_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def fake(job):
        trained.append((job.arm, job.seed))
        return Curve(job.arm, job.seed, {"raw": {"loss": [1.0]}}, 1, 0.0)

    monkeypatch.setattr(cells, "train_curve", fake)
    groups = layout.groups("digits", 64, DIGITS, seeds=2, noise_scale=100.0)[:2]
    first = cells.train_all(groups, tmp_path, workers=1)
    assert len(trained) == sum(map(len, groups))
    next((tmp_path / "cells").iterdir()).write_text("{ damaged")
    assert cells.train_all(groups, tmp_path, workers=1) == first
    assert len(trained) == sum(map(len, groups)) + 1
    assert cells.train_all(groups, tmp_path / "other", budget=-1.0) == {}


def test_the_page_holds_claims_and_cells_and_no_network():
    rows = full()
    data = {
        "study": "adam",
        "title": "Adam",
        "rows": rows,
        "claims": [vars(outcome) for outcome in judge_claims(rows, 8)],
        "quadratic": sweep([0.5], [4], replicas=20),
    }
    page = html(data)
    assert "adam/invariant-same" in page
    assert "http" not in page.replace("http-equiv", "")
    assert png(figure(data)).startswith(b"\x89PNG")


def test_a_share_by_coordinate_is_that_of_what_moves_the_loss():
    mean, square = torch.tensor([0.3, 0.0, 0.1]), torch.tensor([0.1, 5.0, 1.0])
    found = coordinates.shares(mean, square)
    weights = [0.09 / 0.1**0.5, 0.0, 0.01]
    shares = [1 - 0.09 / 0.1, 1.0, 1 - 0.01]
    assert found.scalar == pytest.approx(1 - 0.1 / 6.1)
    assert found.weighted == pytest.approx(sum(w * f for w, f in zip(weights, shares, strict=True)) / sum(weights))
    for kappa, error in found.errors.items():
        drift = sum(w / math.sqrt(kappa * (1 - f) + f) for w, f in zip(weights, shares, strict=True)) / sum(weights)
        assert error == pytest.approx(drift - 1)


def test_moments_of_coordinates_are_those_of_single_samples():
    recipe = layout.reference("digits", 1, DIGITS)
    run = make_run(recipe.model_copy(update={"options": {"width": 4}}), 0)
    found = coordinates.measure(run)
    rows = []
    for index in range(len(run.samples)):
        loss = run.step(run.samples[torch.tensor([index])])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(run.model.parameters()))]))
    slow = torch.stack(rows).double()
    assert found.scalar == pytest.approx(coordinates.shares(slow.mean(0), slow.square().mean(0)).scalar, rel=1e-5)
    assert found.weighted == pytest.approx(coordinates.shares(slow.mean(0), slow.square().mean(0)).weighted, rel=1e-4)
