"""isobatch plan --like NAME: from a published recipe, with the distance to its authors' own points."""

import json
from typing import Any

from isobatch.cli.options import say
from isobatch.errors import InputError
from isobatch.published import Gap, Published, load, names


def listed() -> str:
    """Return every published recipe with its batches.

    Returns:
        A line for each.
    """
    found = [load(name) for name in names()]
    return "\n".join(f"{one.name}: {one.title}; batches {', '.join(map(str, one.points))}" for one in found)


def like(text: str, batch: int | None) -> tuple[Published, int]:
    """Return the published settings of `NAME` or `NAME@BATCH`, and where the plan starts.

    Args:
        text: as given to --like.
        batch: the batch asked for, None without one.

    Returns:
        The settings, and one of their batches: the one named, or the nearest to the batch asked for.

    Raises:
        InputError: a name or a batch that is not published, or none asked for.

    Example:
        >>> [like(text, 512)[1] for text in ("llama31-8b", "llama31-8b@16")]
        [128, 16]
    """
    name, sign, own = text.partition("@")
    found = load(name)
    if sign:
        if not own.isdecimal() or int(own) not in found.points:
            known = ", ".join(str(one) for one in found.points)
            raise InputError(f"--like {text}: {name} has no batch {own!r}; its authors' are {known}")
        return found, int(own)
    if batch is None:
        raise InputError(f"--like {text} needs --batch-size N, or --like {text}@BATCH with --devices and --micro")
    return found, found.nearest(batch)


def add_gaps(data: dict[str, Any], found: Published, start: int, gaps: tuple[Gap, ...]) -> str:
    """Return a plan as JSON, with the published points beside it.

    Args:
        data: the plan.
        found: the published settings.
        start: batch that the plan starts from.
        gaps: of the authors' other points.

    Returns:
        JSON text.
    """
    told = {"name": found.name, "title": found.title, "start": start, "source": found.source, "assumed": found.assumed}
    return json.dumps(data | {"published": told | {"gaps": [vars(gap) for gap in gaps]}}, indent=2)


def say_gaps(found: Published, start: int, gaps: tuple[Gap, ...], *, markdown: bool = False) -> None:
    """Print how far the authors' own points lie from the plan, and the sources.

    Args:
        found: the published settings.
        start: batch that the plan starts from.
        gaps: of the authors' other points.
        markdown: whether the table is to be pasted.
    """
    title = f"{found.title}: the plan from its batch {start} beside its authors' other points"
    head = ("batch", "key", "plan", "authors", "plan/authors")
    rows = [(f"{g.batch}", g.key, f"{g.plan:.6g}", f"{g.authors:.6g}", "-" if g.ratio is None else f"{g.ratio:.2f}")
            for g in gaps]  # fmt: skip
    if markdown:
        say("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    notes = ["of decays the ratio is that of half-lives; spans are in samples"]
    notes += [f"not in the source: {one}" for one in found.assumed]
    say("\n".join([*notes, f"source: {found.source}"]))
