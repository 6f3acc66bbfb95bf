"""The DecentLaM study: exact figures, digits by class, real against virtual nodes, and how claims are judged."""

import numpy as np
import pytest
from tests.reference.decentralized import LeastSquares, mixing

from isobatch import InputError
from isobatch.decentralized import graphs
from isobatch.report import png
from isobatch_studies import catalogue
from isobatch_studies.claims import claims, criteria
from isobatch_studies.decentlam import bias, communication, study
from isobatch_studies.decentlam.digits import Cell, by_class, cells, steps_of, train_cell
from isobatch_studies.decentlam.judge import LAZY, SMALL, judge_claims
from isobatch_studies.decentlam.least_squares import Problem, train
from isobatch_studies.decentlam.loopback import train_real
from isobatch_studies.decentlam.page import accuracy_table, figure, html

SMALL_GRID = {
    "least_squares": {
        "nodes": 8, "rows": 9, "dimension": 3, "betas": [0.0, 0.5, 0.8, 0.9, 0.95], "batches": [1, 4096], "noise": 5.0,
    },
    "rates": {"horizons": [64, 128], "noise": 1.0, "gammas": [0.004, 0.008]},
    "digits": {
        "nodes": 8, "beta": 0.9, "batches": {"32": [1, 0.02], "179": [2, 0.2]},
        "graphs": ["lazy ring"], "sizes": [16],
    },
}  # fmt: skip


def test_the_problem_is_the_reference_and_its_bias_the_algebra():
    problem, slow = Problem(2, 8, 50, 30), LeastSquares()
    np.testing.assert_allclose(problem.hessian[0], slow.hessian, rtol=1e-12)
    np.testing.assert_allclose(problem.best[0, 0, :, 0], slow.best, rtol=1e-12)
    w, ring = mixing(graphs.build("lazy ring", 8)), graphs.build("lazy ring", 8)
    beta = np.array([0.5, 0.9])
    for name in ("dmsgd", "da", "decentlam"):
        x = train(name, ring, problem.start(2), lambda x, _: problem.gradient(x), 1e-2, beta, 5000)
        wanted = [slow.bias(slow.fixed_point(name, w, 1e-2, b)) for b in beta]
        np.testing.assert_allclose(problem.error(x)[0], wanted, rtol=1e-6)
    assert bias.slope([1, 10], [1, 100]) == pytest.approx(2)


def figures(**changed):
    """Invented figures on which every claim holds."""
    betas = [0.0, 0.5, 0.8, 0.9, 0.95]
    amplified = [[1e-6 / (1 - b) ** 2 for b in betas]] * 5
    table = {name: [row] * 5 for name, row in criteria("decentlam")["table"].items()}
    rates = {"strongly convex": -1.0, "non-convex": -0.5, "bias": 2.0}
    cell = {"graph": "lazy ring", "nodes": 8, "batch": 179, "epochs": 200}
    accuracy = {"decentlam": 96.0, "dmsgd": 86.0, "awc": 85.0, "da": 90.0, "d2": 97.0}
    return {
        "seeds": 5,
        "betas": betas,
        "bias": {
            LAZY: {**table, "dsgd": [[3.02e-3]] * 5},
            SMALL: {"dsgd": [[1e-6]] * 5, **dict.fromkeys(("decentlam", "qg"), [[1e-6] * 5] * 5)}
            | dict.fromkeys(("dmsgd", "awc", "da"), amplified),
        },
        "batch": {"dmsgd": [[0.36, 0.096, 0.079, 0.078]] * 5, "decentlam": [[0.22, 0.017, 0.0039, 0.0031]] * 5},
        "rates": {part: {"decentlam": {"slope": value}} for part, value in rates.items()},
        "digits": [
            {"cell": {**cell, "method": name}, "accuracy": [value + 0.1 * seed for seed in range(5)]}
            for name, value in accuracy.items()
        ],
        **changed,
    }


def held(**changed):
    return [outcome.held for outcome in judge_claims(figures(**changed))]


def test_claims_are_judged_by_their_criteria():
    good = figures()
    assert held() == [True] * 5
    assert held(seeds=4) == [None] * 5
    assert held(digits=[]) == [True, True, True, True, None]
    worse = [
        row if row["cell"]["method"] != "da" else {**row, "accuracy": [95.0, 97.0] * 2 + [96.0]}
        for row in good["digits"]
    ]
    assert held(digits=worse)[4] is False
    grown = {**good["bias"][SMALL], "decentlam": [[1e-6, 1e-6, 1e-6, 1e-6, 2e-6]] * 5}
    assert held(bias={**good["bias"], SMALL: grown})[0] is False
    weak = {**good["bias"][SMALL], "dmsgd": [[1e-6] * 5] * 5}
    assert held(bias={**good["bias"], SMALL: weak})[1] is False
    other = {**good["bias"][LAZY], "da": [[2e-3] * 5] * 5}
    assert held(bias={**good["bias"], LAZY: other})[1] is False
    falls = {**good["batch"], "dmsgd": [[0.36, 0.2, 0.1, 0.078]] * 5}
    assert held(batch=falls)[2] is False
    slow = {**good["rates"], "bias": {"decentlam": {"slope": 1.0}}}
    assert held(rates=slow)[3] is False


def test_every_claim_has_its_fixed_id():
    names = ("bias-beta-independent", "dmsgd-amplifies", "large-batch-floor", "rates", "digits-accuracy")
    assert list(claims("decentlam")) == [f"decentlam/{name}" for name in names]


def test_the_grid_and_the_split_by_class():
    found = cells(criteria("decentlam")["grid"]["digits"], 5)
    assert len(set(found)) == len(found) == 71
    assert {cell.nodes * cell.batch for cell in found if cell.nodes > 8} == {1424, 1408}
    from isobatch.tasks import make_run
    from isobatch_studies.decentlam.digits import RECIPE

    x, y = by_class(make_run(RECIPE, 0).samples, 8)
    assert x.shape == (8, 179, 64)
    assert max(len(part.unique()) for part in y) <= 3
    assert steps_of(found[0], 179) == 200


def test_real_processes_train_the_digits_as_virtual_nodes_do():
    cell = Cell("decentlam", 2, "lazy ring", 100, 2, 0.1, 0.9, 1)
    accuracy, loss = train_real(cell)
    wanted = train_cell(cell)
    assert accuracy == pytest.approx(wanted.accuracy[0], abs=0.6)
    assert loss == pytest.approx(wanted.loss[0], rel=1e-4)


def test_communication_is_fitted_and_extrapolated_with_its_assumptions():
    rows = [
        {"kind": "exchange" if d else "all-reduce", "degree": d, "bytes": s, "seconds": (d or 6) * (1e-4 + s / 1e9)}
        for s in (1e4, 1e6, 1e7)
        for d in (1, 2, 0)
    ]
    found = communication.communication(1024, rows)
    assert found["link"]["alpha"] == pytest.approx(1e-4)
    assert found["link"]["bandwidth"] == pytest.approx(1e9)
    assert {row["nodes"] for row in found["extrapolated"]["fitted loopback"]} == {8, 64, 256, 1024}
    tables = communication.tables(found)
    assert tables[-1]["title"] == "assumptions"
    assert any("no congestion" in row[1] for row in tables[-1]["rows"])
    for nodes in (2, 100_000):
        with pytest.raises(InputError, match="simulate-nodes"):
            communication.communication(nodes, rows)


@pytest.mark.slow
def test_a_small_study_from_end_to_end(tmp_path, monkeypatch):
    """Everything but the loopback's timings; a second call reads what the first one kept."""
    rules = {**criteria("decentlam"), "quick": SMALL_GRID, "seeds": 2}
    monkeypatch.setattr(study, "criteria", lambda _: rules)
    rows = [{"kind": "exchange", "degree": 1, "bytes": s, "seconds": 1e-4 + s / 1e9} for s in (1e4, 1e6)]
    monkeypatch.setattr(communication, "measure", lambda: rows)
    monkeypatch.setattr(study, "train_real", lambda cell: (10.0, 2.3))
    monkeypatch.setattr(study.bias, "against_beta", lambda problem, betas: figures()["bias"])
    monkeypatch.setattr(study.bias, "against_batch", lambda *_: {n: [r[0][:2]] for n, r in figures()["batch"].items()})
    monkeypatch.setattr(study.bias, "rates", lambda *_: figures()["rates"])
    few = [cell for cell in cells(SMALL_GRID["digits"], 2) if cell.method in ("decentlam", "pmsgd-lars")]
    monkeypatch.setattr(study, "cells", lambda *_: few)
    done = []
    data = catalogue.DECENTLAM.run(quick=True, out=tmp_path, workers=1, on_done=done.append)
    assert data["cells"] == {"complete": len(done), "of": len(done)}
    assert [claim["held"] for claim in data["claims"]] == [None] * 5
    assert (tmp_path / "result.json").exists()
    assert png(figure(data)).startswith(b"\x89PNG")
    assert "QG-DmSGD has the same independence" in html(data)
    assert accuracy_table(data)[0][0] == "method"
    kept = len(list((tmp_path / "cells").iterdir()))
    again = catalogue.DECENTLAM.run(quick=True, out=tmp_path, workers=1, budget=0)
    assert again["digits"] == data["digits"]
    assert len(list((tmp_path / "cells").iterdir())) == kept
