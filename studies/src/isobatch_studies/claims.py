"""Claims: fixed ids and criteria, committed before the first full run; `held` is computed from them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from isobatch.errors import InputError


@dataclass(frozen=True)
class Claim:
    """One published or own claim and how it is judged.

    Args:
        id: "study/name", never reworded.
        claim: what is said.
        source: who says it.
        statistic: what is computed.
        margin: the bound that it must keep, in words and numbers.
        seeds: seeds below which no verdict is given.
    """

    id: str
    claim: str
    source: str
    statistic: str
    margin: str
    seeds: int


@dataclass(frozen=True)
class Finding:
    """What a study found on a claim.

    Args:
        id: of the claim.
        claim: what is said.
        source: who says it.
        held: True, False, or None when seeds or data do not allow a verdict.
        evidence: the figures.
    """

    id: str
    claim: str
    source: str
    held: bool | None
    evidence: str


def criteria(study: str, grid: str = "") -> dict[str, Any]:
    """Return a study's criteria.json: its grid and its claims, or those of one of its further grids.

    A further grid has claims of its own and replaces what it names at the top of the file; the rest is shared.

    Args:
        study: name of the study's folder.
        grid: name of a further grid, "" for the study's own.

    Returns:
        The file's values.

    Raises:
        InputError: the study has no such grid.
    """
    values = _stored(study)
    further = values.pop("grids", {})
    if not grid:
        return values
    if grid not in further:
        known = f"must be one of {', '.join(further)}" if further else "must be left out: it has none"
        raise InputError(f"--grid {grid!r} of study {study} {known}")
    return values | further[grid]


def grids(study: str) -> list[str]:
    """Return the names of a study's grids.

    Args:
        study: its name.

    Returns:
        "" for the study's own, then the further ones in the order of the file.
    """
    return ["", *_stored(study).get("grids", {})]


def _stored(study: str) -> dict[str, Any]:
    folder = study.replace("-", "_")
    return json.loads(resources.files(f"isobatch_studies.{folder}").joinpath("criteria.json").read_text("utf-8"))


def claims(study: str, grid: str = "") -> dict[str, Claim]:
    """Return the claims of a study's grid by id.

    Args:
        study: its name.
        grid: name of a further grid, "" for the study's own.

    Returns:
        Claims in the order of the file.
    """
    return {item["id"]: Claim(**item) for item in criteria(study, grid)["claims"]}


def outcome(claim: Claim, seeds: int, held: bool | None, evidence: str) -> Finding:
    """Judge a claim, or abstain when too few seeds were run.

    Args:
        claim: with its least number of seeds.
        seeds: that were run.
        held: what the criterion says of the figures.
        evidence: the figures.

    Returns:
        The outcome; held is None below the claim's seeds.
    """
    enough = seeds >= claim.seeds
    text = evidence if enough else f"{evidence}; {seeds} seeds of the {claim.seeds} that a verdict takes"
    return Finding(claim.id, claim.claim, claim.source, held if enough else None, text)


def all_hold(parts: Iterable[bool | None]) -> bool | None:
    """Return whether all parts of a criterion hold: one that fails decides, one that is missing leaves it open.

    Args:
        parts: True, False, or None for a part that is missing.

    Returns:
        The verdict; None as well where there are no parts.

    Example:
        >>> all_hold([True, True]), all_hold([True, None]), all_hold([None, False]), all_hold([])
        (True, None, False, None)
    """
    found = list(parts)
    if False in found:
        return False
    return None if None in found or not found else True


def as_dict(outcomes: list[Finding]) -> list[dict[str, Any]]:
    """Return outcomes as plain values for result.json.

    Args:
        outcomes: in order.

    Returns:
        One dict a claim.
    """
    return [asdict(item) for item in outcomes]
