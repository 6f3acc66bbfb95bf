"""What every study's page shares: its claims first, then its own sections, then versions."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from isobatch import report


def page(data: dict[str, Any], lead: str, sections: list[report.Section]) -> str:
    """Return a study's page.

    Args:
        data: the study's result, with its claims.
        lead: what it asks, in a sentence.
        sections: its own parts.

    Returns:
        Self-contained HTML.
    """
    rows = [["claim", "held?", "evidence", "source"]]
    rows += [[f"{c['id']}: {c['claim']}", report.HELD[c["held"]], c["evidence"], c["source"]] for c in data["claims"]]
    criteria = f"Criteria are fixed in isobatch_studies/{data['study'].replace('-', '_')}/criteria.json."
    return report.render(data["title"], lead, [report.Section("Claims", [criteria], rows), *sections])


def keep(out: Path, data: dict[str, Any], figures: dict[str, Figure], html: str) -> None:
    """Write what a study leaves in its folder: result.json, its pictures, report.html.

    Args:
        out: the folder, made where it is missing.
        data: the study's result.
        figures: by the name of their PNG, without its ending.
        html: the page.
    """
    folder = report.prepare(out)
    report.write_result(folder, data)
    for name, figure in figures.items():
        report.write(folder / f"{name}.png", report.png(figure))
    report.write(folder / "report.html", html)
