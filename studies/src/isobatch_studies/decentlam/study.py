"""isobatch study decentlam: the bias on least squares, digits split by class, and what exchanges cost."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from isobatch.report import prepare, write_result
from isobatch.verify.cells import hashed
from isobatch_studies.claims import as_dict, criteria
from isobatch_studies.decentlam import bias, communication
from isobatch_studies.decentlam.digits import Cell, cells, train_cell, train_cells
from isobatch_studies.decentlam.judge import NAME, judge_claims
from isobatch_studies.decentlam.least_squares import Problem
from isobatch_studies.decentlam.loopback import train_real
from isobatch_studies.decentlam.page import figure, html
from isobatch_studies.pages import keep
from isobatch_studies.work import Work

REAL = 4


def run(work: Work, *, simulate_nodes: int | None = None) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where the digits are trained and kept, and until when.
        simulate_nodes: measure the loopback, extrapolate to this many nodes, and do nothing else.

    Returns:
        What goes into result.json.

    Raises:
        InputError: a number of nodes that cannot be simulated.
    """
    rules = criteria(NAME)
    plan, seeds = rules["quick" if work.quick else "grid"], rules["seeds"]
    data: dict[str, Any] = {**work.head(NAME, rules), "seeds": seeds, "claims": []}
    if simulate_nodes is not None:
        data["communication"] = communication.communication(simulate_nodes)
        data["tables"] = communication.tables(data["communication"])
        if work.out is not None:
            write_result(prepare(work.out), data)
        return data
    wanted = cells(plan["digits"], seeds)
    work.announce(len(wanted))
    data |= _least_squares(plan, seeds, work)
    trained = train_cells(wanted, work)
    data["digits"] = [asdict(cell) for cell in trained]
    data["cells"] = {"complete": len(trained), "of": len(wanted)}
    data["real"] = _real(plan["digits"], work.quick)
    data["communication"] = communication.communication(1024)
    data["tables"] = communication.tables(data["communication"])
    data["claims"] = as_dict(judge_claims(data))
    if work.out is not None:
        keep(work.out, data, {"decentlam": figure(data)}, html(data))
    return data


@dataclass
class Part:
    """One part of the least-squares figures.

    Args:
        name: bias, batch or rates.
        values: its figures.
    """

    name: str
    values: dict[str, Any]


def least_squares(name: str, plan: dict[str, Any], seeds: int) -> Part:
    """Return one part of the least-squares figures.

    Args:
        name: bias, batch or rates.
        plan: the grid of criteria.json.
        seeds: instances.

    Returns:
        The part.
    """
    part, rates = plan["least_squares"], plan["rates"]
    problem = Problem(seeds, part["nodes"], part["rows"], part["dimension"])
    if name == "bias":
        return Part(name, bias.against_beta(problem, part["betas"]))
    if name == "batch":
        return Part(name, bias.against_batch(problem, part["batches"], part["noise"]))
    return Part(name, bias.rates(problem, rates["horizons"], rates["noise"], rates["gammas"]))


def _least_squares(plan: dict[str, Any], seeds: int, work: Work) -> dict[str, Any]:
    part = plan["least_squares"]
    keys = {"bias": part, "batch": part, "rates": plan["rates"]}
    found = work.results(
        partial(least_squares, plan=plan, seeds=seeds),
        list(keys),
        name=lambda name: hashed(name, keys[name], seeds),
        read=lambda values: Part(**values),
        ends=math.inf,  # seconds, and every claim but one rests on them
        on_done=None,
    )
    return {"betas": part["betas"], "batches": part["batches"], **{one.name: one.values for one in found or ()}}


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
