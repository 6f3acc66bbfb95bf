"""Command lines and the shell scripts around them: flags with the place of each value; nothing is run.

Variables and arrays that a script assigns once, as plain text, are followed to where their text stands. What only a
shell could tell (`$(...)`, `$1`, a variable assigned twice) is `Unknown`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.source import Key, Source, Spot, Unknown, newline, replaced

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")
_OVERRIDE = re.compile(r"^[+~]{0,2}([A-Za-z_][\w.\[\]/@-]*)=(.*)$", re.S)
_SUM = re.compile(r"^[\d\s+*/()-]+$")
_NUMBER = re.compile(r"^-(?:\d|\.\d)")
_RUNS = re.compile(
    r"(\.py$|\.sh$|lerobot-train$|^-m$|^yolo$|^torchrun$|^python\d?(\.\d+)?$|^accelerate$|^deepspeed$|^tune$|^axolotl$|^trl$)"
)
_LISTS = re.compile(r"(args|kwargs|options|opts)$")


@dataclass(frozen=True)
class Word:
    """One word of a command.

    Args:
        text: after quotes and variables.
        start: where its text stands.
        end: one past it.
        known: whether every part of it is.
        own: whether exactly this text stands there, so that it can be replaced.
    """

    text: str
    start: int
    end: int
    known: bool = True
    own: bool = True


def read_command(text: str, name: str) -> Source:
    """Read a command line, or a script that holds one.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source: flags by name with `_` for `-`, overrides `a.b=c` as nested keys; `extra` holds the launcher's
        flags, the program, and where the command ends.

    Raises:
        InputError: no command, several of them, or an open quote.
    """
    commands = [c for c in _Shell(text, name).commands() if any(_RUNS.search(word.text) for word in c)]
    commands = [c for c in commands if sum(w.text.startswith("-") or "=" in w.text for w in c)] or commands
    if not commands:
        raise InputError(f"{name} holds no training command; give the line that starts the training")
    most = max(commands, key=lambda c: len(_flags(_split(c)[1])))
    rivals = [c for c in commands if c is not most and len(_flags(_split(c)[1])) * 2 > len(_flags(_split(most)[1]))]
    if rivals:
        lines = ", ".join(str(text.count("\n", 0, c[0].start) + 1) for c in (most, *rivals))
        raise InputError(f"{name} holds {1 + len(rivals)} training commands (lines {lines}); keep one in the file")
    launcher, rest, program = _split(most)
    tree: dict[str, Any] = {}
    spots: dict[Key, Spot] = {}
    for flag, values in _flags(rest).items():
        _set(tree, spots, flag, values, name)
    for flag, values in _flags(launcher).items():
        if len(values) == 1 and values[0].own:
            spots["launcher", flag] = Spot(values[0].start, values[0].end)
    if program.endswith(".sh") and rest and rest[0].text.isdigit() and rest[0].own:
        spots["launcher", "nproc_per_node"] = Spot(rest[0].start, rest[0].end)
        launcher = [Word("--nproc_per_node", 0, 0), rest[0]]
    extra = {
        "launcher": {flag: _plain(values) for flag, values in _flags(launcher).items()},
        "program": program,
        "end": most[-1].end,
        "dashes": {flag: values[0].text for flag, values in _flags(rest, raw=True).items()},
        "words": tuple(word.text for word in rest if not word.text.startswith("-") and "=" not in word.text),
        "environment": {w.text.partition("=")[0]: w.text.partition("=")[2] for w in most if _ASSIGN.match(w.text)},
    }
    return Source(name, "command", text, tree, spots, _rewrite, extra)


class _Shell:
    """A script: its words, and what its variables hold.

    Args:
        text: the script.
        name: for messages.
    """

    def __init__(self, text: str, name: str):
        self.text, self.name = text, name
        self.held: dict[str, list[Word]] = {}
        self.twice: set[str] = set()

    def commands(self) -> Iterator[list[Word]]:
        """Yield the words of every command, variables followed."""
        at, words = 0, []
        text = self.text
        while at < len(text):
            head = text[at]
            if head in " \t":
                at += 1
            elif text.startswith(("\\\n", "\\\r\n"), at):
                at += 2 if text[at + 1] == "\n" else 3
            elif head == "#" and (at == 0 or text[at - 1] in " \t\n;"):
                stop = text.find("\n", at)
                at = len(text) if stop < 0 else stop
            elif head in "\r\n;&|(){}<>" and not text.startswith("{", at):
                if words:
                    yield words
                words, at = [], at + 1
            else:
                match = _ASSIGN.match(text, at)
                if match and not words:
                    at, own = self._assignment(match)
                    words = own
                    continue
                found, at = self._word(at)
                words += found
        if words:
            yield words

    def _assignment(self, match: re.Match[str]) -> tuple[int, list[Word]]:
        name, at, text = match[1], match.end(), self.text
        if text.startswith("(", at):
            words, at = [], at + 1
            while at < len(text) and text[at] != ")":
                if text[at] in " \t\r\n":
                    at += 1
                elif text.startswith("\\\n", at):
                    at += 2
                elif text[at] == "#":
                    stop = text.find("\n", at)
                    at = len(text) if stop < 0 else stop
                else:
                    found, at = self._word(at, inside=True)
                    words += found
            at += 1
        elif at >= len(text) or text[at] in " \t\r\n;":
            words = [Word("", at, at)]
        else:
            words, at = self._word(at)
        if match[2] == "+=":
            self.held.setdefault(name, []).extend(words)
        else:
            if name in self.held:
                self.twice.add(name)
            self.held[name] = words
        return at, []

    def _word(self, at: int, *, inside: bool = False) -> tuple[list[Word], int]:
        """Return the words that one word of the script stands for, and where it ends."""
        text, start = self.text, at
        groups: list[list[Word]] = [[]]
        stops = " \t\r\n;&|<>)" + ("" if inside else "(")
        while at < len(text) and text[at] not in stops:
            head = text[at]
            if head == "\\":
                if text.startswith(("\\\n", "\\\r\n"), at):
                    break
                groups[-1].append(Word(text[at + 1 : at + 2], at, at + 2, own=False))
                at += 2
            elif head == "'":
                stop = self._closing(at, "'")
                groups[-1].append(Word(text[at + 1 : stop], at + 1, stop))
                at = stop + 1
            elif head == '"':
                at = self._quoted(at, groups)
            elif head in "$`":
                found, at = self._expansion(at)
                _append(groups, found)
            else:
                stop = at
                while stop < len(text) and text[stop] not in stops + "'\"$`\\":
                    stop += 1
                groups[-1].append(Word(text[at:stop], at, stop))
                at = stop
        return _glued([group for group in groups if group], start, at), max(at, start + 1)

    def _quoted(self, at: int, groups: list[list[Word]]) -> int:
        stop = self._closing(at, '"')
        inner = at + 1
        while inner < stop:
            if self.text[inner] in "$`":
                found, inner = self._expansion(inner)
                _append(groups, found)
                continue
            end = inner
            while end < stop and self.text[end] not in "$`":
                end += 2 if self.text[end] == "\\" else 1
            end = min(end, stop)
            piece = self.text[inner:end]
            for found in _pieces(piece, inner):
                _append(groups, found)
            inner = end
        if stop == at + 1:
            groups[-1].append(Word("", stop, stop))
        return stop + 1

    def _closing(self, at: int, quote: str) -> int:
        stop = at + 1
        while stop < len(self.text) and self.text[stop] != quote:
            stop += 2 if quote == '"' and self.text[stop] == "\\" else 1
        if stop >= len(self.text):
            line = self.text.count("\n", 0, at) + 1
            raise InputError(f"{self.name} line {line}: a quote is never closed; mend the file")
        return stop

    def _expansion(self, at: int) -> tuple[list[Word], int]:
        """Return the words of `$NAME`, `${NAME}`, `${NAME[@]}`, `${NAME:-default}`, `$((...))`; unknown ones else."""
        text = self.text
        if text.startswith("$((", at) and "))" in text[at:]:
            stop = text.index("))", at) + 2
            body = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", lambda m: self._one(m[1]) or m[0], text[at + 3 : stop - 2])
            value = _arithmetic(body)
            return [Word(text[at:stop] if value is None else value, at, stop, value is not None)], stop
        match = re.compile(r"\$\{([A-Za-z_]\w*)(\[[@*]\])?(?::?-([^${}]*))?\}").match(text, at)
        if match is None:
            match = re.compile(r"\$([A-Za-z_]\w*)()()").match(text, at)
        if match is None:
            stop = at + 1
            for opening, closing in (("$(", ")"), ("${", "}"), ("`", "`")):
                if text.startswith(opening, at) and closing in text[at + len(opening) :]:
                    stop = text.index(closing, at + len(opening)) + 1
                    break
            else:
                while stop < len(text) and (text[stop].isalnum() or text[stop] in "@*#?"):
                    stop += 1
            return [Word(text[at:stop], at, stop, known=False)], stop
        name, default = match[1], match[3]
        if name in self.held and name not in self.twice:
            return self.held[name] or [Word("", at, at, own=False)], match.end()
        if default and name not in self.held:
            return [Word(default, match.start(3), match.end(3))], match.end()
        return [Word(match[0], at, match.end(), known=False)], match.end()

    def _one(self, name: str) -> str | None:
        words = self.held.get(name)
        return words[0].text if words and len(words) == 1 and words[0].known and name not in self.twice else None


def _append(groups: list[list[Word]], words: list[Word]) -> None:
    """Add what one expansion stands for: its first word goes on with the word before it, its last with the next."""
    for index, word in enumerate(words):
        if index:
            groups.append([])
        groups[-1].append(word)


def _pieces(text: str, start: int) -> Iterator[list[Word]]:
    """Yield the words of a text between double quotes; a space at its ends parts it from its neighbours."""
    words = [Word(m[0], start + m.start(), start + m.end()) for m in re.finditer(r"(?:[^\s\\]|\\(?![\r\n]).)+", text)]
    empty = Word("", start, start)
    if not words:
        yield [empty, empty] if text else [empty]
        return
    lead = [empty] if text[:1].isspace() or text[:1] == "\\" else []
    tail = [Word("", start + len(text), start + len(text))] if text[-1:].isspace() else []
    yield [*lead, *(Word(w.text.replace('\\"', '"'), w.start, w.end, own="\\" not in w.text) for w in words), *tail]


def _glued(groups: list[list[Word]], start: int, end: int) -> list[Word]:
    """Return the words of groups whose parts stand without a space between them."""
    words: list[Word] = []
    for parts in groups:
        parts = [part for part in parts if part.text] or parts[:1]
        if len(parts) == 1:
            words += _split_words(parts[0]) if parts[0].text or len(groups) == 1 else []
            continue
        text, known = "".join(part.text for part in parts), all(part.known for part in parts)
        touching = all(a.end == b.start for a, b in pairwise(parts))
        if touching and all(part.own for part in parts):
            words.append(Word(text, parts[0].start, parts[-1].end, known))
        elif len(parts) == 2 and parts[0].text.endswith("="):
            tail = parts[1]  # --lr=$LR or lr=$LR: the value keeps its own place
            words.append(Word(text, tail.start - len(parts[0].text), tail.end, known, tail.own))
        else:
            words.append(Word(text, start, end, known, own=False))
    return words


def _split_words(word: Word) -> list[Word]:
    if not re.search(r"\s", word.text) or not word.known:
        return [word]
    aligned = word.end - word.start == len(word.text)
    return [
        Word(m[0], word.start + m.start(), word.start + m.end()) if aligned and word.own else
        Word(m[0], word.start, word.end, own=False)
        for m in re.finditer(r"[^\s\\]+", word.text)
    ]  # fmt: skip


def _arithmetic(body: str) -> str | None:
    """Return a sum of whole numbers, as a shell computes it; None where it is anything else."""
    if not _SUM.match(body) or "**" in body or len(body) > 100:
        return None
    tokens = re.findall(r"\d+|[-+*/()]", body)

    def term(i: int) -> tuple[int, int]:
        if tokens[i] == "(":
            value, i = add(i + 1)
            return value, i + 1
        return int(tokens[i]), i + 1

    def product(i: int) -> tuple[int, int]:
        value, i = term(i)
        while i < len(tokens) and tokens[i] in "*/":
            sign = tokens[i]
            other, i = term(i + 1)
            value = value * other if sign == "*" else value // other
        return value, i

    def add(i: int) -> tuple[int, int]:
        value, i = product(i)
        while i < len(tokens) and tokens[i] in "+-":
            sign = tokens[i]
            other, i = product(i + 1)
            value = value + other if sign == "+" else value - other
        return value, i

    try:
        value, used = add(0)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return str(value) if used == len(tokens) and abs(value) < 10**15 else None


def _split(words: list[Word]) -> tuple[list[Word], list[Word], str]:
    """Return the launcher's words, the program's, and the program."""
    last = -1
    for index, word in enumerate(words):
        previous = words[index - 1].text if index else ""
        if word.text.endswith(".py") or previous == "-m":
            last = index
            if not word.text.endswith(("run.py", "launch.py")) and "distributed" not in word.text:
                break
    if last < 0:
        last = next((i for i, word in enumerate(words) if word.text.endswith(".sh")), -1)
    if last < 0:
        at = next((i for i, word in enumerate(words) if _RUNS.search(word.text)), 0)
        while at + 1 < len(words) and not words[at + 1].text.startswith("-") and "=" not in words[at + 1].text:
            at += 1
        start = next(i for i, w in enumerate(words) if _RUNS.search(w.text)) if words else 0
        return [], words[at + 1 :], " ".join(w.text for w in words[start : at + 1])
    return words[:last], words[last + 1 :], words[last].text


def _flags(words: list[Word], *, raw: bool = False) -> dict[str, list[Word]]:
    """Return the values of each flag; the last of several wins, as for argparse."""
    found: dict[str, list[Word]] = {}
    shown: dict[str, list[Word]] = {}
    flag: str | None = None
    for word in words:
        text = word.text
        override = _OVERRIDE.match(text)
        if text.startswith("-") and not _NUMBER.match(text) and text.strip("-"):
            head, sign, tail = text.partition("=")
            flag = head.lstrip("-").replace("-", "_")
            shown[flag] = [Word(head, word.start, word.start + len(head))]
            found[flag] = []
            if sign:
                found[flag] = [Word(tail, word.end - len(tail), word.end, word.known, word.own)]
                flag = None
        elif override and (flag is None or found[flag] or not _LISTS.search(flag)):
            flag = None
            tail = override[2]
            found[override[1]] = [Word(tail, word.end - len(tail), word.end, word.known, word.own)]
            shown[override[1]] = [Word(override[1] + "=", word.start, word.start)]
        elif flag is not None:
            found[flag].append(word)
    if flag is not None and len(found[flag]) > 1 and found[flag][-1].text.startswith(("/", "./", "../", "~")):
        found[flag].pop()  # the data, behind the last flag
    return shown if raw else found


def _plain(values: list[Word]) -> Any:
    from isobatch.formats.texts.yaml import plain

    plains = [plain(word.text) if word.known else Unknown(word.text) for word in values]
    if not plains:
        return True
    return plains[0] if len(plains) == 1 else plains


def _set(tree: dict[str, Any], spots: dict[Key, Spot], flag: str, values: list[Word], name: str) -> None:
    key: Key = tuple(flag.split(".")) if "." in flag else (flag,)
    table = tree
    for part in key[:-1]:
        inner = table.setdefault(str(part), {})
        if not isinstance(inner, dict):
            raise InputError(f"{name}: {flag} stands beside a value of {part}; keep one of them")
        table = inner
    value = _plain(values)
    if len(values) == 1 and isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        from isobatch.formats.texts.yaml import plain

        value = [plain(item.strip()) for item in value[1:-1].split(",")]
    table[str(key[-1])] = value
    if len(values) == 1 and values[0].own:
        spots[key] = Spot(values[0].start, values[0].end)
    for index, word in enumerate(values):
        if word.own and len(values) > 1:
            spots[(*key, index)] = Spot(word.start, word.end)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_literal(item) for item in value)
    return str(value) if isinstance(value, str) else repr(value)


def _rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    pieces: list[tuple[int, int, str]] = []
    added = ""
    for key, value in changes.items():
        spot = source.spots.get(key)
        whole = spot is not None and isinstance(value, (list, tuple))
        if whole and spot is not None:
            pieces.append((spot.start, spot.end, "[" + ",".join(_literal(item) for item in value) + "]"))
        elif spot is not None:
            pieces.append((spot.start, spot.end, _literal(value)))
        elif isinstance(value, (list, tuple)) and isinstance(source.get(key), list):
            places = [source.spots.get((*key, index)) for index in range(len(value))]
            if any(place is None for place in places):
                raise InputError(f"--{key[-1]} is built by the shell; write its numbers out")
            pieces += [(p.start, p.end, _literal(v)) for p, v in zip(places, value, strict=True) if p is not None]
        elif source.get(key) is not None or key[0] == "launcher":
            raise InputError(f"--{'.'.join(map(str, key))} is built by the shell; write the number out")
        else:
            added += f" {_flag(source, key)}{_literal(value)}"
    if added:
        pieces.append((source.extra["end"], source.extra["end"], _closed(source, added)))
    return replaced(source.text, pieces)


def _closed(source: Source, added: str) -> str:
    """Return flags to add behind the last word, past the quote that the word may stand in."""
    return added


def _flag(source: Source, key: Key) -> str:
    """Return a new flag as this command spells its others: dashes, underscores, or an override."""
    shown = source.extra["dashes"]
    name = ".".join(str(part) for part in key)
    if shown and all(text.endswith("=") for text in shown.values()):
        return f"{name}="
    dashed = any("-" in text.lstrip("-") for text in shown.values())
    return f"--{name.replace('_', '-') if dashed else name} "


def lines_of(source: Source) -> str:
    """Return a command in one line that can be pasted; the text itself where it is a script around one."""
    text = source.text.replace("\\\r\n", " ").replace("\\\n", " ").strip()
    body = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return " ".join(" ".join(body).split()) if len(body) == 1 else newline(source.text).join(body)
