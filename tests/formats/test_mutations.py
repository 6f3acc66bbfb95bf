"""Files that somebody damaged: an answer, a question or a clear error, never a traceback, nothing written or run."""

import random

import pytest
from tests.formats.shelf import FILES, SHELF, read

from isobatch.errors import InputError
from isobatch.formats import FORMATS
from isobatch.formats.loading import Unforeseen, read_file
from isobatch.formats.loading import read as read_source

JUNK = ["", "0", "-1", "1e999", "nan", "auto", "null", "true", "[", "{", "}", ")", '"', "'", "\\", "$(touch RUN)"]
JUNK += [
    "`touch RUN`",
    "&a",
    "*a",
    "!!python/object:os.system",
    "\t",
    "\n",
    "\x00",
    "é",
    "9" * 40,
    "- x",
    "#",
    ": ",
    "None",
]
JUNK += [
    "__import__('os').system('touch RUN')",
    "open('RUN', 'w')",
    "1_0",
    "0x10",
    "1:30",
    "${X}",
    "[1, [2]]",
    "{a: 1}",
]
BY_FORMAT = {form.name: [name for name in SHELF if name.split("/")[0] == form.name] for form in FORMATS}


def mutated(text, rng):
    """A text with one to four small damages."""
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(JUNK) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(to, at + 12) :]
        elif kind == 2:
            text = text[:at] + rng.choice(JUNK) + text[min(to, at + 6) :]
        else:
            lines = text.split("\n")
            one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
            if kind == 3:
                lines[one] = lines[two]
            elif kind == 4:
                head, sign, _ = lines[one].rpartition(rng.choice([":", "=", " "]))
                lines[one] = head + sign + rng.choice(JUNK)
            else:
                del lines[one]
            text = "\n".join(lines)
        text = text or " "
    return text


def try_files(form, count, folder, monkeypatch, seed):
    monkeypatch.chdir(folder)
    rng, answers = random.Random(f"{form} {seed}"), {"devices": 8, "data_size": 1281167}
    fine = 0
    for index in range(count):
        name = BY_FORMAT[form][index % len(BY_FORMAT[form])]
        text = mutated((FILES / name).read_text(), rng)
        file = folder / ("mutant_" + name.rsplit("/", 1)[1])
        file.write_bytes(text.encode("utf-8"))
        try:
            found = read_source(read_file(file), answers, format_name=form)
            made = found.at(found.recipe.batch.size * 2)
            made.text()
            fine += 1
        except Unforeseen as error:  # the net below the readers: whatever falls into it is a fault of theirs
            raise AssertionError(f"{name} number {index}: {error}\n{text}") from error
        except InputError:
            pass
        assert file.read_bytes() == text.encode("utf-8")
        file.unlink()
    assert sorted(folder.iterdir()) == []
    return fine


@pytest.mark.parametrize("form", BY_FORMAT)
def test_mutants(form, tmp_path, monkeypatch):
    try_files(form, 20, tmp_path, monkeypatch, 0)


@pytest.mark.slow
@pytest.mark.parametrize("form", BY_FORMAT)
def test_ten_thousand_mutants(form, tmp_path, monkeypatch):
    try_files(form, 10_000, tmp_path, monkeypatch, 1)


def test_the_files_themselves_are_read_by_name():
    assert all(read(name) for name in SHELF[::9])
