"""A plan in the words of a file: which keys change, from what to what, why; and the file with them in it."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobatch.errors import InputError
from isobatch.formats.ledger import Change, Ledger, like, same
from isobatch.formats.show import head, remarks, render, to_dict, to_json, to_markdown
from isobatch.formats.split import asked_batch
from isobatch.formats.stamp import SIDECAR, Stamp, stamped
from isobatch.formats.texts import Key, Source, Unknown, spelled, write_text
from isobatch.formats.view import View
from isobatch.markup import panel
from isobatch.plan import Plan, Recipe
from isobatch.plan.plan import Form, show
from isobatch.rules import OPTIMIZERS

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_SPLIT = ("batch.size", "batch.micro", "batch.devices", "batch.base", "accumulation", "nbs")
_HELD = ("rollout", "generation", "group", "critic")
"""What holds some updates of reinforcement learning, and goes with the batch."""
_RULED = {
    "curves.weight_decay": "optimizer.weight_decay",
    "curves.lr": "optimizer.lr",
    "schedule.final": "optimizer.lr",
    "centre": "ema.decay",
}
"""Shares of a number follow the rule of that number, and an average beside the teacher that of the teacher."""


@dataclass(frozen=True)
class FileRow:
    """One key of the file that changes.

    Args:
        key: as the file spells it.
        was: its value in the file, or the trainer's default.
        becomes: what to write.
        path: the number of the recipe that it is.
        rule: the formula.
        because: why, with the source.
        confidence: how sure the rule is.
        origin: where the old value comes from: file, default, an included file, an answer.
        note: rounding, conversion.
    """

    key: str
    was: Any
    becomes: Any
    path: str
    rule: str
    because: str
    confidence: str
    origin: str = "file"
    note: str = ""


@dataclass(frozen=True)
class FilePlan:
    """A plan of a file.

    Args:
        plan: the plan of its recipe.
        reference: the recipe that was read.
        ledger: which key is which number.
        changes: keys that change.
        kept: keys that change where the batch is kept on the new devices instead; None where the file cannot say that.
        again: reads a planned text again.
    """

    plan: Plan[Recipe]
    reference: Recipe
    ledger: Ledger
    changes: tuple[Change, ...]
    kept: tuple[Change, ...] | None
    again: Callable[[str, Stamp], Any] | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe at the new batch."""
        return self.plan.recipe

    @property
    def by_own_rule(self) -> tuple[str, float, float] | None:
        """Key, value in the plan, and value by the plan's own rule of the rate, where the trainer's is another one."""
        link = next((one for one in self.ledger.links if one.path == "optimizer.lr"), None)
        if self.ledger.own_rule is None or link is None or self.plan.kappa == 1:
            return None
        free = self.reference.model_copy(
            update={"rules": self.reference.rules.model_copy(update={"lr": "auto", "momentum": "sample-clock"})}
        )
        batch = self.recipe.batch
        view = View(
            free.at(batch.size, devices=batch.devices, micro=batch.micro).recipe, self.ledger.spans, self.reference
        )
        stated, wanted = link.back(View(self.recipe, self.ledger.spans, self.reference)), link.back(view)
        return None if same(stated, wanted) else (link.name, stated, wanted)

    @property
    def rows(self) -> tuple[FileRow, ...]:
        """The keys that change, in the order of the file."""
        return tuple(self._row(change) for change in self.changes)

    @property
    def unsaid(self) -> tuple[FileRow, ...]:
        """Numbers that move and that the file cannot say: constants of the trainer's code."""
        found = []
        new = View(self.recipe, self.ledger.spans, self.reference)
        for fixed in self.ledger.fixed:
            becomes = _number_at(new, fixed.path) if fixed.back is None else fixed.back(new)
            if becomes is not None and not same(becomes, fixed.value):
                rule, because, confidence = self._why(fixed.path)
                found.append(
                    FileRow(fixed.path, fixed.value, becomes, fixed.path, rule, because, confidence, fixed.where)
                )
        return (*found, *self._unwritten(new))

    def _unwritten(self, new: View) -> Iterator[FileRow]:
        """Yield the numbers that move and that no key, and no known constant of the code, holds."""
        held = {one.path for one in (*self.ledger.links, *self.ledger.fixed)}
        held |= {path.split("[")[0] for path in held if path.startswith("optimizer.")}
        old = View(self.reference, self.ledger.spans)
        paths = {f"optimizer.{key}" for key in OPTIMIZERS[self.reference.optimizer.name].keys}
        paths |= {"batch_norm.momentum"} | (set() if any(path.startswith("ema") for path in held) else {"ema.decay"})
        for path in sorted(paths - held):
            was, becomes = _number_at(old, path), _number_at(new, path)
            if was is not None and becomes is not None and not same(was, becomes):
                rule, because, confidence = self._why(path)
                yield FileRow(
                    path, was, becomes, path, rule, because, confidence, "the default, which no key here says"
                )

    @property
    def forms(self) -> tuple[Form, ...]:
        """The plan's other forms that a file can say, each with its numbers as this file would say them."""
        return tuple(
            replace(form, values=self._worded(form))
            for form in self.plan.forms
            if not form.how.startswith("--optimizer")
        )

    def _worded(self, form: Form) -> dict[str, object]:
        moved = {path.removeprefix("optimizer."): value for path, value in form.values.items()}
        optimizer = self.recipe.optimizer.model_copy(update=moved)
        view = View(self.recipe.model_copy(update={"optimizer": optimizer}), self.ledger.spans, self.reference)
        found: dict[str, object] = {}
        for path, value in form.values.items():
            links = [link for link in self.ledger.links if link.path.split("[")[0] == path]
            said = {link.name: like(link.back(view), link.value) for link in links}
            code = {one.path: one.back(view) for one in self.ledger.fixed if one.path == path and one.back is not None}
            found |= said or code or {path: value}
        return found

    @property
    def stamp(self) -> Stamp:
        """What the planned file says of itself."""
        batch, before, planned = self.recipe.batch, self.ledger.stamp, self.recipe.planned
        held = planned.held if planned is not None else {}
        exact = {change.link.name: change.exact for change in self.changes if change.exact is not None}
        return Stamp(
            before.reference if before is not None else self.reference.batch.size,
            batch.size, batch.devices, batch.per_device, self._carried, exact, held,
        )  # fmt: skip

    @property
    def _carried(self) -> dict[str, Any]:
        """Answers that the planned file still leaves open: not those that it now says itself."""
        written = {name for change in self.changes for name in (change.link.name, spelled(change.link.key[-1:]))}
        return {name: value for name, value in self.ledger.answers.items() if name not in written}

    def text(self) -> str:
        """Return the file with the planned values in it; the very same text where nothing changes.

        The result is read again and compared with the plan, so that no file says something else than its plan.

        Returns:
            The text.

        Raises:
            InputError: a value that cannot be written there.
        """
        source = self.ledger.source
        if source.kind == "object":
            raise InputError("a config object has no text; use isobatch.formats.scale_config, which returns a new one")
        if not self.changes:
            return source.text
        edits = self.edits()
        text = stamped(source.edit(edits), self.stamp, source)
        if self.again is None:
            return text
        found = self.again(text, self.stamp)
        drifted = self._drifted(found.ledger)
        if drifted:  # what the file computes from a number that the plan changes is written out
            text = stamped(source.edit({**edits, **drifted}), self.stamp, source)
            found = self.again(text, self.stamp)
            for key, value in self._drifted(found.ledger).items():
                raise InputError(
                    f"{spelled(key)} moves with another number of the file, where the plan says {value!r}; write it "
                    "out in the file, and plan again"
                )
        self._check(found.recipe, found.ledger)
        return text

    def _drifted(self, read: Ledger) -> dict[Key, Any]:
        """Return numbers that the plan leaves alone and that the planned text says otherwise: key -> what they were."""
        changed = {change.link.key for change in self.changes}
        kept = {
            link.key: link.value
            for link in self.ledger.links
            if link.origin in ("file", "launcher") and link.key not in changed
        }
        found = {link.key: link.value for link in read.links}
        return {key: value for key, value in kept.items() if key in found and not _near(found[key], value)}

    def edits(self) -> dict[Key, Any]:
        """Return what is written where; a list that the file itself does not have is written whole."""
        found: dict[Key, Any] = {}
        source = self.ledger.source
        for key, value in ((change.link.key, change.becomes) for change in self.changes):
            lists = (cut for cut in range(1, len(key)) if isinstance(key[cut], int))
            cut = next((cut for cut in lists if not _stands(source, key[:cut], key[cut])), None)
            if cut is None:
                found[key] = value
                continue
            whole = found.setdefault(key[:cut], self._list_of(key[:cut]))
            for part in key[cut:-1]:
                whole = whole[part]
            whole[key[-1]] = value
        return found

    def _list_of(self, key: Key) -> list[Any]:
        """Return a list as an included file has it, or as the trainer's defaults fill it."""
        held = self.ledger.source.get(key)
        if isinstance(held, list):
            if not all(plain for plain in map(_known, held)):
                raise InputError(f"{spelled(key)} is computed in another file; write it out in this one")
            return copy.deepcopy(held)
        items = {link.key[-1]: link.value for link in self.ledger.links if link.key[:-1] == key}
        return [items[index] for index in sorted(items, key=int)]

    def _check(self, recipe: Recipe, read: Ledger) -> None:
        before, after = View(self.recipe, self.ledger.spans, self.reference), View(recipe, read.spans)
        for change in self.changes:
            link = change.link
            wanted = link.back(before)
            got = next((other for other in read.links if other.key == link.key and other.path == link.path), None)
            value = None if got is None else got.back(after)
            close = same(wanted, value) or (change.exact is not None and same(change.becomes, value))
            if not close and not _near(wanted, value):
                raise InputError(
                    f"{link.name} would be read as {value!r} where the plan says {wanted!r}; change it by hand"
                )

    def diff(self) -> str:
        """Return the change of the file as a unified diff; "" where nothing changes."""
        name = str(self.ledger.source.path or self.ledger.source.name)
        old, new = self.ledger.source.text.splitlines(keepends=True), self.text().splitlines(keepends=True)
        lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def patch(self, out: str | Path | None = None) -> Path:
        """Write the file with the planned values, whole or not at all.

        Args:
            out: another file; the file itself unless given.

        Returns:
            The file that was written; an unchanged one is not touched.

        Raises:
            InputError: a value that cannot be written there, or a file that cannot be written.
        """
        path = self.ledger.source.path
        if path is None and out is None:
            raise InputError("a recipe that was no file needs a file to be written to; give one")
        target, text = Path(out) if out is not None else Path(path or ""), self.text()
        if not self.changes and out is None:
            return target
        write_text(target, text)
        if self.ledger.source.kind == "json" and self.changes:
            write_text(target.with_name(target.name + SIDECAR), f"# {self.stamp.line()}\n")
        return target

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, as docs/plan.schema.json describes them."""
        return to_dict(self)

    def to_json(self) -> str:
        """Return the plan as JSON for programs."""
        return to_json(self)

    def to_markdown(self) -> str:
        """Return the plan as Markdown."""
        return to_markdown(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def _repr_html_(self) -> str:
        """As notebooks show it."""
        rows = [["key", "was", "becomes", "because", "confidence"]]
        rows += [[row.key, show(row.was), show(row.becomes), row.because, row.confidence] for row in self.rows]
        return panel(head(self), rows if self.rows else (), [*remarks(self)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from render(self, options.max_width)

    def explain(self, key: str) -> str:
        """Return where a number came from, and where it goes.

        Args:
            key: of the file, or of the recipe.

        Returns:
            Text.

        Raises:
            InputError: a key that was not read.
        """
        for item in self.ledger.unread:
            if key in (item.key, item.key.rsplit(".", 1)[-1]):
                return f"{item.key} = {item.value!r} acts and was not read: {item.why}"
        for fixed in self.ledger.fixed:
            if key == fixed.path:
                return f"{fixed.path} = {fixed.value!r} stands in no file: {fixed.where}"
        link = self.ledger.link(key)
        rows = {change.link.key: change for change in self.changes}
        lines = [f"{link.name} = {link.value!r} ({link.origin})", f"  is {link.path} of the recipe"]
        if link.words:
            lines.append(f"  by {link.words}")
        change = rows.get(link.key)
        rule, because, confidence = self._why(link.path)
        if change is None:
            lines.append("  stays at this batch")
        else:
            lines.append(
                f"  becomes {change.becomes!r}" + (f", made whole from {change.exact!r}" if change.exact else "")
            )
        if rule:
            sure = "" if because.endswith(f"({confidence})") else f" ({confidence})"
            lines.append(f"  rule {rule}: {because}{sure}")
        own = self.ledger.own_rule
        if own is not None and link.path == "optimizer.lr":
            lines.append(f"  the trainer's own rule stays on: {own.formula} ({own.key})")
        return "\n".join(lines)

    def _why(self, path: str) -> tuple[str, str, str]:
        if path.startswith("groups["):
            head, field = path.split(".", 1)
            group = self.recipe.groups[int(head[len("groups[") : -1])]
            path = f"groups.{group.name}.{field}"
            if not any(row.key.split("[")[0] == path.split("[")[0] for row in self.plan.rows):
                path = f"optimizer.{field}"
        path = _RULED.get(path, path)
        heads = (path, path.split("[")[0], path.rsplit(".", 1)[0])
        near = (row for row in self.plan.rows if row.key in heads or row.key.split("[")[0] == heads[1])
        row = next((row for row in self.plan.rows if row.key == path), None) or next(near, None)
        if row is not None:
            return row.rule, row.because, str(row.confidence)
        if path in _SPLIT:
            return "B = micro x devices x n", "what was asked for", "derived"
        if path in _HELD:
            return "kappa*held", "as many updates use it, so that its data are as old as before", "derived"
        return "steps/kappa", "a span stays the same in samples", "derived"

    def _row(self, change: Change) -> FileRow:
        link = change.link
        rule, because, confidence = self._why(link.path)
        notes = [link.words] if link.words else []
        if change.exact is not None:
            notes.append(f"made whole from {change.exact:.6g}")
        if link.origin.startswith("include"):
            notes.append(f"overrides the {link.origin}")
        if link.origin == "default":
            notes.append("added: the trainer's default stood here")
        return FileRow(
            link.name, link.value, change.becomes, link.path, rule, because, confidence, link.origin, "; ".join(notes)
        )


def plan_file(
    recipe: Recipe,
    ledger: Ledger,
    batch_size: int | None,
    devices: int | None,
    micro: int | None,
    keep_batch: bool,
    ways: Mapping[str, Any],
) -> FilePlan:
    """Plan a file; see `Loaded.at`."""
    asked = asked_batch(recipe, ledger, batch_size, devices, micro, keep_batch)
    plan = recipe.at(asked.size, devices=asked.devices, micro=asked.micro, **ways)
    changes = ledger.changes(View(plan.recipe, ledger.spans, recipe))
    kept: tuple[Change, ...] | None = None
    if plan.kappa != 1:
        try:
            same_batch = asked_batch(recipe, ledger, None, asked.devices, None, True)
            held = recipe.at(same_batch.size, devices=same_batch.devices, micro=same_batch.micro)
            kept = ledger.changes(View(held.recipe, ledger.spans, recipe))
        except InputError:
            kept = None
    return FilePlan(plan, recipe, ledger, changes, kept)


def _stands(source: Source, key: Key, index: str | int) -> bool:
    """Whether a list, and an item of it, stand in the text itself, or in an object."""
    if not isinstance(source.get(key), list):
        return False
    if source.kind in ("toml", "object"):
        return True
    if source.kind == "command":  # [0.9, 0.95] in one word is written whole, two words are not
        return key not in source.spots
    return key in source.spots and (*key, index) in source.spots


def _known(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_known(item) for item in value)
    return all(_known(item) for item in value.values()) if isinstance(value, dict) else not isinstance(value, Unknown)


def _number_at(view: View, path: str) -> Any:
    try:
        return view[path]
    except (KeyError, AttributeError, IndexError):
        return None


def _near(one: Any, other: Any) -> bool:
    """Whether two numbers agree but for what a whole span, or a sum of conversions, costs."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_near(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, bool) or not isinstance(one, (int, float)) or not isinstance(other, (int, float)):
        return one == other
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other), 1e-300)
