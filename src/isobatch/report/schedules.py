"""The schedules of a plan, old and new, against samples: a picture and a page."""

import base64
import html
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from isobatch.plan import Recipe
from isobatch.report.pictures import COLOURS, RC, STYLES

POINTS = 400
"""Places along the run at which a schedule is drawn."""


def schedule_picture(old: Recipe, new: Recipe) -> bytes:
    """Draw the learning rate of two recipes against samples, each as the steps that it is.

    Args:
        old: the recipe that was read.
        new: the recipe at the new batch.

    Returns:
        PNG.

    Raises:
        InputError: a recipe without a length.
    """
    import matplotlib

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, recipe in (("reference", old), ("plan", new)):
            x, y = curve_of(recipe)
            label = f"{name}: batch {recipe.batch.size:,}, peak {recipe.optimizer.lr:.4g}"
            axes.step(x, y, where="post", color=COLOURS[name], linestyle=STYLES[name], label=label)
        axes.set_xlabel(f"{old.batch.unit} seen")
        axes.set_ylabel("learning rate")
        axes.set_title("learning rate, old and new")
        axes.set_ylim(bottom=0)
        axes.legend()
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=150)
    return out.getvalue()


def curve_of(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and learning rates of a recipe, through the mean over each of its steps.

    Args:
        recipe: the recipe.

    Returns:
        Samples and rates.
    """
    stairs, size = recipe.staircase(), recipe.batch.size
    steps = max(int(stairs.length // size), 1)
    starts = np.unique(np.linspace(0, steps - 1, min(POINTS, steps)).astype(int)) * float(size)
    rates = [recipe.optimizer.lr * stairs.mean(start, start + size) for start in starts]
    return np.append(starts, stairs.length), np.append(rates, rates[-1])


def schedule_page(made: Any) -> str:
    """Return one page with the schedules and the rows of a plan of a file; it loads nothing from anywhere.

    Args:
        made: an `isobatch.formats.FilePlan`.

    Returns:
        HTML.
    """
    picture = base64.b64encode(schedule_picture(made.reference, made.recipe)).decode()
    cells = [(row.key, row.was, row.becomes, row.rule, row.because) for row in made.rows]
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in cells)
    title = html.escape(f"{made.ledger.source.name}: batch {made.reference.batch.size} to {made.recipe.batch.size}")
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.2em .8em;text-align:left}"
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>'
        f'<body><h1>{title}</h1><img alt="learning rate, old and new" src="data:image/png;base64,{picture}">'
        f"<table><tr><th>key<th>was<th>becomes<th>rule<th>because</tr>{rows}</table></body></html>\n"
    )
