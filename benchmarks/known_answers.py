"""What authors themselves changed with the batch, beside the plan: writes docs/known-answers.md.

    python benchmarks/known_answers.py

`known_answers.json` holds figures that others published: for each change of the batch the settings before and after,
the file that says so, and why it is, or is not, what the plan does. No file is copied. "factors" are rules that are
stated as factors on a setting. A recipe holds what its source says of the rows; numbers that no row compares are there
because a recipe needs one.
"""

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobatch.plan import Plan, Recipe
from isobatch.plan.plan import count, show
from isobatch.results import write

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURES = ROOT / "docs" / "known-answers.md", Path(__file__).with_name("known_answers.json")
CLOSE = 0.01
"""Two numbers are called the same within this share: of a rate, of 1 - decay for decays."""
SPANS = ("schedule.warmup", "schedule.length", "ema.half_life")


@dataclass(frozen=True)
class Answer:
    """One setting that authors changed, or kept.

    Args:
        key: as in the recipe.
        was: at the first batch.
        theirs: at the second batch.
        ours: what the plan gives.
        other: what its other form gives, None where it has none for this setting.
        why: why they differ, or that they do not.
    """

    key: str
    was: float
    theirs: float
    ours: float
    other: float | None
    why: str

    @property
    def match(self) -> str:
        """ours, the other form, both or neither."""
        mine = close(self.key, self.theirs, self.ours)
        also = self.other is not None and close(self.key, self.theirs, self.other)
        return "both" if mine and also else "ours" if mine else "the other form" if also else "neither"


def close(key: str, one: float, two: float) -> bool:
    if "betas" in key or ("decay" in key.rpartition(".")[2] and key != "optimizer.weight_decay"):
        one, two = 1 - one, 1 - two
    return math.isclose(one, two, rel_tol=CLOSE)


def changes() -> list[tuple[dict[str, Any], list[Answer]]]:
    """Every change of a batch, with what the plan says of each setting."""
    return [(entry, [answer(entry, row) for row in entry["rows"]]) for entry in json.loads(FIGURES.read_text("utf-8"))]


def answer(entry: dict[str, Any], row: dict[str, Any]) -> Answer:
    key = row["key"]
    if key == "batch.accumulation":
        split = planned(entry, devices=1, micro=entry["from"] // row["becomes"]).kept
        return Answer(key, row["was"], row["becomes"], split.accumulation, None, row["why"])
    plan = planned(entry)
    return Answer(key, row["was"], row["becomes"], plan.row(key).becomes, other(plan, key), row["why"])


def planned(entry: dict[str, Any], **asked: int) -> Plan[Recipe]:
    recipe = Recipe.parse({"batch": {"size": entry["from"]}, **entry["recipe"]})
    return recipe.at(entry["to"], **asked)


def other(plan: Plan[Recipe], key: str) -> float | None:
    """A setting by the plan's other form; betas are a pair there."""
    name, _, place = key.partition("[")
    for form in plan.forms:
        if name in form.values:
            value = form.values[name]
            return value[int(place[0])] if place else value
    return None


def cells(entry: dict[str, Any], found: Answer) -> str:
    def said(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{count(round(value))} {entry['unit']}" if found.key in SPANS else show(value)

    shown = (found.key.removeprefix("optimizer."), said(found.was), said(found.theirs), said(found.ours),
             said(found.other), found.match, found.why)  # fmt: skip
    return "| " + " | ".join(shown) + " |"


def page() -> str:
    found = changes()
    answers = [one for _, rows in found for one in rows]
    rates = [one for one in answers if one.key == "optimizer.lr"]
    lines = [
        "# What authors changed themselves",
        "",
        *textwrap.wrap(
            f"The same authors at two batches: {len(found)} changes, {len(answers)} settings, each beside what "
            "`isobatch plan` says. Published values are what somebody chose, often tuned for speed or for a longer "
            "run; the plan answers another question: which numbers make it the same run. So a difference is no fault "
            "by itself, and each row says where it comes from.",
            148,
        ),
        "",
        f"Settings where theirs are ours: {tally(answers, 'ours')} of {len(answers)}; our other form's: "
        f"{tally(answers, 'the other form')}; both: {tally(answers, 'both')}.",
        f"Learning rates alone: ours {tally(rates, 'ours')}, the other form {tally(rates, 'the other form')}, both "
        f"{tally(rates, 'both')}, neither {tally(rates, 'neither')} of {len(rates)}.",
        f'The same means within {CLOSE:.0%}; of decays, within {CLOSE:.0%} of 1 - decay. "Other form": momentum or '
        "averages kept per step, or the invariant",
        "form of Adam, with its own rate. Regenerate this page with `python benchmarks/known_answers.py`.",
    ]
    for entry, rows in found:
        kappa = entry["to"] / entry["from"]
        lines += [
            "",
            f"## {entry['who']}: {entry['from']:,} to {entry['to']:,} {entry['unit']}",
            "",
            f"{entry['recipe']['optimizer']['name']}, kappa = {kappa:.4g}; `{entry['source']}` ({entry['licence']})",
            "",
            "| setting | was | theirs | ours | other form | theirs is | why |",
            "|---|---|---|---|---|---|---|",
            *(cells(entry, one) for one in rows),
        ]
    return "\n".join(lines) + "\n"


def tally(answers: list[Answer], match: str) -> int:
    return sum(one.match == match for one in answers)


if __name__ == "__main__":
    write(PAGE, page())
