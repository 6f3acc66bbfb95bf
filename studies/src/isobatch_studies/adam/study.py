"""isobatch study adam: reference batch x kappa, rules as columns, and what the noise share predicts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from scipy import stats

from isobatch.executors import map_jobs
from isobatch.plan import Recipe
from isobatch.report import prepare, write
from isobatch.tasks import LOSS
from isobatch.verify.judging import judge
from isobatch.verify.workers import Curve
from isobatch_studies.adam import grid as layout
from isobatch_studies.adam.further import judge_claims as further
from isobatch_studies.adam.page import figure, html
from isobatch_studies.adam.quadratic import sweep
from isobatch_studies.adam.shares import Shares, measure_shares, shares_name
from isobatch_studies.claims import Finding, as_dict, claims, criteria, outcome
from isobatch_studies.pages import keep
from isobatch_studies.teachers.rows import worst
from isobatch_studies.work import Work

NAME = "adam"
_SAME, _DIFFERENT = "SAME", "DIFFERENT"
_ERROR, _RANK, _CELLS = 0.25, 0.8, 6


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    plan, seeds = rules["quick" if work.quick else "grid"], rules["seeds"]
    tasks = [task for task in plan if task != "quadratic"]
    references = [(task, batch) for task in tasks for batch in plan[task]["batches"]]
    recipes = [layout.reference(task, batch, plan[task]) for task, batch in references]
    shares = dict(zip(references, _measured(recipes, work), strict=True))
    groups = []
    # the largest reference batches take the fewest steps: a budget then judges the most cells
    for task, batch in sorted(references, key=lambda reference: -reference[1]):
        groups += layout.groups(task, batch, plan[task], seeds, shares[task, batch].noise_scale)
    work.announce(sum(map(len, groups)))
    curves = work.train(groups)
    listed = [cell for task in tasks for cell in layout.cells(task, plan[task])]
    arms = [(cell, [rule for rule in (*layout.RULES, layout.HOLD) if cell.label(rule) in curves]) for cell in listed]
    wanted = sum(len(plan[cell.task].get("rules", layout.RULES)) for cell in listed)
    rows = [row for cell, found in arms if found for row in _rows(cell, found, curves, shares)]
    part = plan.get("quadratic", {"shares": [], "kappas": [], "replicas": 1})
    data = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "cells": {"complete": len(rows), "of": wanted},
        "rows": rows,
        "shares": {f"{task} B={batch}": asdict(found) for (task, batch), found in shares.items()},
        "quadratic": sweep(part["shares"], part["kappas"], part["replicas"]),
        "claims": as_dict(further(rows, seeds, work.grid) if work.grid else judge_claims(rows, seeds)),
    }
    if work.out is not None:
        keep(work.out, data, {"verdicts": figure(data)}, html(data))
    return data


def _measured(recipes: list[Recipe], work: Work) -> list[Shares]:
    """Measure the noise shares of the references, or read what an earlier call measured."""
    files = [prepare(work.out / "cells") / shares_name(recipe) if work.out else None for recipe in recipes]
    found = {n: Shares.read(file) for n, file in enumerate(files) if file is not None and file.exists()}
    missing = [n for n in range(len(recipes)) if n not in found]
    measure = partial(measure_shares, seeds=2)
    wanted = [recipes[n] for n in missing]
    for n, made in zip(missing, map_jobs(measure, wanted, workers=work.workers, executor=work.executor), strict=True):
        found[n] = made
        file = files[n]
        if file is not None:
            write(file, json.dumps(asdict(made)))
    return [found[n] for n in range(len(recipes))]


def _rows(
    cell: layout.Cell, rules: list[str], curves: dict[str, list[Curve]], shares: dict[tuple[str, int], Shares]
) -> list[dict[str, Any]]:
    arms = {"reference": curves[f"{cell.task} B={cell.batch} reference"]}
    arms |= {rule: curves[cell.label(rule)] for rule in rules}
    stops = len(arms["reference"][0].values["raw"]["loss"])
    table = judge(arms, tuple(range(2, stops, 2)), {"loss": LOSS})
    found = shares[cell.task, cell.batch]
    return [
        {
            "task": cell.task,
            "batch": cell.batch,
            "kappa": cell.kappa,
            "rule": rule,
            "share": round(found.mean, 4),
            "predicted": round(found.drift_error(cell.kappa), 4),
            "verdicts": {model: str(test.verdict) for model, test in tests.items()},
            "worst": {model: round(test.worst, 4) for model, test in tests.items()},
            "worst_per_seed": {
                model: [
                    round(worst(one, other, model), 5) for one, other in zip(arms[rule], arms["reference"], strict=True)
                ]
                for model in tests
            },
        }
        for rule, tests in table.items()
    ]


def judge_claims(rows: list[dict[str, Any]], seeds: int) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: one a cell and rule.
        seeds: that were run.

    Returns:
        Outcomes in the order of criteria.json; None where the grid lacks the cells.
    """
    known = claims(NAME)
    roots = [r for r in rows if r["rule"] == "square root" and r["kappa"] > 1 and r["task"] in ("digits", "text")]
    return [
        outcome(known["adam/sqrt-needs-noise"], seeds, *_needs_noise(roots)),
        outcome(known["adam/invariant-same"], seeds, *_invariant(rows)),
        outcome(known["adam/share-predicts-sqrt-error"], seeds, *_predicts(roots)),
        outcome(known["adam/ema-rule-holds-with-invariant"], seeds, *_average(rows)),
        outcome(known["adam/limit-is-the-step"], seeds, *_step(rows)),
    ]


def _needs_noise(roots: list[dict[str, Any]]) -> tuple[bool | None, str]:
    far = [row for row in roots if abs(row["predicted"]) >= _ERROR]
    wrong = [row for row in far if row["verdicts"]["average"] != _DIFFERENT]
    text = f"{len(far)} cells with a predicted drift error of 25% or more, {len(far) - len(wrong)} of them DIFFERENT"
    return (not wrong if far else None), text


def _predicts(roots: list[dict[str, Any]]) -> tuple[bool | None, str]:
    if len(roots) < _CELLS:
        return None, f"{len(roots)} cells of the {_CELLS} that the criterion takes"
    rank = stats.spearmanr([abs(r["predicted"]) for r in roots], [abs(r["worst"]["average"]) for r in roots]).statistic
    return bool(rank >= _RANK), f"Spearman {rank:.3f} over {len(roots)} cells"


def _pick(rows: list[dict[str, Any]], rule: str, cells: Sequence[tuple[str, int, float]]) -> list[str] | None:
    found = {(r["task"], r["batch"], r["kappa"]): r["verdicts"]["average"] for r in rows if r["rule"] == rule}
    return [found[cell] for cell in cells] if all(cell in found for cell in cells) else None


def _invariant(rows: list[dict[str, Any]]) -> tuple[bool | None, str]:
    cells = [("digits", 8, 0.25), ("digits", 8, 16), ("text", 4, 8)]
    verdicts = _pick(rows, "invariant", cells)
    if verdicts is None:
        return None, "the grid lacks a cell that the criterion takes"
    text = ", ".join(f"{t} {b} x{k:g}: {v}" for (t, b, k), v in zip(cells, verdicts, strict=True))
    return all(v == _SAME for v in verdicts), text


def _average(rows: list[dict[str, Any]]) -> tuple[bool | None, str]:
    cells = [("digits", 8, 16), ("text", 4, 8)]
    scaled, kept = (_pick(rows, rule, cells) for rule in ("invariant", "invariant, EMA unscaled"))
    if scaled is None or kept is None:
        return None, "the grid lacks a cell that the criterion takes"
    held = all(v == _SAME for v in scaled) and all(v == _DIFFERENT for v in kept)
    return held, f"with the rule {scaled}, without it {kept} (digits x16, text x8)"


def _step(rows: list[dict[str, Any]]) -> tuple[bool | None, str]:
    near = [("text-short", 1, 8), ("text-short", 1, 16), ("text-short", 4, 4)]
    far = [("text-short", 1, 32), ("text-short", 4, 8)]
    verdicts = _pick(rows, "invariant", near), _pick(rows, "invariant", far)
    if verdicts[0] is None or verdicts[1] is None:
        return None, "the grid lacks a cell that the criterion takes"
    held = all(v == _SAME for v in verdicts[0]) and not any(v == _SAME for v in verdicts[1])
    found = zip(near + far, verdicts[0] + verdicts[1], strict=True)
    return held, ", ".join(f"batch {b} x{k:g} = {b * k:g}: {v}" for (_, b, k), v in found)
