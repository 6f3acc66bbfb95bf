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
    several = len(data["references"]) > 1
    shown = [("average", "accuracy"), ("average", "knn"), ("raw", "knn")]
    shown = [(model, name) for model, name in shown if any(_final(row, model, name) for row in data["rows"])]
    words = {"accuracy": "probe" if ("average", "knn") in shown else "accuracy", "knn": "neighbours"}
    names = [f"{words[name]}, {'averaged' if model == 'average' else model} (%)" for model, name in shown]
    head = ["arm", "batch", "seeds", "averaged model", "worst gap", "raw model", "worst gap", *names]
    arms = [[*head, "steps", "collapsed", "minutes", "samples/s"]]
    for variant, found in data["references"].items():
        batch, seeds = data["recipe"][variant]["batch"]["size"], data["runs"][f"{variant} reference"]
        name = f"reference, {variant}" if several else "reference"
        ends = _ends(found, shown, data["stops"][variant][-1])
        arms.append([name, f"{batch:,}", str(seeds), "", "", "", "", *ends])
    for row in data["rows"]:
        judged = []
        for model in ("average", "raw"):
            judged += [str(row["verdicts"][model]), signed(row["worst"][model], data["judged"]["margin"])]
        seeds = f"{row['seeds']} of {row['planned']}"
        name = named(row, several=several)
        arms.append([name, f"{row['batch']:,}", seeds, *judged, *_ends(row, shown, data["stops"][row["variant"]][-1])])
    return f"{claims_of(data)}\n{table(arms)}"


def named(row: dict[str, Any], *, several: bool) -> str:
    """Return an arm's name.

    Args:
        row: of the result.
        several: whether the result has more than one variant.

    Returns:
        The arm, its kappa, and its variant among several.
    """
    return f"{row['arm']}, kappa {row['kappa']:g}" + (f", {row['variant']}" if several else "")


def signed(gap: float | None, margin: float) -> str:
    """Return a gap as fine as its margin needs: two digits of points, three of logs.

    Args:
        gap: None where there is none.
        margin: against which it is judged.

    Returns:
        With its sign; "" for None.
    """
    return "" if gap is None else f"{gap:+.{2 if margin >= 1 else 3}f}"


def gaps(data: dict[str, Any] | None) -> str:
    """Return where along the run arms leave their reference, averaged and raw model side by side.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown: mean gap over seeds at a quarter, a half, three quarters and the end, in the unit of the margin.
    """
    if not data or not data["rows"]:
        return "No run is complete.\n"
    parts, margin = {"25%": 0.25, "50%": 0.5, "75%": 0.75, "end": 1.0}, data["judged"]["margin"]
    rows = [["arm", *(f"{model}, {part}" for model in ("averaged", "raw") for part in parts)]]
    for row in data["rows"]:
        cells = [named(row, several=len(data["references"]) > 1)]
        for model in ("average", "raw"):
            found = row["gaps"][model]
            cells += [signed(found[round(part * (len(found) - 1))], margin) for part in parts.values()]
        rows.append(cells)
    return table(rows)


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


def _final(found: dict[str, Any], model: str, name: str) -> dict[str, Any] | None:
    return found["final"].get(model, {}).get(name)


def _ends(found: dict[str, Any], shown: list[tuple[str, str]], samples: int) -> list[str]:
    cells = []
    for last in (_final(found, model, name) for model, name in shown):
        if last is None:
            cells.append("")
        elif last["low"] is None:
            cells.append(f"{last['mean']:.1f}")
        else:
            cells.append(f"{last['mean']:.1f} [{last['low']:.1f}, {last['high']:.1f}]")
    minutes = found["seconds"] / 60
    time = [f"{minutes:.{0 if minutes >= 2 else 1}f}", f"{samples / found['seconds']:,.0f}"]
    return [*cells, f"{found['steps']:,}", str(len(found["collapsed"])), *time]
