"""What a page in Markdown says of a stored result of a teacher study: claims, then every arm."""

from typing import Any

from isobatch.results import HELD


def markdown(data: dict[str, Any] | None) -> str:
    """Return the tables of a result.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown.
    """
    if data is None:
        return "No run is complete.\n"
    names = ["probe, averaged (%)", "neighbours, averaged (%)", "neighbours, raw (%)"]
    head = ["arm", "batch", "seeds", "averaged model", "worst gap", "raw model", "worst gap", *names]
    head += ["steps", "collapsed", "minutes", "samples/s"]
    arms = [_line(head), "|" + "---|" * len(head)]
    for variant, found in data["references"].items():
        batch, seeds = data["recipe"][variant]["batch"]["size"], data["runs"][f"{variant} reference"]
        arms.append(
            _line(["reference", f"{batch:,}", str(seeds), "", "", "", "", *_ends(found, data["stops"][variant][-1])])
        )
    for row in data["rows"]:
        verdicts, gaps = row["verdicts"], row["worst"]
        judged = [f"{word[model]}" for model in ("average", "raw") for word in (verdicts, _signed(gaps))]
        seeds = f"{row['seeds']} of {row['planned']}"
        name, samples = f"{row['arm']}, kappa {row['kappa']:g}", data["stops"][row["variant"]][-1]
        arms.append(_line([name, f"{row['batch']:,}", seeds, *judged, *_ends(row, samples)]))
    return "\n".join([claims_of(data), *arms]) + "\n"


def claims_of(data: dict[str, Any] | None) -> str:
    """Return the claims of a stored result, of any study, with what was found.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown.
    """
    if data is None:
        return "No run is complete.\n"
    claims = ["| claim | verdict | evidence |", "|---|---|---|"]
    claims += [f"| `{c['id']}` | {HELD[c['held']]} | {c['evidence']} |" for c in data["claims"]]
    return "\n".join(claims) + "\n"


def beside_of(data: dict[str, Any] | None) -> str:
    """Return the table of what was measured beside the claims, to understand them.

    Args:
        data: the result, None where none is stored.

    Returns:
        Markdown.
    """
    return table(data["beside"]) if data else "No run is complete.\n"


def table(rows: list[list[str]]) -> str:
    """Return a table.

    Args:
        rows: of cells, the first one the header.

    Returns:
        Markdown.
    """
    head, *below = rows
    return "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, below)]) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _signed(gaps: dict[str, float | None]) -> dict[str, str]:
    return {model: "" if gap is None else f"{gap:+.2f}" for model, gap in gaps.items()}


def _ends(found: dict[str, Any], samples: int) -> list[str]:
    cells = []
    for model, name in (("average", "accuracy"), ("average", "knn"), ("raw", "knn")):
        last = found["final"].get(model, {}).get(name)
        if last is None:
            cells.append("")
        elif last["low"] is None:
            cells.append(f"{last['mean']:.1f}")
        else:
            cells.append(f"{last['mean']:.1f} [{last['low']:.1f}, {last['high']:.1f}]")
    time = [f"{found['seconds'] / 60:.0f}", f"{samples / found['seconds']:,.0f}"]
    return [*cells, f"{found['steps']:,}", str(len(found["collapsed"])), *time]
