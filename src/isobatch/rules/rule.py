"""What a rule is: a formula on plain numbers, the words that justify it, and how sure it is."""

from dataclasses import dataclass
from enum import StrEnum


class Confidence(StrEnum):
    """How sure a rule is, from a proof down to nothing."""

    THEOREM = "theorem"
    DERIVED = "derived"
    MEASURED = "measured"
    CONVENTION = "convention"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rule:
    """The words beside a formula.

    Args:
        formula: what happens to the setting, in the letters of the docs.
        because: why, in half a sentence, with the condition under which it holds.
        source: arXiv id (section where known) or "derived".
        confidence: how sure it is.
    """

    formula: str
    because: str
    source: str
    confidence: Confidence
