"""One self-contained HTML page: no network, pictures inside."""

import base64
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment
from matplotlib.figure import Figure

from isobatch.report.pictures import png


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


def render(title: str, lead: str, sections: list[Section], *, badge: str = "", footer: str = "") -> str:
    """Return a page as HTML; every text is escaped.

    Args:
        title: of the page.
        lead: what was found, in a sentence or two.
        sections: parts in order.
        badge: a verdict shown under the title.
        footer: versions and command.

    Returns:
        HTML.
    """
    template = resources.files("isobatch.report").joinpath("page.html").read_text(encoding="utf-8")
    drawn = [
        {
            "title": part.title,
            "texts": part.texts,
            "table": part.table,
            "code": part.code,
            "pictures": [{"alt": alt, "data": base64.b64encode(png(fig)).decode()} for alt, fig in part.pictures],
        }
        for part in sections
    ]
    environment = Environment(autoescape=True)
    return environment.from_string(template).render(title=title, lead=lead, sections=drawn, badge=badge, footer=footer)
