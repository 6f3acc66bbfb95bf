"""The words of a shell script, its variables and arrays followed to where their text stands; nothing is run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from isobatch.errors import InputError

ASSIGN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")
_DECLARING = ("export", "readonly", "local", "declare")
_SUM = re.compile(r"^[\d\s+*/()-]+$")


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


class Shell:
    """A script: its words, and what its variables hold.

    Args:
        text: the script.
        name: for messages.
    """

    def __init__(self, text: str, name: str):
        self.text, self.name = text, name
        self.held: dict[str, list[Word]] = {}
        self.twice: set[str] = set()

    def commands(self) -> Iterator[tuple[list[Word], int]]:
        """Yield the words of every command, variables followed, and where the command's own text ends."""
        at, words, stop = 0, [], 0
        text = self.text
        while at < len(text):
            head = text[at]
            if head in " \t":
                at += 1
            elif text.startswith(("\\\n", "\\\r\n"), at):
                at += 2 if text[at + 1] == "\n" else 3
            elif head == "#" and (at == 0 or text[at - 1] in " \t\n;"):
                line_end = text.find("\n", at)
                stop_at = len(text) if line_end < 0 else line_end
                if words and text[at:stop_at].rstrip("\r").endswith("\\"):
                    line = text.count("\n", 0, at) + 1
                    raise InputError(
                        f"{self.name} line {line}: a comment inside a command ends it there, whatever backslash stands "
                        "behind it; take the line out"
                    )
                at = stop_at
            elif head in "\r\n;&|(){}<>" and not text.startswith("{", at):
                if words:
                    yield words, stop
                words, at = [], at + 1
            else:
                match = ASSIGN.match(text, at)
                if match and all(word.text in _DECLARING for word in words):
                    at, own = self._assignment(match)
                    words = own
                    continue
                found, after = self._word(at)
                if text[after : after + 1] == ">" and text[at:after].isdigit():  # the 2 of 2>&1
                    found, after = [], after
                else:
                    stop = after
                words += found
                at = after
        if words:
            yield words, stop

    def counted(self, name: str, flag: str) -> list[Word]:
        """Return a variable that holds one whole number as a launcher's flag, nothing for any other."""
        held = self.held.get(name, [])
        if len(held) != 1 or name in self.twice or not held[0].text.isdigit():
            return []
        return [Word(f"--{flag}", held[0].start, held[0].start), held[0]]

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
        match = re.compile(r"\$\{([A-Za-z_]\w*|\d)(\[[@*]\])?(?::?-([^${}]*))?\}").match(text, at)
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
