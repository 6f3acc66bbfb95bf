"""Ledger: which key of a file is which number of the recipe, how it is written back, and what was not read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isobatch.errors import InputError
from isobatch.formats.texts import Key, Source, spelled

if TYPE_CHECKING:
    from isobatch.formats.view import View

SAME = 1e-12
"""Relative difference up to which a number is the same one: what conversions there and back cost."""

MOST = "gpus_of_a_node"
"""The answer that says how many GPUs a node has."""
ONE_NODE = "of its one node"
"""How GPUs of a node are called where a file has one node alone."""
_LAST = 9e-13
"""Relative difference that a way there and back leaves: 0.00999999999999996 is 0.01."""


@dataclass(frozen=True)
class Found:
    """A value of the file.

    Args:
        key: where it stands, or would stand.
        value: as it stands.
        origin: "file", "default", "asked", "launcher" or "include NAME".
    """

    key: Key
    value: Any
    origin: str = "file"

    @property
    def name(self) -> str:
        """The key as people write it."""
        return spelled(self.key)

    @property
    def said(self) -> bool:
        """Whether somebody said it, rather than a default."""
        return self.origin != "default"


@dataclass(frozen=True)
class Link:
    """One key of a file and the number of the recipe that it is.

    Args:
        key: where it stands in the file.
        path: the number in the recipe, such as "optimizer.lr".
        value: as the file has it, or its default.
        back: what the file must say for another recipe.
        origin: "file", "default", "include NAME", "launcher", or "asked".
        words: how the one becomes the other, "" where they are equal.
        whole: whether only whole numbers can stand there.
        least: smallest number that can stand there.
        unit: what stands behind a whole number, such as "ba" in 100ba.
    """

    key: Key
    path: str
    value: Any
    back: Callable[[View], Any]
    origin: str = "file"
    words: str = ""
    whole: bool = False
    least: float = 0
    unit: str = ""

    @property
    def name(self) -> str:
        """The key as people write it."""
        return spelled(self.key)


@dataclass(frozen=True)
class Unread:
    """A key that acts, or may act, on what a batch touches, and is not in the recipe.

    Args:
        key: as people write it.
        value: as it stands.
        why: why it was not read, and what that means.
    """

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Fixed:
    """A number that acts and stands in no file: a constant of the trainer's code.

    Args:
        path: the number in the recipe.
        value: what it is, as the code says it.
        where: which code holds it.
        back: what the code would have to say for another recipe; the recipe's own number unless given.
    """

    path: str
    value: Any
    where: str
    back: Callable[[View], Any] | None = None


@dataclass(frozen=True)
class OwnRule:
    """The scaling rule that a trainer applies to what its file says; it stays on.

    Args:
        key: the file's key, or the code, that switches it.
        formula: what it does.
        word: the same rule among `isobatch.rules.LEARNING_RATES`.
        reference: its reference batch in samples.
    """

    key: str
    formula: str
    word: str
    reference: float


@dataclass(frozen=True)
class Question:
    """What a file does not say.

    Args:
        name: of the missing number.
        why: what it is needed for, and where people find it.
        flag: the flag that answers, with a number that could be.
    """

    name: str
    why: str
    flag: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}; answer with {self.flag}"


class Unanswered(InputError):
    """A file leaves things open; all of them are asked at once.

    Args:
        name: of the file.
        questions: what is open.
    """

    def __init__(self, name: str, questions: tuple[Question, ...]):
        count = f"{len(questions)} things" if len(questions) > 1 else "one thing"
        lines = [f"{name} does not say {count} that the plan needs:", *(f"  {question}" for question in questions)]
        super().__init__("\n".join(lines))
        self.questions = questions


@dataclass(frozen=True)
class Change:
    """One key of the file at another batch.

    Args:
        link: the key.
        becomes: what the file must say.
        exact: the number before it was made whole; None where nothing was.
    """

    link: Link
    becomes: Any
    exact: float | None = None


@dataclass(frozen=True)
class Ledger:
    """What was read from a file, and how it is written back.

    Args:
        format: the name of the format.
        title: for people.
        source: the file.
        links: keys that are numbers of the recipe.
        own_rule: the trainer's own scaling rule, where it stays on.
        reference: the batch that the file names as its own reference, None where it names none.
        unread: keys that act and were not read.
        fixed: constants of the trainer's code.
        answers: what was asked and answered.
        spans: samples of the recipe's spans by name.
        notes: what the reader should know.
        doubts: what looks scaled twice.
        devices_said: whether the file, its launcher or an answer says the devices.
        accumulates: whether the trainer can accumulate, so that the batch can be kept on fewer devices.
        per_device: whether the file's batch is that of a device.
        keeps_batch: whether the trainer itself keeps the batch on other devices, by more passes.
        stamp: what an earlier plan wrote into the file, None for a file that was never planned.
    """

    format: str
    title: str
    source: Source
    links: tuple[Link, ...] = ()
    own_rule: OwnRule | None = None
    reference: float | None = None
    unread: tuple[Unread, ...] = ()
    fixed: tuple[Fixed, ...] = ()
    answers: Mapping[str, Any] = field(default_factory=dict)
    spans: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    devices_said: bool = True
    accumulates: bool = True
    per_device: bool = True
    keeps_batch: bool = False
    stamp: Any = None

    @property
    def lossless(self) -> bool:
        """Whether every key that acts was read."""
        return not self.unread

    def changes(self, view: View) -> tuple[Change, ...]:
        """Return what the file must say for another recipe; keys that stay are left out.

        Args:
            view: the other recipe.

        Returns:
            Changes, in the order of the file.

        Raises:
            InputError: a number that the file cannot hold.
        """
        found = []
        for link in self.links:
            wanted = link.back(view)
            exact = None
            if link.whole and isinstance(wanted, (int, float)):
                near = max(round(wanted), math.ceil(link.least))
                exact = None if math.isclose(wanted, near, rel_tol=1e-9) else float(wanted)
                wanted = f"{near}{link.unit}" if link.unit else near
            stands = link.value.replace("_", "") if link.unit else link.value
            if link.whole and isinstance(stands, float):
                stands = max(round(stands), math.ceil(link.least))
            if same(wanted, stands):
                continue
            if not possible(wanted):
                raise InputError(f"{link.name} would have to be {wanted!r} at this batch; choose another one")
            found.append(Change(link, like(wanted, stands), exact))
        return tuple(found)

    def link(self, key: str) -> Link:
        """Return the link of a key, or of a number of the recipe.

        Args:
            key: as the file or the recipe spells it.

        Returns:
            The link.

        Raises:
            InputError: neither knows it; what is known is named.
        """
        bare = key.lstrip("-").replace("-", "_")
        for link in self.links:
            if bare in (link.name, link.path, spelled(link.key[-1:])) or key == link.name:
                return link
        known = ", ".join(link.name for link in self.links)
        raise InputError(f"{key!r} is no key that was read; known: {known}")


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a file are the same one, to rounding."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=SAME)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def possible(value: Any) -> bool:
    """Return whether a value can stand in a file at all."""
    if isinstance(value, (list, tuple)):
        return all(possible(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def like(value: Any, old: Any) -> Any:
    """Return a number as the kind that stood there: whole ones stay whole where they are."""
    if isinstance(value, float) and isinstance(old, int) and not isinstance(old, bool) and value == round(value):
        return int(value)
    if isinstance(value, int) and isinstance(old, float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float):
        exact, plain = float(f"{value:.15g}"), float(f"{value:.9g}")  # without the last bits of a way there and back
        size = min(exact, 1 - exact) if 0 < exact < 1 else abs(exact)  # of a decay 1 - decay counts
        return plain if abs(plain - exact) < _LAST * size else exact
    return [like(item, None) for item in value] if isinstance(value, (list, tuple)) else value
