"""The blocks of a page: files that it tells the reader to save, and commands that it tells him to paste."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w-]+\.(?:toml|yaml|py))\b")
TABLE = re.compile(r"^`([\w-]+\.csv)`:\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "results" not in path.relative_to(ROOT).parts
}
WALKED = {
    name: path
    for name, path in PAGES.items()
    if path.name in ("README.md", "index.md") or path.parent.name in ("questions", "tutorials")
}
"""Pages all of whose commands run as they stand."""


class Command(NamedTuple):
    """A command, and the lines that the page shows below it."""

    words: list[str]
    shown: list[str]

    @property
    def quick(self) -> bool:
        """Whether it only computes: nothing is trained or timed."""
        advice = self.words[:3] == ["isobatch", "noise", "advise"] and "--throughput" in self.words
        return self.words[:2] == ["isobatch", "plan"] or self.words[:3] == ["isobatch", "noise", "fit"] or advice


def files(text: str) -> dict[str, str]:
    """The files of a page by name: blocks whose first line is a comment with the name, tables that it stands above."""
    found = dict(TABLE.findall(text))
    for _, body in BLOCK.findall(text):
        if name := FILE.match(body):
            found[name[1]] = body
    return found


def commands(text: str) -> list[Command]:
    """The commands of a page in order: lines of sh blocks, lines after $ in console blocks with what they print."""
    found: list[Command] = []
    for kind, body in BLOCK.findall(text):
        if kind not in ("sh", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            asks = kind == "sh" or line.startswith("$ ")
            if asks and (words := shlex.split(line.removeprefix("$ "), comments=True)):
                found.append(Command(words, []))
            elif not asks and line.strip():
                found[-1].shown.append(line)
    return found


def prints(output: str, shown: str) -> bool:
    """Whether a line of the output is the line shown, or begins with it where that ends in dots."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    wanted = " ".join(shown.split())
    if wanted.endswith("..."):
        return any(line.startswith(wanted.removesuffix("...").rstrip()) for line in lines)
    return wanted in lines
