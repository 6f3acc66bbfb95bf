"""Stamp: what a plan writes into the file that it makes, so that nothing is scaled twice."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from isobatch.errors import InputError
from isobatch.formats.texts import Source
from isobatch.recipe import Planned, RecipeData

R = TypeVar("R", bound=RecipeData)
_MARK = "isobatch-plan:"
_LINE = re.compile(r"^(\ufeff?[ \t]*)(?:#|//)[ \t]*" + _MARK + r"[ \t]*(\{.*\})[ \t]*(?=\r?$)", re.M)
SIDECAR = ".isobatch.json"
"""What is added to the name of a JSON file, which has no comments, to hold its stamp."""


@dataclass(frozen=True)
class Stamp:
    """What a planned file says of itself.

    Args:
        reference: global batch of the recipe that was planned first.
        batch: global batch that the file is for.
        devices: data-parallel devices that the file is for.
        micro: samples per device and pass.
        answers: what was asked of the reference, such as the data size.
        exact: keys whose numbers were made whole -> the number before.
        held: as in `isobatch.recipe.Planned`: decays that a floor holds -> what they were in the first recipe.
    """

    reference: int
    batch: int
    devices: int
    micro: int
    answers: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the stamp as one line, without its comment sign."""
        values = {"reference": self.reference, "batch": self.batch, "devices": self.devices, "micro": self.micro}
        told: dict[str, Any] = {"answers": dict(self.answers), "exact": dict(self.exact)}
        if self.held:
            told["held"] = dict(self.held)
        return f"{_MARK} " + json.dumps(values | told, sort_keys=True)

    def known_by(self, recipe: R) -> R:
        """Return a recipe that was read from the planned file, with what a floor holds in its own stamp.

        Args:
            recipe: as it was read.

        Returns:
            The recipe; as it is where nothing is held, or where its batch was changed by hand.
        """
        if not self.held or recipe.batch.size != self.batch:
            return recipe
        return recipe.model_copy(
            update={"planned": Planned(batches=(self.reference, self.batch), held=dict(self.held))}
        )


def read_stamp(text: str, name: str) -> Stamp | None:
    """Return the stamp of a file's text, None where it has none.

    Args:
        text: of the file, or of the file beside a JSON file.
        name: for messages.

    Returns:
        The stamp.

    Raises:
        InputError: two stamps, or one that was damaged.
    """
    lines = [match[2] for match in _LINE.finditer(text)]
    if not lines:
        return None
    try:
        if len(lines) > 1:
            raise ValueError("two stamps")
        values = json.loads(lines[0])
        whole = {key: values[key] for key in ("reference", "batch", "devices", "micro")}
        if not all(type(number) is int and number > 0 for number in whole.values()):
            raise ValueError("numbers")
        exact = {str(key): float(number) for key, number in values["exact"].items()}
        held = {str(key): float(number) for key, number in values.get("held", {}).items()}
        if not all(0 <= number < 1 for number in held.values()):
            raise ValueError("held")
        return Stamp(**whole, answers=dict(values["answers"]), exact=exact, held=held)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{name}: its isobatch-plan line is damaged, so that it is not known what was planned; put the line back, "
            "or remove it and say the file's own batch"
        ) from None


def stamped(text: str, stamp: Stamp, source: Source) -> str:
    """Return a text with a stamp in place of its old one; JSON, which has no comments, stays as it is.

    Args:
        text: of the planned file.
        stamp: what it is for.
        source: the file as it was.

    Returns:
        The text.
    """
    if source.kind == "json":
        return text
    line = f"# {stamp.line()}"
    if _LINE.search(text):
        return _LINE.sub(lambda match: match[1] + line, text, count=1)
    end = "\r\n" if "\r\n" in text else "\n"
    head = text[: text.index("\n") + 1] if text.startswith("#!") and "\n" in text else ""
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return mark + head + line + end + text[len(mark) + len(head) :]
