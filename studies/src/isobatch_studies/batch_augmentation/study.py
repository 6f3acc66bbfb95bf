"""isobatch study batch-augmentation: M views of each sample in one update, and the same images spent otherwise."""

from typing import Any

import numpy as np

from isobatch.verify.cells import hashed, name
from isobatch.verify.workers import Curve, Job
from isobatch_studies.batch_augmentation import grid as layout
from isobatch_studies.batch_augmentation import variance
from isobatch_studies.batch_augmentation.page import figure, html
from isobatch_studies.claims import Finding, as_dict, claims, criteria, outcome
from isobatch_studies.folds import chosen
from isobatch_studies.pages import keep
from isobatch_studies.paired import MeanInterval, interval, last
from isobatch_studies.work import Work

NAME = "batch-augmentation"
CHANCE = 10.0


def run(work: Work) -> dict[str, Any]:
    """Run the study, or take up again where it stopped.

    Args:
        work: which grid, where runs are trained and kept, and until when.

    Returns:
        What goes into result.json.
    """
    rules = criteria(NAME, work.grid)
    small = rules["quick"] if work.quick else rules
    seeds = small["seeds"]
    select = layout.selection(rules, small["selection_seeds"])
    work.announce(len(select) + seeds * (len(rules["views"]) + len(layout.controls(rules)) + 1))
    rates, runs, measured = {}, {}, []
    tried = work.train([select])
    if tried:
        rates = chosen(tried, rules["rates"], lambda rate: f"select {rate:g}")
        if not work.grid:
            measured = _measured(variance.jobs(rates, seeds), work)
        runs = work.train(layout.reported(rules, rates, seeds))
    row = _accuracy(rules, runs) if runs else None
    law = _law(rules, measured) if measured else None
    data = {
        **work.head(NAME, rules),
        "seeds": row["seeds"] if row else 0,
        "rates": {str(fold): rate for fold, rate in rates.items()},
        "accuracy": row,
        "variance": law,
        "claims": as_dict(judge_long(row) if work.grid else judge_claims(row, law)),
    }
    if work.out is not None:
        keep(work.out, data, {"views": figure(data)}, html(data))
    return data


def _measured(groups: list[list[Job]], work: Work) -> list[Curve]:
    """Measure the two terms of the variance in every group; nothing where the time ended before the last."""
    found = [
        work.results(
            variance.measured,
            group,
            name=lambda job: hashed("variance", name(job)),
            read=lambda values: Curve(**values),
        )
        for group in groups
    ]
    return [] if None in found else [one for group in found for one in group or ()]


def _accuracy(rules: dict[str, Any], runs: dict[str, list[Curve]]) -> dict[str, Any]:
    arms = [layout.views_arm(m) for m in rules["views"]] + list(layout.controls(rules))
    final = {arm: [last(curve, "accuracy", CHANCE) for curve in runs[arm]] for arm in arms}
    base = layout.views_arm(1)
    gains = {arm: interval(np.subtract(final[arm], final[base]).tolist()) for arm in arms if arm != base}
    updates = {arm: [_updates(curve, rules) for curve in runs[arm]] for arm in arms[: len(rules["views"])]}
    saved = {arm: interval(np.subtract(updates[base], found).tolist()) for arm, found in updates.items() if arm != base}
    return {
        "seeds": len(final[base]),
        "values": {arm: [round(v, 3) for v in found] for arm, found in final.items()},
        "means": {arm: interval(found).to_dict() for arm, found in final.items()},
        "gains": {arm: found.to_dict() for arm, found in gains.items()},
        "updates": {arm: interval(found).to_dict() for arm, found in updates.items()},
        "saved": {arm: found.to_dict() for arm, found in saved.items()},
        "steps": {arm: runs[arm][0].steps for arm in arms},
        "curves": {
            arm: np.mean([curve.values["raw"]["validation_accuracy"] for curve in runs[arm]], axis=0).round(3).tolist()
            for arm in updates
        },
    }


def _updates(curve: Curve, rules: dict[str, Any]) -> int:
    series = curve.values["raw"]["validation_accuracy"]
    reached = [place for place, value in enumerate(series, start=1) if value >= rules["target"]]
    return 10 * (reached[0] if reached else len(series) + 1)


def _law(rules: dict[str, Any], measured: list[Curve]) -> dict[str, Any]:
    values = [{key: found[0] for key, found in curve.values["raw"].items()} for curve in measured]
    apart, relative = {}, {}
    for m in rules["views"]:
        ratios = [v[f"M={m}"] / v[f"law {m}"] if v[f"law {m}"] > 0 else np.nan for v in values]
        apart[str(m)] = interval(np.log(ratios).tolist()).to_dict()
        relative[str(m)] = {
            "measured": interval([v[f"M={m}"] / v["M=1"] for v in values]).to_dict(),
            "law": round(float(np.mean([v[f"law {m}"] / v["law 1"] for v in values])), 4),
        }
    return {
        "seeds": len(values),
        "share": interval([v["share"] for v in values]).to_dict(),
        "pays": sorted(int(v["pays"]) for v in values),
        "log_ratio": apart,
        "relative": relative,
    }


def judge_claims(row: dict[str, Any] | None, law: dict[str, Any] | None) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        row: accuracies and updates, None where no seed is complete.
        law: the variances, None where none was measured.

    Returns:
        Outcomes in the order of criteria.json.
    """
    known = claims(NAME)

    def above(claim: str, key: str, views: tuple[int, ...], unit: str) -> Finding:
        if row is None:
            return outcome(known[claim], 0, None, "not run")
        found = {m: MeanInterval(**row[key][layout.views_arm(m)]) for m in views}
        text = ", ".join(f"M = {m}: {gap}" for m, gap in found.items())
        return outcome(known[claim], row["seeds"], all(gap.low > 0 for gap in found.values()), f"{text} {unit}")

    ids = list(known)
    found = [
        above(ids[0], "gains", (2, 4, 8, 16), "points"),
        above(ids[1], "saved", (4, 8, 16), "updates fewer"),
    ]
    if law is None:
        return [*found, outcome(known[ids[2]], 0, None, "not run")]
    apart = {m: MeanInterval(**part) for m, part in law["log_ratio"].items()}
    inside = all(gap.low > -0.1 and gap.high < 0.1 for gap in apart.values())
    text = "log of measured over law " + ", ".join(f"M = {m}: {gap}" for m, gap in apart.items())
    return [*found, outcome(known[ids[2]], law["seeds"], inside, text)]


def judge_long(row: dict[str, Any] | None) -> list[Finding]:
    """Compute `held` of every claim of the grid "long".

    Args:
        row: accuracies, None where no seed is complete.

    Returns:
        Outcomes in the order of criteria.json.
    """
    gain, worth = known = claims(NAME, "long")
    if row is None:
        return [outcome(claim, 0, None, "not run") for claim in known.values()]
    four, more = layout.views_arm(4), layout.CONTROLS[0]
    over_one = MeanInterval(**row["gains"][four])
    apart = interval(np.subtract(row["values"][four], row["values"][more]).tolist())
    steps = {arm: f"{row['steps'][arm]:,}" for arm in (layout.views_arm(1), four, more)}
    said = f"M = 4 minus M = 1, {steps[four]} updates each, in points: {over_one}"
    other = f"M = 4 in {steps[four]} updates minus M = 1 in {steps[more]}, in points: {apart}"
    return [
        outcome(known[gain], row["seeds"], over_one.low > 0, said),
        outcome(known[worth], row["seeds"], apart.low > -0.5, other),
    ]
