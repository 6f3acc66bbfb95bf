"""isobatch study concurrent-adversarial: adversaries of every age, their controls, and the time that they cost."""

from typing import Any

import numpy as np

from isobatch.verify.cells import hashed
from isobatch.verify.workers import Curve
from isobatch_studies.claims import Finding, as_dict, claims, criteria, outcome
from isobatch_studies.concurrent_adversarial import grid as layout
from isobatch_studies.concurrent_adversarial import overlap
from isobatch_studies.concurrent_adversarial.page import figure, html
from isobatch_studies.folds import chosen
from isobatch_studies.pages import keep
from isobatch_studies.paired import MeanInterval, interval, last
from isobatch_studies.work import Work

NAME = "concurrent-adversarial"
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
    seeds, repeats = small["seeds"], small["selection_seeds"]
    first = layout.rate_selection(rules, repeats)
    work.announce(3 * len(first) + seeds * (len(rules["taus"]) + 1 + len(layout.controls(rules))) + 1)
    rates, eps, noise, runs = {}, {}, {}, {}
    tried = work.train([first])
    if tried:
        rates = chosen(tried, rules["rates"], lambda rate: f"select {rate:g}")
        second = layout.eps_selection(rules, rates, repeats)
        tried = work.train([second])
    if eps_tried := tried if rates and tried and f"adversary {rules['eps'][0]:g}" in tried else {}:
        eps = chosen(eps_tried, rules["eps"], lambda size: f"adversary {size:g}")
        noise = chosen(eps_tried, rules["noise_eps"], lambda size: f"noise {size:g}")
        groups = layout.reported(rules, rates, eps, noise, seeds)
        runs = work.train(groups)
    row = _accuracy(rules, runs) if runs else None
    rounds = rules["quick"]["rounds"] if work.quick else rules["overlap"]["rounds"]
    times = None if work.grid else _times(rules, rounds, work)
    data = {
        **work.head(NAME, rules),
        "seeds": row["seeds"] if row else 0,
        "chosen": {
            str(fold): {"rate": rates[fold], "eps": eps.get(fold), "noise eps": noise.get(fold)} for fold in rates
        },
        "accuracy": row,
        "overlap": times,
        "claims": as_dict(judge_long(row, rules["taus"]) if work.grid else judge_claims(row, times)),
    }
    if work.out is not None:
        keep(work.out, data, {"adversary": figure(data)}, html(data))
    return data


def _times(rules: dict[str, Any], rounds: int, work: Work) -> dict[str, Any] | None:
    """Return the timing, measured once and kept with the cells; it runs alone, whatever the workers."""
    job = overlap.Timing(**{**rules["overlap"], "rounds": rounds})
    found = work.results(
        overlap.timed,
        [job],
        name=lambda one: hashed("overlap", vars(one)),
        read=lambda values: Curve(**values),
        workers=1,
        executor=None,
    )
    return overlap.summary(found[0]) if found else None


def _accuracy(rules: dict[str, Any], runs: dict[str, list[Curve]]) -> dict[str, Any]:
    names = [layout.PLAIN, *map(layout.stale, rules["taus"]), *layout.controls(rules)]
    final = {name: [last(curve, "accuracy", CHANCE) for curve in runs[name]] for name in names}

    def gaps(base: str) -> dict[str, Any]:
        apart = {name: np.subtract(final[name], final[base]).tolist() for name in names if name != base}
        return {name: interval(found).to_dict() for name, found in apart.items()}

    return {
        "seeds": len(final[layout.PLAIN]),
        "values": {name: [round(v, 3) for v in found] for name, found in final.items()},
        "means": {name: interval(found).to_dict() for name, found in final.items()},
        "over_plain": gaps(layout.PLAIN),
        "over_fresh": gaps(layout.stale(0)),
        "noise_gap": interval(np.subtract(final[layout.stale(1)], final[layout.NOISE]).tolist()).to_dict(),
        "steps": {name: runs[name][0].steps for name in names},
    }


def judge_claims(row: dict[str, Any] | None, times: dict[str, Any] | None) -> list[Finding]:
    """Compute `held` of every claim from the criteria.

    Args:
        row: accuracies, None where no seed is complete.
        times: the timing, None where it was not measured.

    Returns:
        Outcomes in the order of criteria.json.
    """
    known = claims(NAME)
    better, free, cost = known
    found = []
    if row is None:
        found += [outcome(known[better], 0, None, "not run"), outcome(known[free], 0, None, "not run")]
    else:
        gain, noise = (MeanInterval(**row["over_plain"][name]) for name in (layout.stale(1), layout.NOISE))
        text = f"tau = 1 minus plain {gain} points; random signs minus plain {noise}; "
        text += f"tau = 1 minus random signs {MeanInterval(**row['noise_gap'])}"
        found.append(outcome(known[better], row["seeds"], gain.low > 0, text))
        apart = {tau: MeanInterval(**row["over_fresh"][layout.stale(tau)]) for tau in range(1, 6)}
        inside = all(gap.low > -0.5 and gap.high < 0.5 for gap in apart.values())
        text = "minus tau = 0, in points: " + ", ".join(f"tau = {tau}: {gap}" for tau, gap in apart.items())
        found.append(outcome(known[free], row["seeds"], inside, text))
    if times is None:
        return [*found, outcome(known[cost], 0, None, "not run")]
    text = (
        f"over the same update on the same rows: sequential {times['sequential']:.2f}, concurrent "
        f"{times['concurrent']:.2f}, hidden {times['hidden']:.0%}; over a clean update {times['over_clean']:.2f}; "
        f"load of the machine {times['load']:.1f} on {times['cores']} cores"
    )
    held = times["concurrent"] <= 1.10 and times["hidden"] >= 0.70
    return [*found, outcome(known[cost], times["rounds"], held, text)]


def judge_long(row: dict[str, Any] | None, taus: list[int]) -> list[Finding]:
    """Compute `held` of every claim of the grid "long".

    Args:
        row: accuracies, None where no seed is complete.
        taus: ages of the directions, 0 first.

    Returns:
        Outcomes in the order of criteria.json.
    """
    free, signs, better = known = claims(NAME, "long")
    if row is None:
        return [outcome(claim, 0, None, "not run") for claim in known.values()]
    apart = {tau: MeanInterval(**row["over_fresh"][layout.stale(tau)]) for tau in taus[1:]}
    told = "minus tau = 0, in points: " + ", ".join(f"tau = {tau}: {gap}" for tau, gap in apart.items())
    gap, gain = MeanInterval(**row["noise_gap"]), MeanInterval(**row["over_plain"][layout.stale(1)])
    inside = all(gap.low > -0.5 and gap.high < 0.5 for gap in apart.values())
    return [
        outcome(known[free], row["seeds"], inside, told),
        outcome(known[signs], row["seeds"], gap.low > 0, f"tau = 1 minus random signs, in points: {gap}"),
        outcome(known[better], row["seeds"], gain.low > 0, f"tau = 1 minus plain, in points: {gain}"),
    ]
