"""Format: one object a file format: the keys that give it away, and how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.formats.reader import Reader
from isobatch.formats.texts import Source

ENOUGH = 3
"""Points from which a file is taken for a format."""


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        name: for --format and JSON.
        title: for people.
        marks: dotted key -> points for a file that has it; "program:NAME" for the program of a command, "kind:KIND" for
            the kind of text, "text:WORD" for a word of a Python file, "not:KEY" for a key that others have.
        read: fills the reader's draft and ledger.
        source: repository and commit, or date, whose vocabulary this is.
        dashes: whether flags of several words are written with dashes alone.
    """

    name: str
    title: str
    marks: Mapping[str, int]
    read: Callable[[Reader], None]
    source: str
    dashes: bool = False

    def points(self, source: Source) -> int:
        """Return how much a file looks like this format."""
        return _points(self.marks, source)


@dataclass(frozen=True)
class Other:
    """A stack that is known and not read, so that its files are not taken for those of another one.

    Args:
        title: for people.
        marks: as those of a format.
        way_out: what its users can do.
    """

    title: str
    marks: Mapping[str, int]
    way_out: str

    def points(self, source: Source) -> int:
        """Return how much a file looks like this stack."""
        return _points(self.marks, source)


def detect(
    source: Source, formats: tuple[Format, ...], asked: str | None = None, others: tuple[Other, ...] = ()
) -> Format:
    """Return the format of a file.

    Args:
        source: the file.
        formats: the formats there are.
        asked: a name that was given.
        others: stacks that are known and not read.

    Returns:
        The format.

    Raises:
        InputError: an unknown name, a file that looks like none, or like two of them.
    """
    known = ", ".join(one.name for one in formats)
    if asked is not None:
        for one in formats:
            if one.name == asked:
                return one
        raise InputError(f"--format {asked!r} is none of {known}")
    ranked = sorted(((one.points(source), -index, one) for index, one in enumerate(formats)), reverse=True, key=_rank)
    best = ranked[0][0]
    for other in others:
        if other.points(source) >= max(best, ENOUGH):
            raise InputError(
                f"{source.name} is a recipe of {other.title}, which is not read; {other.way_out}. Or write its "
                "numbers in isobatch's own TOML (isobatch plan --keys lists them)"
            )
    if best < ENOUGH and source.extra.get("rests_on"):
        raise InputError(
            f"{source.name} takes its recipe from {source.extra['rests_on']}, and says too little of it to be planned; "
            "write its flags into that file, and plan the file"
        )
    if best < ENOUGH:
        raise InputError(
            f"{source.name} looks like none of the known formats; say which with --format ({known}), or write the "
            "recipe in isobatch's own TOML (docs/formats.md)"
        )
    rivals = [one.name for points, _, one in ranked if points == best]
    if len(rivals) > 1:
        raise InputError(f"{source.name} could be {' or '.join(rivals)}; say which with --format {rivals[0]}")
    return ranked[0][2]


def _rank(item: tuple[int, int, Format]) -> tuple[int, int]:
    return item[0], item[1]


def _points(marks: Mapping[str, int], source: Source) -> int:
    names = Reader(source)
    total = 0
    for mark, points in marks.items():
        word, _, rest = mark.partition(":")
        if word == "program":
            held = rest in source.extra.get("program", "").replace("\\", "/")
        elif word == "kind":
            held = source.kind == rest
        elif word == "text":
            held = source.kind == "python" and rest in source.text
        elif word == "not":
            total -= points if names.has(rest) else 0
            continue
        else:
            held = names.has(mark)
        total += points if held else 0
    return total
