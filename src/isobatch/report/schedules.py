"""The schedules of a plan, old and new, against samples: a picture and a page."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from isobatch.curves import RAMPS
from isobatch.plan import Recipe
from isobatch.plan.plan import show
from isobatch.recipe import LAWS
from isobatch.report.page import Section, render
from isobatch.report.pictures import COLOURS, RC, STYLES, png
from isobatch.units import half_life

POINTS = 400
"""Places along the run at which a schedule is drawn."""
_BY_UPDATE = ("tensorflow", "power", "exp")
"""Ramps that count updates, each by a formula of its own."""
AVERAGE = "half-life of the average, in samples"


def schedule_picture(old: Recipe, new: Recipe) -> bytes:
    """Return the schedules of two recipes as PNG; see `schedule_figure`.

    Args:
        old: the recipe that was read.
        new: the recipe at the new batch.

    Returns:
        PNG.

    Raises:
        InputError: a recipe without a length.
    """
    return png(schedule_figure(old, new))


def schedule_figure(old: Recipe, new: Recipe) -> Figure:
    """Draw what moves over the run, of two recipes, against samples: each panel one setting, each line its own steps.

    The learning rate is always drawn; weight decay, momentum and the average's half-life where they are curves.

    Args:
        old: the recipe that was read.
        new: the recipe at the new batch.

    Returns:
        A figure, a panel for each setting.

    Raises:
        InputError: a recipe without a length.
    """
    import matplotlib

    drawn = {"reference": curves_of(old), "plan": curves_of(new)}
    names = [name for name in drawn["reference"] if name in drawn["plan"]]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.5, 1.0 + 2.6 * len(names)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
        for axes, name in zip(panels, names, strict=True):
            for arm, recipe in (("reference", old), ("plan", new)):
                x, y = drawn[arm][name]
                label = f"{arm}: batch {recipe.batch.size:,}"
                axes.step(x, y, where="post", color=COLOURS[arm], linestyle=STYLES[arm], label=label)
            axes.set_title(name, loc="left")
            if name == AVERAGE:
                axes.set_yscale("log")
                axes.set_ylim(top=min(axes.get_ylim()[1], 100 * drawn["reference"][name][0][-1]))
            else:
                axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_amount if name == AVERAGE else "{x:g}")
            axes.yaxis.set_minor_formatter("")
        panels[0].legend()
        panels[-1].xaxis.set_major_formatter(_amount)
        panels[-1].set_xlabel(f"{old.batch.unit} seen")
    return figure


def _amount(value: float, _: int | None = None) -> str:
    """Return a number of samples as people write it: 40k, 1.2M, 300G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def curves_of(recipe: Recipe) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what moves over a recipe's run, each through its mean over a step.

    Args:
        recipe: the recipe.

    Returns:
        Name -> samples and values.
    """
    stairs, size, optimizer = recipe.staircase(), recipe.batch.size, recipe.optimizer
    steps = max(int(stairs.length // size), 1)
    starts = np.unique(np.linspace(0, steps - 1, min(POINTS, steps)).astype(int)) * float(size)
    functions: dict[str, Callable[[float], float]] = {
        "learning rate": lambda seen: optimizer.lr * stairs.mean(seen, seen + size)
    }
    decay, momentum = recipe.curve("weight_decay"), recipe.curve("momentum")
    if decay is not None:
        functions["weight decay"] = lambda seen: optimizer.weight_decay * decay.mean(seen, seen + size)
    if momentum is not None:
        functions["momentum"] = lambda seen: 1 - (1 - optimizer.momentum) * momentum.mean(seen, seen + size)
    average = _half_life(recipe)
    if average is not None:
        functions[AVERAGE] = average
    values = {name: [function(start) for start in starts] for name, function in functions.items()}
    return {name: (np.append(starts, stairs.length), np.append(found, found[-1])) for name, found in values.items()}


def _half_life(recipe: Recipe) -> Callable[[float], float] | None:
    """Return the half-life of the average at some samples, None where it is constant.

    A ramp is followed as the file's own trainer runs it: by its own updates, with the scale that it is told.
    """
    ema = recipe.ema
    if ema is None or ema.decay is None or not 0 < ema.decay < 1:
        return None
    schedule, ramp = recipe.average_schedule(), ema.ramp
    law = None if ramp is None or ramp.by not in _BY_UPDATE else RAMPS[LAWS[ramp.by]]
    if schedule is None and law is None:
        return None
    update = recipe.batch.size * ema.every
    scale, power = 1.0, 1.0
    if ramp is not None and law is not None:
        tau = None if ramp.tau is None else recipe.samples(ramp.tau, "ema.ramp.tau") / update
        scale, power = ramp.scale if tau is None else tau, ramp.exponent
    steady = half_life(ema.decay, update)

    def at(seen: float) -> float:
        found = steady if schedule is None else schedule.half_life(seen, seen + update)
        if law is not None:
            allowed = law(seen / update + 1, scale, power)
            found = min(found, half_life(allowed, update) if allowed > 0 else 0.0)
        return found if math.isfinite(found) and found > 0 else math.nan

    return at


def schedule_page(made: Any) -> str:
    """Return one page with the schedules and the rows of a plan of a file; it loads nothing from anywhere.

    Args:
        made: an `isobatch.formats.FilePlan`.

    Returns:
        HTML.
    """
    rows = [["key", "was", "becomes", "rule", "because"]]
    rows += [[row.key, show(row.was), show(row.becomes), row.rule, row.because] for row in made.rows]
    title = f"{made.ledger.source.name}: batch {made.reference.batch.size} to {made.recipe.batch.size}"
    figure = schedule_figure(made.reference, made.recipe)
    sections = [Section("Schedules", [], [], [("schedules, old and new", figure)]), Section("Every key", [], rows)]
    return render(title, "What moves over the run, against samples: the file as it is, and as it is planned.", sections)
