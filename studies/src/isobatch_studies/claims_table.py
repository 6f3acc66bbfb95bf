"""docs/claims.md and what the pages of the studies say of their claims: `python -m isobatch_studies.claims_table`.

A claim comes from criteria.json, its verdict from a stored result.json, its size from the page of its study.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.results import HELD, write
from isobatch_studies import catalogue
from isobatch_studies.byol_24576 import devices, ends
from isobatch_studies.claims import Claim, claims, criteria, grids
from isobatch_studies.noise_scale import looks
from isobatch_studies.polyak import study as polyak
from isobatch_studies.teachers.tables import beside_of, claims_of, gaps, markdown

_LINE = re.compile(r"^- \*\*(Claimed|Found|Size)\*\*: (.+)$", re.MULTILINE)
_COUNT = re.compile(r"^(- \*\*Found\*\*: )[^.\n]*\.", re.MULTILINE)
_DRAWN = re.compile(r"(<!-- drawn from (\S+): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DRAWERS = {"arms": markdown, "devices": devices.markdown, "ends": ends.markdown, "claims": claims_of}
DRAWERS |= {"beside": beside_of, "fits": looks.fits, "stops": looks.stops, "gaps": gaps, "width": polyak.markdown}
"""What a page may ask to be drawn from a stored result."""
_HEAD = """# Every claim, and whether it held

Written by `python -m isobatch_studies.claims_table` from the criteria, the stored results and the pages of the studies;
a test holds it. Criteria were fixed before the first full run of their study. "No verdict" means that seeds or runs are
missing, or that a test could not have told.

"""


@dataclass(frozen=True)
class Standing:
    """What is known of a claim.

    Args:
        claim: with its source.
        study: that judges it.
        held: True, False, or None.
        command: that gives the verdict, or would.
        grid: a further grid of the study, "" for its own.
    """

    claim: Claim
    study: str
    held: bool | None
    command: str
    grid: str = ""


def studies() -> list[str]:
    """Return the names of all studies, in order.

    Returns:
        Names.
    """
    return [one.name for one in vars(catalogue).values() if isinstance(one, catalogue.Study)]


def verdicts(study: str, docs: Path) -> list[Standing]:
    """Return the verdicts of a study's claims: of its own folder where it has one, of another run of it otherwise.

    Args:
        study: its name.
        docs: folder of the documentation.

    Returns:
        One a claim, in the order of the criteria.
    """
    found = []
    listed = [(grid, claim) for grid in grids(study) for claim in claims(study, grid).values()]
    for grid, claim in listed:
        own, choices = f"{study}-{grid}" if grid else study, []
        for path in sorted((docs / "results").glob("*/result.json")):
            data = json.loads(path.read_text("utf-8"))
            if (data.get("study"), data.get("grid", "")) == (study, grid):
                held = next((c["held"] for c in data["claims"] if c["id"] == claim.id), None)
                choices.append((held is None, bool(data["quick"]), path.parent.name != own, path.parent.name, held))
        _, quick, _, folder, held = min(choices, default=(True, False, False, own, None), key=lambda one: one[:4])
        size = " --quick" if quick else f" --grid {grid}" if grid else ""
        command = f"isobatch study {study}{size} --out docs/results/{folder}"
        found.append(Standing(claim, study, held, command, grid))
    return found


def lines(page: str, name: str) -> dict[str, str]:
    """Return what a page says in its first three lines: what was claimed, what was found, and at what size.

    Args:
        page: its text.
        name: of it, for the words.

    Returns:
        "Claimed", "Found" and "Size" with their text.

    Raises:
        InputError: other lines come first.
    """
    first = [line for line in page.splitlines()[1:] if line.strip()][:3]
    found = {match[1]: match[2] for line in first if (match := _LINE.match(line))}
    if list(found) != ["Claimed", "Found", "Size"]:
        raise InputError(f"{name} must begin, after its title, with the lines Claimed, Found and Size; it has {first}")
    return found


def counted(found: list[Standing]) -> str:
    """Return how many claims held, in words.

    Args:
        found: verdicts of one study.

    Returns:
        A clause.

    Example:
        >>> counted([])
        '0 of 0 claims held'
    """
    without = [f"{n} {HELD[held]}" for held in (False, None) if (n := sum(one.held is held for one in found))]
    told = [words.replace("no verdict", "without a verdict") for words in without]
    return ", ".join([f"{sum(one.held is True for one in found)} of {len(found)} claims held", *told])


def renewed(page: str, study: str, docs: Path) -> str:
    """Return a study's page with its counts and the tables that are drawn from stored results.

    Args:
        page: its text.
        study: its name.
        docs: folder of the documentation.

    Returns:
        The text.
    """

    def drawn(match: re.Match[str]) -> str:
        path = docs / "results" / match[2] / "result.json"
        data: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.exists() else None
        return f"{match[1]}{DRAWERS[match[3]](data)}{match[4]}"

    text = _COUNT.sub(lambda match: f"{match[1]}{counted(verdicts(study, docs))}.", page, count=1)
    return _DRAWN.sub(drawn, text)


def table(docs: Path) -> str:
    """Return docs/claims.md.

    Args:
        docs: folder of the documentation.

    Returns:
        Markdown: claim, source, verdict, size, command.

    Raises:
        InputError: a page without its first three lines.
    """
    rows, every = ["| claim | source | | size | command |", "|---|---|---|---|---|"], []
    for study in studies():
        page = docs / "studies" / f"{study}.md"
        own = lines(page.read_text("utf-8"), str(page))["Size"].rstrip(".")
        for one in verdicts(study, docs):
            every.append(one)
            size = criteria(study, one.grid)["size"] if one.grid else own
            words = f"**{HELD[one.held]}**" if one.held is not None else HELD[None]
            cells = [f"[`{one.claim.id}`](studies/{study}.md): {one.claim.claim}", one.claim.source, words, size]
            rows.append("| " + " | ".join([*(cell.replace("|", "\\|") for cell in cells), f"`{one.command}`"]) + " |")
    return f"{_HEAD}{len(studies())} studies: {counted(every)}.\n\n" + "\n".join(rows) + "\n"


def main(docs: Path = Path("docs")) -> None:
    """Write docs/claims.md, and renew the pages of the studies.

    Args:
        docs: folder of the documentation.
    """
    for study in studies():
        page = docs / "studies" / f"{study}.md"
        write(page, renewed(page.read_text("utf-8"), study, docs))
    write(docs / "claims.md", table(docs))


if __name__ == "__main__":
    main()
