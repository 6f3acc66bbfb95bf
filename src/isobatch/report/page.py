"""One self-contained HTML page: no network, figures as SVG inside, a summary to paste."""

from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment
from matplotlib.figure import Figure

from isobatch.markup import style
from isobatch.report.drawing import colours, svg
from isobatch.results import command, versions

_PASTED = 12
"""Rows of the first table that a summary takes."""
_BADGES = {
    "SAME": "SAME", "IDENTICAL": "SAME", "EQUIVALENT": "SAME", "identified": "SAME", "DIFFERENT": "DIFFERENT",
    "UNDECIDED": "UNDECIDED", "NOT COMPARABLE": "UNDECIDED", "not identified": "UNDECIDED",
}  # fmt: skip
"""Verdict -> the colour that it is shown in."""


@dataclass
class Section:
    """One part of a page.

    Args:
        title: its heading.
        texts: paragraphs.
        table: rows of cells, the first one the header.
        pictures: (description, figure) pairs.
        code: text set in a fixed-width font.
    """

    title: str
    texts: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)
    pictures: list[tuple[str, Figure]] = field(default_factory=list)
    code: str = ""


def render(
    title: str, lead: str, sections: list[Section], *, badge: str = "", footer: str = "", recipe: str = ""
) -> str:
    """Return a page as HTML; every text is escaped.

    Args:
        title: of the page.
        lead: what was found, in a sentence or two.
        sections: parts in order.
        badge: a verdict shown under the title.
        footer: beside the versions, such as how long it took.
        recipe: the recipe that it is about, as TOML.

    Returns:
        HTML.
    """
    template = resources.files("isobatch.report").joinpath("page.html").read_text(encoding="utf-8")
    pictures = [[(alt, svg(figure, alt)) for alt, figure in part.pictures] for part in sections]
    drawn = [
        {
            "title": part.title,
            "texts": part.texts,
            "table": part.table,
            "code": part.code,
            "pictures": [{"alt": alt, "svg": text} for alt, text in shown],
        }
        for part, shown in zip(sections, pictures, strict=True)
    ]
    made = ", ".join(f"{name} {value}" for name, value in versions().items())
    environment = Environment(autoescape=True)
    return environment.from_string(template).render(
        title=title,
        lead=lead,
        sections=drawn,
        badge=badge,
        badges=_BADGES,
        footer="; ".join(filter(None, (made, footer))),
        recipe=recipe,
        command=command(),
        summary=summary(title, lead, sections, badge=badge),
        style=style() + colours("".join(text for shown in pictures for _, text in shown)),
    )


def summary(title: str, lead: str, sections: list[Section], *, badge: str = "") -> str:
    """Return a page in a few lines of Markdown, to paste into an issue.

    Args:
        title: of the page.
        lead: what was found.
        sections: of the page; the first table is taken, where it is short.
        badge: a verdict.

    Returns:
        Markdown.
    """
    lines = [f"**{title}**" + (f" **{badge}**" if badge else ""), "", lead]
    table = next((part.table for part in sections if part.table), [])
    if 1 < len(table) <= _PASTED:
        rows = [table[0], ["---"] * len(table[0]), *table[1:]]
        lines += ["", *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    return "\n".join([*lines, "", f"`{command()}`"])
