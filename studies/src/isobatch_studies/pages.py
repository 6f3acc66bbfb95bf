"""What every study's page shares: its claims first, then its own sections, then versions."""

from typing import Any

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
