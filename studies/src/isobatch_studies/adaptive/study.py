"""isobatch study adaptive: fixed batches, one that follows the noise scale, and one that leaves the average behind."""

from typing import Any

from isobatch.plan import Recipe
from isobatch_studies.adaptive import late, late_page
from isobatch_studies.adaptive.judging import BARE, FULL, NAME, SMALL, judge, rows, savings
from isobatch_studies.adaptive.page import figure, html
from isobatch_studies.adaptive.paths import Drive, Path, drive, file_name
from isobatch_studies.claims import as_dict, criteria
from isobatch_studies.pages import keep
from isobatch_studies.work import Work


def arms(rules: dict[str, Any], fixed: list[int]) -> dict[str, Recipe]:
    """Return the recipes of the study by arm, the reference first.

    Args:
        rules: the criteria.
        fixed: batches of the fixed arms.

    Returns:
        Arm -> recipe.
    """
    base = Recipe.parse(rules["recipe"])
    found = {SMALL.format(batch): base.at(batch).recipe for batch in fixed}
    values = {**rules["recipe"], "noise": rules["noise"]}
    values["batch"] = {**values["batch"], "adaptive": rules["adaptive"]}
    found[FULL] = Recipe.parse(values)
    found[BARE] = Recipe.parse({**values, "rules": {"average": "keep"}})
    return found


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    part = rules | (rules["quick"] if work.quick else {})
    seeds = part["seeds"]
    recipes = late.arms(rules) if work.grid == late.GRID else arms(rules, part["fixed"])
    work.announce(seeds * len(recipes))
    paths: dict[str, list[Path]] = {}
    for stream, (arm, recipe) in enumerate(recipes.items()):
        jobs = [Drive(arm, recipe, seed, stream, rules["look_every"]) for seed in range(seeds)]
        done = work.results(drive, jobs, name=file_name, read=_read)
        if done is not None:
            paths[arm] = done
    shared = {
        **work.head(NAME, rules),
        "seeds": seeds,
        "cells": {"complete": len(paths), "of": len(recipes)},
    }
    if work.grid == late.GRID:
        drawn, page = late_page.figure, late_page.html
        table = late.rows(paths)
        data = shared | {"why_beside": rules["why_beside"], "rows": table, "beside": late.beside(table, rules)}
        data |= {"claims": as_dict(late.judge(table, seeds))}
    else:
        drawn, page = figure, html
        complete = len(paths) == len(recipes)
        data = shared | _found(paths, rules["goal"], part["fixed"][0], seeds if paths else 0, complete=complete)
    if work.out is not None:
        keep(work.out, data, {"adaptive": drawn(data)}, page(data))
    return data


def _found(paths: dict[str, list[Path]], goal: float, fixed: int, seeds: int, *, complete: bool) -> dict[str, Any]:
    """Return rows, claims and what they rest on, of the grid that asks for savings; its reference is a fixed batch."""
    table, saved = rows(paths, goal, SMALL.format(fixed)), savings(paths, goal)
    return {
        "goal": goal,
        "rows": table,
        "savings": saved,
        "claims": as_dict(judge(table, saved, seeds, complete=complete)),
        "first": {arm: {"batches": found[0].batches, "seen": found[0].seen, "losses": found[0].losses,
                        "noise": found[0].noise} for arm, found in paths.items()},
    }  # fmt: skip


def _read(values: dict[str, Any]) -> Path:
    return Path(**values)
