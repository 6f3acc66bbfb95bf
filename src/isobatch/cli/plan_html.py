"""isobatch plan RECIPE --html FILE: the page to play with."""

import argparse
import sys
from typing import TYPE_CHECKING

from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.formats import Loaded
    from isobatch.plan import Recipe

_REPEATED = ("devices", "optimizer", "rule", "goal", "format")


def write_page(
    chosen: argparse.Namespace, recipe: "Recipe | Loaded", devices: int | None, *, like: str | None = None
) -> bool:
    """Write the page of a plan.

    Args:
        chosen: parsed arguments.
        recipe: as it was read.
        devices: the new ones, None for those of the recipe.
        like: NAME@BATCH of a published recipe, where there is no file.

    Returns:
        Whether that was all that was asked for; a batch beside it is printed as well.

    Raises:
        InputError: another ending, a file that exists, or a batch that cannot be planned.
    """
    from isobatch.export import plan_page
    from isobatch.results import write

    target = chosen.html
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html {target} writes a page; give a name that ends with .html")
    if chosen.keep_batch:
        raise InputError("--html slides the batch, which --keep-batch holds; drop one of them")
    if target.exists() and not chosen.overwrite:
        raise InputError(f"{target} exists; give another name, or overwrite it (--overwrite)")
    page = plan_page(
        recipe,
        chosen.batch_size,
        micro=chosen.micro,
        devices=devices,
        noise_scale=chosen.noise_scale,
        optimizer=chosen.optimizer,
        rule=chosen.rule,
        goal=chosen.goal,
        source=str(chosen.recipe) if like is None else like,
        named=None if like is None else ("--like", like),
        words=words_of(chosen),
        on_done=_progress if sys.stderr.isatty() else None,
    )
    write(target, page, overwrite=chosen.overwrite)
    sys.stderr.write(f"isobatch: written {target}; open it in a browser, it needs no network\n")
    asked = (
        chosen.batch_size,
        chosen.devices,
        chosen.micro,
        chosen.write,
        chosen.patch,
        chosen.snippet,
        chosen.explain,
        chosen.plot,
    )
    forms = (chosen.json, chosen.markdown, chosen.diff)
    return all(one is None for one in asked) and not any(forms)


def words_of(chosen: argparse.Namespace) -> list[str]:
    """Return the options of a plan that its page repeats in every command.

    Args:
        chosen: parsed arguments.

    Returns:
        Words; without batch, micro and noise scale, which the sliders move.
    """
    words = []
    for name in _REPEATED:
        value = getattr(chosen, name)
        if value is not None and (name, value) != ("goal", "equivalence"):
            words += [f"--{name}", str(value)]
    return words + [word for answer in chosen.set for word in ("--set", answer)]


def _progress(done: int, total: int) -> None:
    """Count on one line of a terminal; it goes away with the last plan."""
    if done % 8 == 0 or done == total:
        sys.stderr.write("\r\x1b[K" if done == total else f"\rplans: {done} of {total}")
        sys.stderr.flush()
