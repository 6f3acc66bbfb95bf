"""Claims: fixed ids and criteria, committed before the first full run; `held` is computed from them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any


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


def criteria(study: str) -> dict[str, Any]:
    """Return a study's criteria.json: its grid and its claims.

    Args:
        study: name of the study's folder.

    Returns:
        The file's values.
    """
    folder = study.replace("-", "_")
    return json.loads(resources.files(f"isobatch_studies.{folder}").joinpath("criteria.json").read_text("utf-8"))


def claims(study: str) -> dict[str, Claim]:
    """Return a study's claims by id.

    Args:
        study: its name.

    Returns:
        Claims in the order of the file.
    """
    return {item["id"]: Claim(**item) for item in criteria(study)["claims"]}


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
