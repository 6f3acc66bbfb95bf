"""What the study's runs say: a row of the table for each domain, and the claims."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from isobatch.critical import Point, Sweep, fit
from isobatch.errors import InputError
from isobatch_studies.claims import Finding, all_hold, claims, outcome
from isobatch_studies.noise_scale.grid import Domain
from isobatch_studies.noise_scale.probing import NoiseCurve

NAME, LEAST = "noise-scale", 8


def row(domain: Domain, found: Sweep, point: Point | None, readings: Sequence[NoiseCurve] | None) -> dict[str, Any]:
    """Return a domain's row of the table.

    Args:
        domain: the domain.
        found: its sweep.
        point: where it was followed, None without a fit.
        readings: by seed, None where they are missing.

    Returns:
        Plain values.
    """
    starts = [_first(reading) for reading in readings or ()]
    averages = [average(reading) for reading in readings or ()]
    made: dict[str, Any] = {
        "domain": domain.name,
        "unit": domain.unit,
        "optimizer": domain.recipe.optimizer.name,
        "complete": not found.left and readings is not None,
        "critical_start": _fitted(found, 0),
        "critical_average": _fitted(found, -1),
        "simple_start": over_seeds(starts),
        "simple_average": over_seeds(averages),
        "at": None if point is None else {"batch": point.batch, "lr": point.lr, "steps": point.steps},
        "goals": [asdict(goal) for goal in found.goals],
        "readings": [asdict(reading) for reading in readings or ()],
    }
    made["ratio"] = _ratio(made)
    made["calibrated"] = calibrated(found.goals[-1].points, averages)
    made["rise"] = over_seeds([_rise(reading) for reading in readings or ()])
    return made


def _fitted(found: Sweep, index: int) -> dict[str, Any] | None:
    made = found.goals[index].fit
    if made is None:
        return None
    low, high = made.critical.low, made.critical.high
    open_end = None if math.isinf(high) else high
    return {"value": made.critical.value, "low": low, "high": open_end, "identified": made.identified}


def _first(reading: NoiseCurve) -> float | None:
    good = bool(reading.identified and reading.identified[0])
    return reading.scales[0] if good else None


def average(reading: NoiseCurve, least: int = LEAST) -> float | None:
    """Return the mean noise scale over the identified stops of a run.

    Args:
        reading: of the run.
        least: identified stops that it takes.

    Returns:
        In samples; None where fewer are identified.
    """
    known = [scale for _, scale in reading.usable()]
    return float(np.mean(known)) if len(known) >= least else None


def _rise(reading: NoiseCurve) -> float | None:
    known = [scale for _, scale in reading.usable()]
    return known[-1] / known[0] if len(known) >= LEAST else None


def over_seeds(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return the geometric mean over seeds with its 95% interval by Student's t.

    Args:
        values: one for each seed.

    Returns:
        "value", "low" and "high"; None where a seed has no value, or there is one seed only.
    """
    if len(values) < 2 or any(value is None for value in values):
        return None
    logs = np.log(np.array(values, dtype=float))
    half = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    centre = float(logs.mean())
    return {"value": math.exp(centre), "low": math.exp(centre - half), "high": math.exp(centre + half)}


def _ratio(made: dict[str, Any]) -> float | None:
    critical, simple = made["critical_average"], made["simple_average"]
    if critical is None or simple is None or not critical["identified"]:
        return None
    return simple["value"] / critical["value"]


def calibrated(points: Sequence[Point], averages: Sequence[float | None]) -> float | None:
    """Return the predicted over the measured B_crit of the odd seeds, calibrated on the even ones.

    Args:
        points: of the sweep at its harder goal.
        averages: noise scale of each seed.

    Returns:
        The ratio; None where there is no fit, or a seed has no noise scale.
    """
    if len(points) < 3 or not averages or any(value is None for value in averages) or len(averages) < 2:
        return None
    halves = []
    for parity in (0, 1):
        steps = [math.exp(float(np.mean(np.log(point.seeds[parity::2])))) for point in points]
        try:
            critical = fit([point.batch for point in points], steps).critical.value
        except InputError:
            return None
        simple = math.exp(float(np.mean(np.log(np.array(averages[parity::2], dtype=float)))))
        halves.append((critical, simple))
    (critical, simple), (measured, other) = halves
    return critical / simple * other / measured


def largest_ratio(groups: dict[str, list[NoiseCurve]], points: int = 5) -> tuple[float, str] | None:
    """Return the largest ratio of noise scales at equal loss between two groups of runs.

    Args:
        groups: label -> readings by seed.
        points: losses at which they are compared, over what all runs pass through.

    Returns:
        The ratio (at least 1) and the two groups, None where their losses do not meet.
    """
    curves = {name: [sorted(reading.usable()) for reading in readings] for name, readings in groups.items()}
    every = [curve for found in curves.values() for curve in found]
    if len(curves) < 2 or any(len(curve) < 2 for curve in every):
        return None
    low, high = max(curve[0][0] for curve in every), min(curve[-1][0] for curve in every)
    if low >= high:
        return None
    losses = np.linspace(low, high, points)
    logs = {name: np.mean([_at(losses, curve) for curve in found], axis=0) for name, found in curves.items()}
    gap, pair = max((float(np.abs(logs[a] - logs[b]).max()), f"{a} and {b}") for a, b in combinations(logs, 2))
    return math.exp(gap), pair


def _at(losses: np.ndarray, curve: list[tuple[float, float]]) -> np.ndarray:
    """Log noise scale at given losses."""
    known, scales = np.array(curve).T
    return np.interp(losses, known, np.log(scales))


def judge(rows: Sequence[dict[str, Any]], beside: dict[str, dict[str, list[NoiseCurve]]], seeds: int) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: the table.
        beside: "widths" and "temperature" -> label -> readings by seed.
        seeds: that were run.

    Returns:
        Outcomes in the order of criteria.json; None where something that a criterion takes is missing.
    """
    known = claims(NAME)
    ratios = {made["domain"]: made["ratio"] for made in rows}
    calibrated = {made["domain"]: made["calibrated"] for made in rows}
    rises = {made["domain"]: made["rise"]["low"] if made["rise"] else None for made in rows}
    sizes = largest_ratio(beside["widths"]) if "widths" in beside else None
    heats = largest_ratio(beside["temperature"]) if "temperature" in beside else None
    found = [
        ("within-order-of-magnitude", *_all(ratios, 0.1, 10, "x B_crit")),
        ("calibrated-within-2x", *_all(calibrated, 0.5, 2, "x")),
        ("rises-as-loss-falls", *_all(rises, 1, math.inf, "x at least")),
        ("size-only-through-loss", *_most(sizes, 2.0)),
        ("batch-independent", *_most(heats, 1.5)),
    ]
    return [outcome(known[f"{NAME}/{name}"], seeds, held, evidence) for name, held, evidence in found]


def judge_further(rows: Sequence[dict[str, Any]], seeds: int, grid: str) -> list[Finding]:
    """Compute `held` of every claim of the grids "eight-seeds" and "a2c".

    Args:
        rows: the table.
        seeds: that were run.
        grid: its name.

    Returns:
        Outcomes in the order of criteria.json; None where something that a criterion takes is missing.
    """
    by = {made["domain"]: made for made in rows}
    ratios = {name: made["ratio"] for name, made in by.items()}
    judged = {
        "noise-scale/eight-seeds-calibrated": _all({n: m["calibrated"] for n, m in by.items()}, 0.5, 2, "x"),
        "noise-scale/eight-seeds-within-order-of-magnitude": _all(ratios, 0.1, 10, "x B_crit"),
        "noise-scale/a2c-identified": _identified(by.get("a2c")),
        "noise-scale/a2c-within-order-of-magnitude": _all(ratios, 0.1, 10, "x B_crit"),
    }
    return [outcome(claim, seeds, *judged[name]) for name, claim in claims(NAME, grid).items()]


def _identified(made: dict[str, Any] | None) -> tuple[bool | None, str]:
    """Held where both have a value, and the interval of each spans less than a factor of ten."""
    if made is None or not made["complete"]:
        return None, "not run"
    told, held = [], True
    for name, key in (("B_crit", "critical_average"), ("B_simple", "simple_average")):
        found = made[key]
        narrow = found is not None and found["high"] is not None and found["high"] < 10 * found["low"]
        held = held and narrow
        told.append(f"{name} {shown(found)}")
    return held, ", ".join(told)


def shown(found: Mapping[str, Any] | None) -> str:
    """Return a value with its interval in words.

    Args:
        found: "value", "low" and "high", None or infinite where that is open; None where there is no value.

    Returns:
        Three figures of each.
    """
    if found is None:
        return "no value"
    high = "open" if found["high"] in (None, math.inf) else f"{found['high']:.3g}"
    return f"{found['value']:.3g} [{found['low']:.3g}, {high}]"


def _all(values: dict[str, float | None], low: float, high: float, unit: str) -> tuple[bool | None, str]:
    """Held where every domain is inside; one outside decides, one missing leaves it open."""
    words = ", ".join(f"{name} {'no value' if v is None else f'{v:.2g}{unit}'}" for name, v in values.items())
    inside = [None if value is None else low < value < high for value in values.values()]
    return all_hold(inside), words


def _most(found: tuple[float, str] | None, most: float) -> tuple[bool | None, str]:
    if found is None:
        return None, "runs are missing, or their losses do not meet"
    return found[0] <= most, f"at most x{found[0]:.2f} ({found[1]})"
