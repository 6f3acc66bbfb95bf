"""`held` of every claim, from the figures and the criteria."""

from typing import Any

import numpy as np
from scipy import stats

from isobatch_studies.claims import Finding, claims, criteria, outcome

NAME = "decentlam"
LAZY, SMALL = "lazy ring, gamma 1e-2", "ring, gamma 1e-3"


def judge_claims(data: dict[str, Any]) -> list[Finding]:
    """Judge the claims.

    Args:
        data: the study's figures.

    Returns:
        Outcomes in the order of criteria.json; None where figures are missing.
    """
    known, seeds = claims(NAME), data["seeds"]
    judges = {
        "bias-beta-independent": _independent,
        "dmsgd-amplifies": _amplifies,
        "large-batch-floor": _floor,
        "rates": _rates,
        "digits-accuracy": _digits,
    }
    return [outcome(known[f"{NAME}/{name}"], seeds, *judge(data)) for name, judge in judges.items()]


def paired(better: list[float], worse: list[float]) -> tuple[float, float, float]:
    """Return the mean difference and its 95% t interval.

    Args:
        better: by seed.
        worse: by seed.

    Returns:
        Mean, low and high.
    """
    gap = np.array(better) - np.array(worse)
    half = stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.inf
    return float(gap.mean()), float(gap.mean() - half), float(gap.mean() + half)


def _independent(data: dict[str, Any]) -> tuple[bool | None, str]:
    worst = 0.0
    for label in (LAZY, SMALL):
        plain = np.array(data["bias"][label]["dsgd"])
        worst = max(worst, float(abs(np.array(data["bias"][label]["decentlam"]) / plain - 1).max()))
    return worst <= 1e-3, f"largest deviation of a ratio from 1: {worst:.1e}; QG-DmSGD shares it, D2 has no bias at all"


def _amplifies(data: dict[str, Any]) -> tuple[bool | None, str]:
    betas = np.array(data["betas"])
    small = betas <= 0.9
    found = data["bias"][SMALL]
    ratios = (np.array(found["dmsgd"]) / np.array(found["dsgd"]) * (1 - betas) ** 2)[:, small]
    table = criteria(NAME)["table"]
    off = {n: float(abs(np.array(data["bias"][LAZY][n][0]) / np.array(row) - 1).max()) for n, row in table.items()}
    held = bool((abs(ratios - 1) <= 0.2).all()) and max(off.values()) <= 0.1
    text = (
        f"gamma 1e-3: bias ratio is {ratios.min():.3f} to {ratios.max():.3f} of 1/(1-beta)**2; gamma 1e-2: table met "
    )
    return held, text + f"within {max(off.values()):.1%}"


def _floor(data: dict[str, Any]) -> tuple[bool | None, str]:
    error = {name: np.mean(rows, axis=0) for name, rows in data["batch"].items()}
    place = data["betas"].index(0.9)
    bias = float(np.mean(data["bias"][LAZY]["dmsgd"], axis=0)[place])
    fall = 1 - error["dmsgd"][-1] / error["dmsgd"][-2]
    away = abs(error["dmsgd"][-1] / bias - 1)
    ratio = error["decentlam"][-1] / error["dmsgd"][-1]
    text = f"DmSGD falls by {fall:.1%} from B=256 to 4096 and stands {away:.1%} from its bias {bias:.2g}; "
    return bool(fall < 0.1 and away <= 0.1 and ratio <= 0.1), text + f"DecentLaM's at 4096 is {ratio:.3f} of it"


def _rates(data: dict[str, Any]) -> tuple[bool | None, str]:
    bounds = {"strongly convex": (-1.2, -0.8), "non-convex": (-0.65, -0.35), "bias": (1.8, 2.2)}
    found = {part: data["rates"][part]["decentlam"]["slope"] for part in bounds}
    held = all(low <= found[part] <= high for part, (low, high) in bounds.items())
    return held, ", ".join(f"{part} {value:.2f}" for part, value in found.items())


def _digits(data: dict[str, Any]) -> tuple[bool | None, str]:
    part = criteria(NAME)["grid"]["digits"]
    full = max(part["batches"], key=int)
    epochs = part["batches"][full][0]
    wanted = {"graph": part["graphs"][0], "nodes": part["nodes"], "batch": int(full), "epochs": epochs}
    found = {
        row["cell"]["method"]: row["accuracy"]
        for row in data["digits"]
        if all(row["cell"][key] == value for key, value in wanted.items())
    }
    rivals = ("dmsgd", "awc", "da")
    if not {"decentlam", *rivals} <= found.keys():
        return None, "the cells that the criterion takes are missing"
    gaps = {name: paired(found["decentlam"], found[name]) for name in rivals}
    text = ", ".join(f"{name} {mean:+.2f} [{low:.2f}, {high:.2f}]" for name, (mean, low, high) in gaps.items())
    more = {n: float(np.mean(found[n])) for n in ("decentlam", "qg", "d2", "pmsgd") if n in found}
    beside = ", ".join(f"{name} {value:.1f}" for name, value in more.items())
    return all(low > 0 for _, low, _ in gaps.values()), f"DecentLaM minus {text} points; accuracies: {beside}"
