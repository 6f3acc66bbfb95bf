"""A plan as one page to play with: the batch on a slider, every number of it a plan's, nothing loaded from anywhere."""

import math
import shlex
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from isobatch.errors import InputError
from isobatch.export.plan_curves import run_curves, unread
from isobatch.export.recipe_file import plan_toml, plan_values
from isobatch.formats import FilePlan, Loaded
from isobatch.formats.show import head, remarks
from isobatch.formats.texts import yaml_text
from isobatch.installed import VERSION
from isobatch.markup import embedded, filled, style
from isobatch.plan import Plan, Recipe
from isobatch.plan.plan import show

FACTORS = tuple(sorted({2.0**power * part for power in range(-6, 8) for part in (1, 1.5)}))
"""Batches on the slider, over the reference's; those that a recipe cannot take are left out and named."""
AROUND = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
"""Places of the second slider, over the noise scale or critical batch that is given."""
_NAMED = {"yaml": "YAML file", "toml": "TOML file", "json": "JSON file", "python": "Python file", "command": "command"}
_REFUSED = 6


def plan_page(
    recipe: Recipe | Loaded,
    batch_size: int | None = None,
    *,
    micro: int | None = None,
    devices: int | None = None,
    noise_scale: float | None = None,
    optimizer: str | None = None,
    rule: str | None = None,
    goal: str = "equivalence",
    source: str = "recipe.toml",
    words: Sequence[str] | None = None,
    named: Sequence[str] | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> str:
    """Return a page with a plan for each of many batches, one of them shown, the others a slider away.

    Args:
        recipe: a recipe, or a file of another stack as `isobatch.formats.load` returns it.
        batch_size: shown at first; unless given the one that devices and micro take, or the recipe's own.
        micro: samples per device and forward pass at every batch, where it divides them.
        devices: data-parallel devices at every batch.
        noise_scale: gradient noise scale in samples; a second slider goes from an eighth of it to eight times it.
        optimizer: "invariant" for the invariant form; of a recipe only.
        rule: "legw" for LEGW.
        goal: "speed" for the fastest run; with [critical] in the recipe the second slider moves the critical batch.
        source: name of the file, as the commands on the page call it.
        words: options of those commands; those of the other arguments unless given.
        named: words by which those commands name the recipe, such as --like NAME@BATCH; source unless given.
        on_done: called with plans made, and plans in all.

    Returns:
        HTML.

    Raises:
        InputError: a batch that cannot be planned, or a noise scale out of range.

    Example:
        >>> page = plan_page(Recipe.load("examples/digits.toml"), 128, source="examples/digits.toml")
        >>> "isobatch plan examples/digits.toml --batch-size 128" in page
        True
    """
    if words is None:
        given = (("devices", devices), ("optimizer", optimizer), ("rule", rule))
        words = [word for name, value in given if value is not None for word in (f"--{name}", str(value))]
        words += ["--goal", goal] if goal != "equivalence" else []
    ways = {"rule": rule, "goal": goal} | ({"optimizer": optimizer} if isinstance(recipe, Recipe) else {})
    call = ("isobatch", "plan", *((source,) if named is None else named))
    grid = _Grid(recipe, micro, devices, ways, source, (call, tuple(words)), noise_scale)
    data = grid.filled(batch_size, on_done)
    name = Path(source).name
    title = f"{name} at any batch size"
    texts = {"style": style(), "title": _escaped(title), "data": embedded(data), "version": VERSION}
    return filled(resources.files("isobatch.export").joinpath("plan_page.html").read_text(encoding="utf-8"), texts)


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)


class _Grid:
    """The plans of a page: batches that can be planned, noise scales, and every text and curve kept once."""

    def __init__(
        self,
        recipe: Recipe | Loaded,
        micro: int | None,
        devices: int | None,
        ways: dict[str, Any],
        source: str,
        commands: tuple[tuple[str, ...], tuple[str, ...]],
        noise_scale: float | None,
    ):
        self.recipe, self.own = recipe, recipe if isinstance(recipe, Recipe) else recipe.recipe
        self.micro, self.devices, self.ways = micro, devices, ways
        self.source, (self.call, self.words) = source, commands
        self.label, self.values, self.scales = _second(self.own, noise_scale, str(ways["goal"]))
        self.texts: dict[str, int] = {}
        self.arrays: dict[tuple[Any, ...], int] = {}

    def filled(self, batch_size: int | None, on_done: Callable[[int, int], None] | None) -> dict[str, Any]:
        start = self._start(batch_size)
        batch = self.own.batch
        asked = {round(batch.size * factor) for factor in FACTORS if float(batch.size * factor).is_integer()}
        middle = self.scales[len(self.scales) // 2]
        kept: list[tuple[int, int | None]] = []
        refused: list[tuple[int, str]] = []
        for size in sorted({*asked, batch.size, start}):
            try:
                micro = self._fits(size)
                self._made(size, micro, middle)
                kept.append((size, micro))
            except InputError as error:
                if size == start:
                    raise
                refused.append((size, str(error)))
        points, total = [], len(kept) * len(self.scales)
        for size, micro in kept:
            row = []
            for scale in self.scales:
                try:
                    row.append(self._point(size, micro, scale))
                except InputError as error:  # at this noise scale only
                    row.append({"refused": self._text(str(error))})
                if on_done is not None:
                    on_done(len(points) * len(self.scales) + len(row), total)
            points.append(row)
        sizes = [size for size, _ in kept]
        second = None
        if self.label:
            second = {"label": self.label, "values": self.values, "start": len(self.values) // 2}
        return {
            "name": Path(self.source).name,
            "unit": batch.unit,
            "was": batch.size,
            "sizes": sizes,
            "start": sizes.index(start),
            "second": second,
            "points": points,
            "reference": self._curves(self.own),
            "unread": unread(self.own),
            "refused": [[size, why] for size, why in _nearest(refused, start)],
            "more": max(0, len(refused) - _REFUSED),
            "texts": list(self.texts),
            "arrays": [list(values) for values in self.arrays],
        }

    def _start(self, batch_size: int | None) -> int:
        """Return the batch that is shown first."""
        if batch_size is None and self.micro is None and self.devices is None:
            return self.own.batch.size
        made = self._made(batch_size, self.micro, self.scales[len(self.scales) // 2])
        return int(made.recipe.batch.size)

    def _fits(self, size: int) -> int | None:
        """Return the samples of a pass at a batch: what was asked for or the recipe has, or the most that divides."""
        batch = self.own.batch
        micro = self.micro if self.micro is not None else batch.micro
        count = self.devices or batch.devices
        if micro is None or size % count or not isinstance(self.recipe, Recipe):
            return self.micro
        fits = math.gcd(size // count, micro)
        return None if fits == batch.micro and self.micro is None else fits

    def _made(self, size: int | None, micro: int | None, scale: float | None) -> "Plan[Recipe] | FilePlan":
        return self.recipe.at(size, micro=micro, devices=self.devices, noise_scale=scale, **self.ways)

    def _point(self, size: int, micro: int | None, scale: float | None) -> dict[str, Any]:
        made = self._made(size, micro, scale)
        plan = made.plan if isinstance(made, FilePlan) else made
        command = [*self.call, "--batch-size", str(size), *self.words]
        command += [] if micro is None else ["--micro", str(micro)]
        command += [] if scale is None else ["--noise-scale", f"{scale:.12g}"]
        now = plan.recipe.batch
        if isinstance(made, FilePlan):
            told, cautions = head(made), [("", text) for text in remarks(made)]
            rows = [
                (row.key, show(row.was), show(row.becomes), row.rule, row.because, row.confidence, row.note)
                for row in made.rows
            ]
            label = _NAMED.get(made.ledger.source.kind, "file")
            copies = [(label, made.text()), ("TOML", plan_toml(plan, Path(self.source).name))]
            copies.append(("command line", shlex.join([*command, "--patch"]) + "\n"))
        else:
            told = f"batch {self.own.batch.size:,} to {now.size:,} {now.unit}, kappa = {plan.kappa:g}"
            cautions = [(w.condition, f"{w.message} ({w.side}; {w.source})") for w in plan.warnings]
            rows = []
            new = f"{Path(self.source).stem}-{size}.toml"
            copies = [("TOML", plan_toml(plan, Path(self.source).name)), ("YAML", yaml_text(plan_values(plan)))]
            copies.append(("command line", shlex.join([*command, "--write", new]) + "\n"))
        every = [(r.key, *r.text, r.rule, r.because, str(r.confidence), r.note) for r in plan.rows]
        return {
            "head": self._text(told),
            "split": self._text(f"{now.devices} x {now.per_device} x n = {now.accumulation}"),
            "keep": self._text(f"{plan.kept} keeps the batch of {plan.kept.size:,} and every other number"),
            "changes": [self._row(row) for row in rows],
            "rows": [self._row(row) for row in every],
            "cautions": [self._row(caution) for caution in cautions],
            "forms": [self._row((form.name, f"({form.how}) {form}")) for form in plan.forms],
            "remedies": [self._row((r.name, f"{r.how}; {r.cost} ({r.evidence})")) for r in plan.remedies],
            "copies": [[self._text(label), *map(self._text, text.split("\n"))] for label, text in copies],
            "curves": self._curves(plan.recipe),
        }

    def _curves(self, recipe: Recipe) -> list[list[int]]:
        """Return name, samples, steps and values of each curve, as places among the texts and arrays."""
        return [
            [self._text(one.name), *(self._array(values) for values in (one.samples, one.steps, one.values))]
            for one in run_curves(recipe)
        ]

    def _row(self, cells: Sequence[object]) -> list[int]:
        return [self._text(str(cell)) for cell in cells]

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def _array(self, values: tuple[Any, ...]) -> int:
        return self.arrays.setdefault(values, len(self.arrays))


def _second(recipe: Recipe, noise_scale: float | None, goal: str) -> tuple[str, list[float], list[float | None]]:
    """Return what the second slider is called, its values, and the noise scale that each of them is planned with."""
    if noise_scale is not None:
        values = [float(f"{noise_scale * factor:.6g}") for factor in AROUND] if noise_scale else [0.0]
        return "gradient noise scale", values, [*values]
    known = recipe.critical
    if goal != "speed" or known is None:
        return "", [], [None]
    values = [float(f"{known.batch * factor:.6g}") for factor in AROUND]
    scales = [None if factor == 1 else value / (known.ratio or 1) for factor, value in zip(AROUND, values, strict=True)]
    return "critical batch", values, scales


def _nearest(refused: list[tuple[int, str]], start: int) -> list[tuple[int, str]]:
    """Return the refused batches nearest to the one that is shown first, in order."""
    near = sorted(refused, key=lambda one: abs(math.log(one[0] / start)))[:_REFUSED]
    return sorted(near)
