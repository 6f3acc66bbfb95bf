"""What the site adds to its Markdown: names of a room, the command line, the examples, files outside docs/."""

import argparse
import re
from pathlib import Path
from typing import Any

from public_names import Name, public

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- (names|command-line|examples|changelog|contributing)(?: (\S+))? -->$", re.MULTILINE)
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
BLOCK = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)


def expand(app: Any, document: str, source: list[str]) -> None:
    """Write out the marks of a page, and turn links to files outside docs/ into downloads.

    Args:
        app: Sphinx.
        document: name of the page.
        source: its text, replaced in place.
    """
    folder = (ROOT / "docs" / document).parent

    def link(found: re.Match[str]) -> str:
        picture, words, target, anchor = found.groups()
        path = (folder / target).resolve()
        if picture or path.is_relative_to(ROOT / "docs"):
            return found[0]
        up = "../" * document.count("/")
        if path.name == "CONTRIBUTING.md":
            return f"[{words}]({up}contributing.md{anchor or ''})"
        if path.is_relative_to(ROOT / "examples"):
            where = "" if path.is_dir() else f"#{anchor_of(path)}"
            return f"[{words}]({up}examples.md{where})"
        return f"{{download}}`{words.strip('`')} <{target}>`" if path.is_file() else words

    text = MARK.sub(lambda found: MARKS[found[1]](found[2]), source[0])
    parts, end = [], 0
    for block in BLOCK.finditer(text):
        parts += [OUTSIDE.sub(link, text[end : block.start()]), block[0]]
        end = block.end()
    source[0] = "".join([*parts, OUTSIDE.sub(link, text[end:])])


def names(room: str) -> str:
    """Return what a room shows, as headings with autodoc below them."""
    return "\n\n".join(_described(one) for one in public(room))


def _described(one: Name) -> str:
    path = f"isobatch.{one.room}.{one.name}"
    lines = [f"### {one.name}", "", "```{eval-rst}"]
    if one.kind == "data":
        lines += [f".. py:data:: {path}", "", *(f"   {line}" for line in plain(one.doc.splitlines()))]
    else:
        lines += [f".. auto{'class' if one.kind == 'class' else 'function'}:: {path}"]
        if one.kind == "class":
            lines += ["   :members:"]
    return "\n".join([*lines, "```"])


def anchor_of(path: Path) -> str:
    """Return the anchor of an example's heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", path.relative_to(ROOT / "examples").as_posix().lower()).replace(" ", "-")


def examples(_: str | None = None) -> str:
    """Return every example file with its text."""
    parts = []
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.suffix in (".toml", ".py"):
            kind = "toml" if path.suffix == ".toml" else "python"
            name = path.relative_to(ROOT / "examples").as_posix()
            parts.append(f"## {name}\n````{kind}\n{path.read_text(encoding='utf-8').rstrip()}\n````")
    return "\n\n".join(parts)


def contributing(_: str | None = None) -> str:
    """Return CONTRIBUTING without its title."""
    return _below_title("CONTRIBUTING.md")


def changelog(_: str | None = None) -> str:
    """Return the changelog without its title; its links start from the project's root."""
    text = re.sub(r"\]\(docs/", "](", _below_title("CHANGELOG.md"))
    return re.sub(r"^### ", "#### ", text, flags=re.MULTILINE).replace("\n#### ", "\n### ")


def _below_title(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]


def command_line(_: str | None = None) -> str:
    """Return every command with its options, as its own parser says them."""
    from isobatch.cli import parser

    return "\n\n".join(_commands(parser(), 2))


def _commands(one: argparse.ArgumentParser, depth: int) -> list[str]:
    own = [action for action in one._actions if not isinstance(action, argparse._HelpAction)]
    below = [action for action in own if isinstance(action, argparse._SubParsersAction)]
    parts = []
    if depth > 2:
        parts.append(f"{'#' * min(depth - 1, 4)} {one.prog}")
        if one.description:
            parts.append(_sentence(one.description))
        parts.append(f"```text\n{one.format_usage().removeprefix('usage: ').strip()}\n```")
    rows = [action for action in own if action not in below and action.help != argparse.SUPPRESS]
    if rows and depth > 2:
        parts.append("| | |\n|---|---|\n" + "\n".join(f"| {_words(row)} | {_help(row)} |" for row in rows))
    if one.epilog and depth > 2:
        parts.append(_sentence(one.epilog))
    for action in below:
        for inner in dict.fromkeys(action.choices.values()):
            parts += _commands(inner, depth + 1)
    return parts


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _words(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        word = action.metavar or (
            "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
        )
        value = f" [{word}]" if action.nargs == "?" else f" {word}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings).replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")
    return text.replace("%%", "%") + (" **(required)**" if action.required and action.option_strings else "")


MARKS = {
    "names": names, "command-line": command_line, "examples": examples, "changelog": changelog,
    "contributing": contributing,
}  # fmt: skip

_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def plain(lines: list[str]) -> list[str]:
    """Return lines of a docstring with what reStructuredText would read as markup taken literally; code stays code."""
    made = []
    code = False
    for line in lines:
        code = line.lstrip().startswith((">>>", "...")) or (code and bool(line.strip()))
        if code:
            made.append(line)
            continue
        parts = _CODE.split(line)
        for index, part in enumerate(parts):
            if part.startswith("``"):
                continue
            if part.startswith("`") and part.endswith("`") and len(part) > 2:
                parts[index] = f"`{part}`" if not part.startswith("``") else part
            else:
                parts[index] = re.sub(r"(?<!\\)([*|\\]|(?<=\w)_(?=\W|$)|`)", r"\\\1", part)
        made.append("".join(parts))
    return made


def plain_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Take a docstring's text literally (see `plain`); names of arguments with stars stay as they are."""
    lines[:] = [
        re.sub(r"^(\s*)((?:\\\*)+)(\w+:)", lambda m: m[1] + m[2].replace("\\", "") + m[3], line)
        for line in plain(lines)
    ]


TABLE = re.compile(r'<table class="docutils.*?</table>', re.DOTALL)
HEAD = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
ROW = re.compile(r"<tr[^>]*>.*?</tr>", re.DOTALL)
CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
ROLES = {"table": "table", "thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "th": "columnheader"}
LONG = 40
"""Letters from which a cell is a sentence."""
SIGNATURE = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>', re.DOTALL)


def accessible(app: Any, failure: Exception | None) -> None:
    """Mend what the theme and Sphinx leave: levels of headings, code that a keyboard cannot scroll.

    Args:
        app: Sphinx.
        failure: why the build failed, None where it did not.
    """
    if failure is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        before = path.read_text(encoding="utf-8")
        after = mended(before)
        if after != before:
            path.write_text(after, encoding="utf-8")


def mended(page: str) -> str:
    """Return a page with levels on headings, code that takes the focus, and signatures as plain blocks."""
    page = page.replace('class="caption" role="heading">', 'class="caption" role="heading" aria-level="2">')
    page = page.replace("<pre>", '<pre tabindex="0">')
    page = page.replace("<p><img ", '<p class="picture" tabindex="0"><img ')
    page = TABLE.sub(lambda found: _labelled(found[0]), page)
    return SIGNATURE.sub(lambda found: found[1] + _blocks(found[2]), page)


def _labelled(table: str) -> str:
    """Return a table whose cells name their column and whose parts their role: on a telephone it is a list of cards."""
    head, foot, body = table.partition("</thead>")
    if "data-name" in table or not foot:
        return table
    names = [_said(cell) for cell in HEAD.findall(head)]
    if not any(names):
        head, foot, names = re.sub(r"<thead>.*", "", head, flags=re.DOTALL), "", []

    def cell(found: re.Match[str], column: int) -> str:
        name = names[column] if column < len(names) else ""
        wide = ' class="long"' if len(_said(found[1])) > LONG else ""
        return f'<td role="cell" data-name="{name}"{wide}>{found[1]}</td>'

    def row(found: re.Match[str]) -> str:
        count = iter(range(len(names) + 99))
        return CELL.sub(lambda one: cell(one, next(count)), found[0])

    table = head + foot + ROW.sub(row, body)
    for tag, role in ROLES.items():
        table = re.sub(rf"<{tag}(?=[ >])", f'<{tag} role="{role}"', table)
    return table


def _said(cell: str) -> str:
    return re.sub(r"<[^>]+>", "", cell).strip().replace('"', "&quot;")


def _blocks(items: str) -> str:
    inner = items.replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">{inner}</div>'
