"""HTML that loads nothing from anywhere: the style of every page, data inside a page, tables for notebooks."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any


def style() -> str:
    """Return the style of every page, light and dark.

    Returns:
        CSS.
    """
    return resources.files("isobatch").joinpath("page.css").read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    r"""Return values as JSON that may stand inside a script element, whatever text is in them.

    Args:
        data: plain values.

    Returns:
        JSON without < and the line ends of JavaScript.

    Example:
        >>> print(embedded({"a": "</script>"}))
        {"a":"\u003c/script>"}
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def panel(title: str, rows: Sequence[Sequence[object]] = (), notes: Sequence[str] = (), *, badge: str = "") -> str:
    """Return a small part of a page, as notebooks show it in their own colours.

    Args:
        title: above the table, in bold.
        rows: cells, the first row the header; no table without rows.
        notes: lines below it.
        badge: a verdict beside the title.

    Returns:
        HTML, every text escaped.

    Example:
        >>> print(panel("a < b", [["key", "value"], ["lr", 0.1]], badge="SAME"))
        <div><p><b>SAME</b> <b>a &lt; b</b></p><div style="overflow-x:auto"><table><thead><tr>...
    """
    said = f"<b>{escape(badge)}</b> " if badge else ""
    parts = [f"<p>{said}<b>{escape(title)}</b></p>"]
    if rows:
        left = ' style="text-align:left;vertical-align:top"'
        head = "".join(f'<th scope="col"{left}>{escape(str(cell))}</th>' for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td{left}>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows[1:]
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(f'<div style="overflow-x:auto">{table}</div>')
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    return f"<div>{''.join(parts)}</div>"


def filled(template: str, texts: Mapping[str, str]) -> str:
    """Return a template with texts in place of its marks, each <!--name--> or /*name*/.

    Args:
        template: HTML.
        texts: name -> what stands there, already HTML.

    Returns:
        HTML.
    """
    for name, text in texts.items():
        template = template.replace(f"<!--{name}-->", text).replace(f"/*{name}*/", text)
    return template
