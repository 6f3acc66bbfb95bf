"""Every file of the shelf: read, planned, patched, read again; unchanged ones come back byte for byte."""

import math
from collections import Counter

import pytest
from tests.formats.shelf import ASKED, FILES, SHELF, read

from isobatch.formats import FORMATS, Unanswered, load
from isobatch.formats.ledger import same
from isobatch.formats.view import View


def numbers(values, path=()):
    """Every number of nested values, by where it stands."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from numbers(value, (*path, key))
    elif isinstance(values, (list, tuple)):
        for index, value in enumerate(values):
            yield from numbers(value, (*path, index))
    elif isinstance(values, (int, float)) and not isinstance(values, bool):
        yield path, values


def spans_in_samples(recipe):
    """A recipe's numbers and its spans in samples, so that "2 steps" of one batch compare with those of another."""
    found = dict(numbers(recipe.model_dump(exclude={"planned", "schedule", "curves", "spans"}, exclude_none=True)))
    if recipe.schedule is not None:
        stairs = recipe.staircase()
        found["length",] = stairs.length
        for part in range(20):
            found["lr", part] = stairs.at(stairs.length * (part + 0.5) / 20)
    for name in recipe.spans:
        found["spans", name] = recipe.samples(recipe.spans[name], name)
    if recipe.ema is not None and recipe.ema.ramp is not None and recipe.ema.ramp.tau is not None:
        found["tau",] = recipe.samples(recipe.ema.ramp.tau, "tau")
    return found


def test_at_least_three_files_a_format():
    counts = Counter(name.split("/")[0] for name in SHELF)
    assert set(counts) == {form.name for form in FORMATS}
    assert min(counts.values()) >= 3, counts


@pytest.mark.parametrize("name", SHELF)
def test_a_file_is_its_format_and_asks_for_what_it_does_not_say(name):
    asked = ()
    try:
        found = load(FILES / name)
    except Unanswered as error:
        asked = tuple(question.name for question in error.questions)
        found = read(name)
    assert found.ledger.format == name.split("/")[0]
    assert asked == ASKED[name]
    assert found.ledger.lossless, found.ledger.unread


@pytest.mark.parametrize("name", SHELF)
def test_a_file_that_does_not_change_comes_back_byte_for_byte(name):
    found = read(name)
    made = found.at(found.recipe.batch.size)
    assert made.text() == (FILES / name).read_bytes().decode()
    assert not made.rows
    assert made.diff() == ""


@pytest.mark.parametrize("kappa", [2, 0.5, 16])
@pytest.mark.parametrize("name", SHELF)
def test_there_and_back(name, kappa):
    """Read, plan, patch, read again: the planned values; and back: the values of the file."""
    found = read(name)
    size = int(found.recipe.batch.size * kappa)
    devices = found.recipe.batch.devices
    devices = devices if size % devices == 0 else max(devices // 2, 1)
    made = found.at(size, devices=devices)
    assert made.rows
    text = made.text()
    again = made.again(text, made.stamp)
    assert again.ledger.stamp is not None
    assert again.recipe.batch.size == size
    fixed = {path for item in found.ledger.fixed for path in (item.path,)}
    planned, reread = View(made.recipe, found.ledger.spans, found.recipe), View(again.recipe, again.ledger.spans)
    for link in again.ledger.links:
        old = next(one for one in found.ledger.links if (one.key, one.path) == (link.key, link.path))
        assert close(old.back(planned), link.back(reread)), link
    home = again.at(found.recipe.batch.size, devices=found.recipe.batch.devices, micro=found.recipe.batch.micro)
    back = made.again(home.text(), home.stamp)
    for link in back.ledger.links:
        old = next(one for one in found.ledger.links if (one.key, one.path) == (link.key, link.path))
        if link.path not in fixed:
            assert close(old.value, link.value), link


def close(one, other):
    if isinstance(one, (list, tuple)):
        return all(close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-18)
    return same(one, other)


@pytest.mark.parametrize("name", SHELF)
def test_keys_keep_their_order_and_their_comments(name):
    """All lines that hold no changed value stand in the planned file as they did."""
    found = read(name)
    made = found.at(found.recipe.batch.size * 2)
    old, new = found.ledger.source.text.splitlines(), made.text().splitlines()
    if found.ledger.source.kind == "command" or len(old) < 3:  # everything in a line
        return
    kept = [line for line in old if line in new]
    assert len(old) - len(kept) <= len(made.rows) + 2
    assert [line for line in new if line in kept and line.strip()][: len(kept)]
    for line in old:
        if "#" in line and line not in new:
            assert line.split("#", 1)[1] in "\n".join(new)
