"""How the study's claims are judged from its rows."""

from typing import Any

from isobatch_studies.claims import Finding, all_hold, as_dict, claims, outcome
from isobatch_studies.pseudo_label.grid import AGAIN, SUPERVISED

NAME = "pseudo-label"
Row = dict[str, Any]
_ALONE = "without pseudo-labels the"


def judge_claims(rows: list[Row], seeds: int, part: dict[str, Any]) -> list[dict[str, Any]]:
    """Compute `held` of every claim from the criteria.

    Args:
        rows: one an arm, the reference first.
        seeds: that were run.
        part: grid or quick of the criteria, which says what arms there must be.

    Returns:
        Outcomes as plain values; None where arms that a criterion takes are missing.
    """
    known = claims(NAME)
    judged = {
        "rule-same": _all(rows, "rule", ["square root"], "SAME"),
        "invariant-same": _all(rows, "rule", ["invariant"], "SAME"),
        "unscaled-different": _all(rows, "unscaled", part["unscaled"], "DIFFERENT"),
        "progressive-mends": _mends(rows, part),
        "labels-help": _help(
            rows, "wer_gap", f"{_ALONE} word error rate is {{:+.1f}} points higher [{{:.1f}}, {{:.1f}}]"
        ),
        "labels-lower-loss": _help(rows, "loss_gap", f"{_ALONE} log loss is {{:+.3f}} higher [{{:.3f}}, {{:.3f}}]"),
        "control-same": _control(rows),
    }
    found: list[Finding] = []
    for name, claim in known.items():
        held, evidence = judged[name.partition("/")[2]]
        found.append(outcome(claim, seeds, held, evidence))
    return as_dict(found)


def _picked(rows: list[Row], kind: str, form: str) -> list[Row]:
    return sorted((row for row in rows if row["kind"] == kind and row["form"] == form), key=lambda row: row["kappa"])


def _all(rows: list[Row], kind: str, forms: list[str], verdict: str) -> tuple[bool | None, str]:
    """Whether every arm of a kind has the verdict; one that has another decides, one that is missing leaves it open."""
    held: list[bool | None] = []
    texts = []
    for form in forms:
        found = _picked(rows, kind, form)
        cells = [f"x{r['kappa']:g} {r['verdicts']['average']} ({r['worst']['average']:+.3f})" for r in found]
        texts.append(f"{form}: {', '.join(cells) or 'not run'}")
        held += [row["verdicts"]["average"] == verdict for row in found]
        held += [None for kappa in (0.5, 2, 4, 8) if kappa not in [row["kappa"] for row in found]]
    return all_hold(held), "; ".join(texts)


def _mends(rows: list[Row], part: dict[str, Any]) -> tuple[bool | None, str]:
    """At the largest kappa: the arms that are not SAME from the start, and what switching later makes of them."""
    most, texts, mended = max(part["kappas"]), [], []
    for form in part["forms"]:
        start = [row for row in _picked(rows, "rule", form) if row["kappa"] == most]
        later = [row for row in _picked(rows, "progressive", form) if row["kappa"] == most]
        if not start or len(later) < len(part["progressive"]):
            return None, f"{form}: arms are missing"
        before = start[0]["verdicts"]["average"]
        parts = [f"{row['arm']} {row['verdicts']['average']} ({row['worst']['average']:+.3f})" for row in later]
        texts.append(
            f"{form} x{most:g} from the start {before} ({start[0]['worst']['average']:+.3f}), {', '.join(parts)}"
        )
        if before != "SAME":
            mended.append(any(row["verdicts"]["average"] == "SAME" for row in later))
    text = "; ".join(texts)
    return (all(mended), text) if mended else (None, f"nothing to mend: {text}")


def _help(rows: list[Row], key: str, text: str) -> tuple[bool | None, str]:
    alone = next((row for row in rows if row["arm"] == SUPERVISED), None)
    if alone is None:
        return None, "the supervised arm was not run"
    return alone[key][1] > 0, text.format(*alone[key])


def _control(rows: list[Row]) -> tuple[bool | None, str]:
    again = next((row for row in rows if row["arm"] == AGAIN), None)
    if again is None:
        return None, "the reference was not run again"
    verdict = again["verdicts"]["average"]
    return verdict == "SAME", f"the reference in another order: {verdict} ({again['worst']['average']:+.3f})"
