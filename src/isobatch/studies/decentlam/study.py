"""isobatch study decentlam: the bias on least squares, digits split by class, and what exchanges cost."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isobatch.report import prepare, write, write_result
from isobatch.studies.claims import as_dict, criteria
from isobatch.studies.decentlam import bias, communication
from isobatch.studies.decentlam.digits import Cell, cells, train_cell, train_cells
from isobatch.studies.decentlam.judge import NAME, judge_claims
from isobatch.studies.decentlam.least_squares import Problem
from isobatch.studies.decentlam.loopback import train_real
from isobatch.studies.decentlam.story import html, picture

REAL = 4


def run(
    *,
    quick: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    budget: float | None = None,
    on_estimate: Callable[[float, int], None] | None = None,
    on_done: Callable[[Any], None] | None = None,
    simulate_nodes: int | None = None,
) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        quick: the small grid of criteria.json.
        out: folder for cells, result.json, picture and page; nothing is kept without it.
        workers: processes for the digits, one a core unless given.
        budget: seconds after which no further digits cell is begun.
        on_estimate: called with seconds (0: unknown) and the number of digits cells.
        on_done: called with each finished cell.
        simulate_nodes: measure the loopback, extrapolate to this many nodes, and do nothing else.

    Returns:
        What goes into result.json.

    Raises:
        InputError: a number of nodes that cannot be simulated.
    """
    began, rules = time.monotonic(), criteria(NAME)
    plan, seeds = rules["quick" if quick else "grid"], rules["seeds"]
    data: dict[str, Any] = {"study": NAME, "title": rules["title"], "quick": quick, "seeds": seeds, "claims": []}
    if simulate_nodes is not None:
        data["communication"] = communication.communication(simulate_nodes)
        data["tables"] = communication.tables(data["communication"])
        if out is not None:
            write_result(prepare(out), data)
        return data
    wanted = cells(plan["digits"], seeds)
    if on_estimate is not None:
        on_estimate(0.0, len(wanted))
    data |= _least_squares(plan, seeds)
    trained = train_cells(
        wanted, out, workers, lambda: budget is not None and time.monotonic() - began > budget, on_done
    )
    data["digits"] = [asdict(cell) for cell in trained]
    data["cells"] = {"complete": len(trained), "of": len(wanted)}
    data["real"] = _real(plan["digits"], quick)
    data["communication"] = communication.communication(1024)
    data["tables"] = communication.tables(data["communication"])
    data["claims"] = as_dict(judge_claims(data))
    if out is not None:
        folder = prepare(out)
        write_result(folder, data)
        write(folder / "decentlam.png", picture(data))
        write(folder / "report.html", html(data))
    return data


def _least_squares(plan: dict[str, Any], seeds: int) -> dict[str, Any]:
    part, rates = plan["least_squares"], plan["rates"]
    problem = Problem(seeds, part["nodes"], part["rows"], part["dimension"])
    return {
        "betas": part["betas"],
        "bias": bias.against_beta(problem, part["betas"]),
        "batches": part["batches"],
        "batch": bias.against_batch(problem, part["batches"], part["noise"]),
        "rates": bias.rates(problem, rates["horizons"], rates["noise"], rates["gammas"]),
    }


def _real(part: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Train on as many real processes as virtual nodes, and compare the two."""
    full = max(part["batches"], key=int)
    epochs, lr = part["batches"][full]
    found = []
    for method in ("decentlam",) if quick else ("dmsgd", "qg", "d2", "decentlam", "pmsgd"):
        batch = int(full) * part["nodes"] // REAL
        cell = Cell(method, REAL, part["graphs"][0], batch, epochs, lr, part["beta"], 1)
        accuracy, loss = train_real(cell)
        virtual = train_cell(cell)
        found.append({
            "method": method, "nodes": REAL, "steps": virtual.steps, "accuracy": accuracy, "loss": loss,
            "virtual accuracy": virtual.accuracy[0], "virtual loss": virtual.loss[0],
        })  # fmt: skip
    return found
