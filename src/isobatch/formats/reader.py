"""Reader: what a format asks of a file; every key is read once, every gap becomes a question."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from isobatch.errors import InputError
from isobatch.formats.acting import acts, averages, sharing
from isobatch.formats.draft import Draft
from isobatch.formats.ledger import Fixed, Found, Ledger, Link, OwnRule, Question, Unanswered, Unread
from isobatch.formats.texts import Key, Source, Unknown, leaves, spelled
from isobatch.formats.view import FIELDS, View

STANDS_IN = 1.0
"""What an open question stands in for while the others are found."""
_AUTO = ("auto", "AUTO", "Auto")
_REFERENCE = re.compile(r"\$\{([\w.-]+)\}$")
_LONGEST = 8
"""References that lead to each other, at most."""
T = TypeVar("T")


@dataclass
class Reader:
    """A file while it is read.

    Args:
        source: the file.
        answers: what was answered already, by name.
        origins: where keys come from that stand in an included file.
        exact: whole numbers of the file as they were before a plan made them whole.
    """

    source: Source
    answers: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[Key, str] = field(default_factory=dict)
    exact: Mapping[str, float] = field(default_factory=dict)
    draft: Draft = field(default_factory=Draft)

    def __post_init__(self) -> None:
        self.links: list[Link] = []
        self.questions: dict[str, Question] = {}
        self.fixed: list[Fixed] = []
        self.left: dict[str, Unread] = {}
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self.devices_said = True
        self.own_rule: OwnRule | None = None
        self.reference: float | None = None
        self.accumulates = True
        self.per_device = True
        self.keeps_batch = False
        self.used: set[str] = set()
        self.remembered: dict[str, Any] = {}
        self._read: set[Key] = set()
        self._index: dict[str, Key] = {}
        self._spread(self.source.tree, ())

    def _spread(self, tree: Any, key: Key) -> None:
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        for part, value in pairs:
            inner = (*key, part)
            self._index.setdefault(_plain_name(inner), inner)
            self._spread(value, inner)

    # finding

    def has(self, *names: str) -> bool:
        """Return whether the file has one of these keys."""
        return any(_plain(name) in self._index for name in names)

    def find(self, *names: str, default: Any = None) -> Found:
        """Return the first of some keys that the file has, or an answer to it; the default else.

        Args:
            *names: dotted keys, the usual spelling first.
            default: what the trainer takes where the file is silent.

        Returns:
            The value and where it stands.
        """
        keys = [self._index[_plain(name)] for name in names if _plain(name) in self._index]
        for key in keys:
            self._read.add(key)
        key = keys[0] if keys else _key(names[0])
        for name in (*names, spelled(key)):
            if name in self.answers:
                self.used.add(name)
                return Found(key, self.answers[name], "asked")
        value = self.source.get(key) if keys else None
        key, value = self._referred(key, value)
        if value is None:
            return Found(key, default, "default")
        if isinstance(value, Unknown):
            why = f"the file computes it ({value.text}), which only running it would tell"
            return Found(key, self.ask(spelled(key), why, default), "asked")
        return Found(key, self.unrounded(key, value), self.origins.get(key, "file"))

    def unrounded(self, key: Key, value: Any) -> Any:
        """Return a number as it was before a plan made it whole; itself where none did, or it was edited since."""
        before = self.exact.get(spelled(key))
        near = before is not None and isinstance(value, (int, float)) and abs(value - before) <= 1
        return before if near else value

    def _referred(self, key: Key, value: Any) -> tuple[Key, Any]:
        """Follow `${other.key}`, as OmegaConf writes it, to the key that holds the value."""
        for _ in range(_LONGEST):
            if not isinstance(value, str) or "${" not in value:
                return key, value
            match = _REFERENCE.match(value)
            other = self._index.get(_plain(match[1])) if match else None
            if other is None:
                return key, Unknown(value)
            self._read.add(other)
            key, value = other, self.source.get(other)
        return key, Unknown(str(value))

    def number(self, *names: str, default: Any = None, ask: str = "", low: float = 0, kind: type = float) -> Found:
        """Return a number of the file.

        Args:
            *names: dotted keys, the usual spelling first.
            default: what the trainer takes where the file is silent; None for none.
            ask: what it is needed for, where silence is a question.
            low: smallest number that makes sense.
            kind: float, or int for whole ones.

        Returns:
            The number and where it stands; None as its value where the file is silent and nothing is asked.

        Raises:
            InputError: a value that is no such number.
        """
        found = self.find(*names, default=default)
        value = found.value
        if value is None and ask:
            return Found(found.key, self.ask(names[0], ask, STANDS_IN), "asked")
        if value in _AUTO:
            why = 'the file says "auto", which the trainer fills in when it starts'
            return Found(found.key, self.ask(found.name, why, STANDS_IN), "asked")
        if value is None:
            return found
        return Found(found.key, self._number(found, value, low, kind), found.origin)

    def _number(self, found: Found, value: Any, low: float, kind: type) -> Any:
        if isinstance(value, str):
            text = value.strip().replace("_", "")
            with suppress(ValueError):
                value = int(text) if text.lstrip("+-").isdigit() and len(text) < 30 else float(text)
        bad = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
        if not bad and kind is int and value == int(value):
            value = int(value)
        whole = isinstance(value, int) or found.name in self.exact
        if bad or (kind is int and not whole) or value < low or abs(value) > 1e18:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"{found.name}={found.value!r} must be {what} of at least {low:g}; mend the file, or say "
                             f"--set {found.name}=...")  # fmt: skip
        return value

    def whole(self, *names: str, default: Any = None, ask: str = "", low: float = 0) -> Found:
        """Return a whole number of the file; see `number`."""
        return self.number(*names, default=default, ask=ask, low=low, kind=int)

    def word(self, *names: str, default: str | None = None) -> Found:
        """Return a word of the file; refuse a number, a table or a list where a word is meant."""
        found = self.find(*names, default=default)
        if isinstance(found.value, (dict, list)) or (found.value is not None and isinstance(found.value, float)):
            raise InputError(f"{found.name}={found.value!r} must be a word; mend the file")
        return Found(found.key, None if found.value is None else str(found.value), found.origin)

    def flag(self, *names: str, default: bool = False) -> Found:
        """Return a switch of the file; refuse what is no yes or no."""
        found = self.find(*names, default=default)
        value = found.value
        if isinstance(value, str) and value.startswith(("/", "./", "../", "~")):
            value = True  # a switch that stands before the last word of a command
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "1", "0"):
            value = value.lower() in ("true", "yes", "1")
        if value in (0, 1):
            value = bool(value)
        if not isinstance(value, bool):
            raise InputError(f"{found.name}={value!r} must be true or false; mend the file")
        return Found(found.key, value, found.origin)

    def pair(self, *names: str, default: tuple[float, float] | None = None) -> tuple[Found, Found]:
        """Return two numbers of a list, each with a place of its own; refuse anything else."""
        found = self.find(*names, default=list(default) if default else None)
        values = found.value
        if not isinstance(values, list) or len(values) != 2:
            raise InputError(f"{found.name}={values!r} must be a list of two numbers, such as [0.9, 0.999]")
        one, two = (
            Found((*found.key, index), self._number(found, value, 0, float), found.origin)
            for index, value in enumerate(values)
        )
        self._read |= {one.key, two.key}
        return one, two

    def table(self, name: str) -> dict[str, Any]:
        """Return a table of the file, empty where it has none; name one that the file computes."""
        return value if isinstance(value := self._nest(name), dict) else {}

    def items(self, name: str) -> list[Any]:
        """Return a list of the file, empty where it has none; name one that the file computes."""
        return value if isinstance(value := self._nest(name), list) else []

    def _nest(self, name: str) -> Any:
        value = self.source.get(self._index.get(_plain(name), ("",)))
        if isinstance(value, Unknown):
            self.unread(name, "the file computes it, which only running it would tell; the plan leaves it as it is")
        return value

    # asking

    def ask(self, name: str, why: str, stand_in: T, flag: str = "") -> Any:
        """Return the answer to a question; note the question, and let a stand-in pass, where there is none.

        Args:
            name: of what is missing.
            why: what it is needed for.
            stand_in: lets the rest be read.
            flag: the flag that answers; --set NAME=... unless given.

        Returns:
            The answer, or the stand-in.
        """
        if name in self.answers:
            self.used.add(name)
            return self.answers[name]
        self.questions.setdefault(name, Question(name, why, flag or f"--set {name}=..."))
        return stand_in

    def devices(
        self, why: str = "its batch is that of one device", default: int | None = None, assume: int | None = None
    ) -> int:
        """Return the data-parallel devices.

        Args:
            why: they are needed.
            default: what the file or its launcher says.
            assume: what may be assumed where nobody says it, because the batch does not depend on it.

        Returns:
            Devices; 1 while the question is open.
        """
        tree = self.source.tree.items()  # what was set aside, such as other configs of a registry, does not count
        shared = sharing({part: value for part, value in tree if (part,) not in self._read})
        if shared:
            split = math.prod(shared.values())
            keys = " x ".join(f"{key} = {degree}" for key, degree in shared.items())
            why = f"{why}, and {keys} devices hold one model, so that the number is GPUs / {split}"
            self.note(f"{keys} devices hold one model and take the same samples: devices counts models, GPUs / {split}")
        if "devices" not in self.answers and default is None and assume is not None:
            self.devices_said = False
            return assume
        if "devices" not in self.answers and default is not None:
            return default
        if default is not None and self.answers["devices"] != default:
            self.note(
                f"the file itself says {default} devices, and was planned for {self.answers['devices']}, as --devices "
                "says; no key of it says the new number, so start it on the devices that the plan is for"
            )
        value = self.ask("devices", f"{why}; how many data-parallel devices (GPUs) is the file for?", 1,
                         "--devices 8 (or --devices 8->2)")  # fmt: skip
        return self.whole_answer("devices", value)

    def data_size(self, why: str = "spans are in epochs") -> int:
        """Return the samples in an epoch, asked unless the file says them."""
        if self.draft.data_size is None:
            value = self.ask("data_size", f"{why}; how many training samples has an epoch?", 10**9,
                             "--set data_size=117266")  # fmt: skip
            self.draft.data_size = self.whole_answer("data_size", value)
        return self.draft.data_size

    def whole_answer(self, name: str, value: Any) -> int:
        """Return an answer that has to be a whole number of at least 1."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} must be a whole number of at least 1")
        return value

    def remember(self, name: str, value: T) -> T:
        """Return a value as the first recipe had it, which the stamp of a planned file carries on."""
        self.remembered[name] = self.answers.get(name, value)
        self.used.add(name)
        return self.remembered[name]

    # saying

    def say(
        self,
        path: str,
        found: Found,
        value: Any = None,
        *,
        back: Callable[[View], Any] | None = None,
        words: str = "",
        whole: bool = False,
        least: float = 0,
    ) -> None:
        """Enter a number into the recipe, and the way back into the ledger.

        Args:
            path: its short name (`view.FIELDS`), or a path such as "groups[0].lr".
            found: as the file has it.
            value: as the recipe has it; the same unless given.
            back: what the file must say for another recipe; the recipe's number unless given.
            words: how the one becomes the other.
            whole: whether only whole numbers can stand there.
            least: smallest number that can stand there.
        """
        said = found.value if value is None else value
        if path == "lr" and not said > 0:
            raise InputError(f"{found.name}={found.value!r}: the learning rate must be above 0; mend the file")
        if path in FIELDS or "[" not in path:
            self.draft.values[path] = said
        self.link(path, found, back or (lambda view: view[path]), words=words, whole=whole, least=least)

    def link(
        self,
        path: str,
        found: Found,
        back: Callable[[View], Any],
        *,
        words: str = "",
        whole: bool = False,
        least: float = 0,
        unit: str = "",
    ) -> None:
        """Enter a key into the ledger alone, for a number that the recipe holds already."""
        where = FIELDS.get(path, path)
        self.links.append(Link(found.key, where, found.value, back, found.origin, words, whole, least, unit))

    def span(self, name: str, found: Found, unit: str, *, times: float = 1, whole: bool = True, least: int = 0) -> None:
        """Enter a span: kept in samples, so many of its own units at another batch.

        Args:
            name: of the span.
            found: as the file has it.
            unit: steps, samples, tokens, epochs, passes (of all devices, whatever an update holds), or length for a
                share of the run.
            times: units in one of the file's, such as iterations in an "epoch".
            whole: whether only whole numbers can stand there; counts of epochs and shares never change.
            least: smallest number that can stand there.
        """
        amount = found.value * times
        if unit == "length":
            number, _, of = self.draft.spans["length"].partition(" ")
            self.draft.spans[name] = f"{_count(float(f'{float(number) * amount:.15g}'))} {of}"
            self.link(
                name, found, lambda view: view.samples(name) / view.samples("length") / times, words="share of the run"
            )
            return
        each = self.draft.values["micro"] * self.draft.values["devices"] if unit == "passes" else 1
        self.draft.spans[name] = f"{_count(amount * each)} {self.draft.unit if unit == 'passes' else unit}"
        if unit == "epochs":
            self.data_size()
        per = {
            "steps": lambda view: view.steps(name) / times,
            "passes": lambda view: view.samples(name) / (view.micro * view.devices) / times,
            "epochs": lambda view: view.samples(name) / (self.draft.data_size or 1) / times,
        }.get(unit, lambda view: view.samples(name) / self.draft.samples_in(unit) / times)
        said = f"{times:g} {unit} each" if times != 1 else ""
        self.link(name, found, per, words=said, whole=whole and unit in ("steps", "passes"), least=least)

    def fix(self, path: str, value: Any, where: str, back: Callable[[View], Any] | None = None) -> None:
        """Enter a constant of the trainer's code; with `back`, one that the code says in a unit of its own."""
        if path in FIELDS and back is None:
            self.draft.values[path] = value
        self.fixed.append(Fixed(FIELDS.get(path, path), value, where, back))

    def rule(self, word: str, key: str, formula: str, reference: float) -> None:
        """Note that the trainer scales what its file says by a rule of its own, which stays on."""
        self.own_rule = OwnRule(key, formula, word, reference)
        self.draft.rules |= {"lr": word, "momentum": "keep"}

    def unread(self, name: str, why: str) -> None:
        """Name a key that acts and that the recipe does not hold."""
        key = self._index.get(_plain(name))
        if key is not None:
            value = self.source.get(key)
            if value not in (None, False, 0, "", [], {}):
                self.left[spelled(key)] = Unread(spelled(key), _short(value), why)
            self._read.add(key)

    def inert(self, *names: str) -> None:
        """Note keys that do not act on what a batch touches, whatever their names say; a name covers what it holds.

        Args:
            *names: dotted keys, or several in one text.
        """
        for name in " ".join(names).split():
            key = self._index.get(_plain(name))
            if key is not None:
                self._read.add(key)

    def note(self, text: str) -> None:
        """Tell the reader something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def doubt(self, text: str) -> None:
        """Name what looks scaled twice."""
        self.doubts.append(text)

    # ending

    def ledger(self, name: str, title: str) -> Ledger:
        """Return the ledger, every key of the file accounted for; raise `Unanswered` where questions are open."""
        if self.questions:
            raise Unanswered(self.source.name, tuple(self.questions.values()))
        for key, value in leaves(self.source.tree):
            inside = any(key[:cut] in self._read for cut in range(1, len(key)))
            if key in self._read or (inside and not averages(spelled(key), value)):
                continue
            if inside or acts(spelled(key), value):
                why = "its name says that it acts; this reader does not know it, so the plan leaves it as it is"
                self.left.setdefault(spelled(key), Unread(spelled(key), _short(value), why))
        spans = {span: self.draft.samples(span) for span in self.draft.spans}
        return Ledger(
            name, title, self.source, tuple(self.links), self.own_rule, self.reference, tuple(self.left.values()),
            tuple(self.fixed), dict(self.answers), spans, tuple(self.notes), tuple(self.doubts), self.devices_said,
            self.accumulates, self.per_device, self.keeps_batch,
        )  # fmt: skip


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _plain_name(key: Key) -> str:
    return _plain(".".join(str(part) for part in key))


def _key(name: str) -> Key:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def _count(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(float(number))


def _short(value: Any) -> Any:
    text = value.text if isinstance(value, Unknown) else value
    return text if len(str(text)) <= 80 else str(text)[:77] + "..."
