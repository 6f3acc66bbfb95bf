"""The reference: every room has a page, every public name words and an example, every option a row."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.docs.blocks import BLOCK, PAGES, ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import pages
import public_names

REFERENCE = {path: path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
OLD = {"schedules", "topologies"}
"""Rooms that hold old names alone."""


def test_every_room_has_one_place():
    placed = sorted(room for text in REFERENCE.values() for room in re.findall(r"<!-- names (\S+) -->", text))
    assert placed == sorted({*public_names.ROOMS} - OLD - {"cli"})


@pytest.mark.parametrize(
    "path", [path for path, text in REFERENCE.items() if "<!-- names" in text], ids=lambda p: p.stem
)
def test_every_name_has_words_and_an_example(path):
    code = "\n".join(body for kind, body in BLOCK.findall(REFERENCE[path]) if kind == "python")
    used = set(re.findall(r"\w+", code))
    names = [one for room in re.findall(r"<!-- names (\S+) -->", REFERENCE[path]) for one in public_names.public(room)]
    assert names
    assert not [one.name for one in names if not one.doc.strip()]
    assert not [one.name for one in names if not one.example and one.name not in used]


def test_the_most_used_names_are_found_in_words_too():
    prose = "".join(path.read_text() for name, path in PAGES.items() if "/reference/" not in name)
    for name in ("rescale", "SampleScheduler", "SampleClock", "ModelEMA", "NoiseScale", "InvariantAdam"):
        assert name in prose


def test_every_option_of_the_command_line_is_on_its_page():
    from isobatch import cli

    text = pages.command_line()
    todo = [cli.parser()]
    while todo:
        one = todo.pop()
        for action in one._actions:
            if action.choices and not action.option_strings and isinstance(action.choices, dict):
                todo += action.choices.values()
            elif action.option_strings and action.dest not in ("help", "version") and action.help != "==SUPPRESS==":
                assert f"`{action.option_strings[0]}" in text


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if "```toml" in path.read_text()])
def test_blocks_of_toml_are_toml(name):
    for kind, body in BLOCK.findall(PAGES[name].read_text()):
        if kind == "toml":
            tomllib.loads(body)


@pytest.mark.parametrize(("line", "wanted"), [
    ("mu**kappa and |x|", r"mu\*\*kappa and \|x\|"),
    ("see `Recipe.at`, x_ and y_i", r"see ``Recipe.at``, x\_ and y_i"),
    (">>> a * b  # `c`", ">>> a * b  # `c`"),
])  # fmt: skip
def test_docstrings_are_taken_literally(line, wanted):
    assert pages.plain([line]) == [wanted]


def test_pages_are_mended_for_keyboards_and_readers():
    page = '<p class="caption" role="heading">A</p><pre>b</pre><span class="sig-paren">(</span><dl><dd>c</dd></dl>'
    assert pages.mended(page) == (
        '<p class="caption" role="heading" aria-level="2">A</p><pre tabindex="0">b</pre>'
        '<span class="sig-paren">(</span><div class="sig-lines"><div class="sig-line">c</div></div>'
    )
    assert pages.mended(pages.mended(page)) == pages.mended(page)


def test_cells_name_their_columns_and_a_table_without_names_has_no_head():
    cells = "<tr><td><p>1</p></td>\n<td><p>2</p></td></tr>"
    head = '<thead>\n<tr><th><p>a "b"</p></th><th><p>c</p></th></tr></thead>'
    table = f'<table class="docutils align-default">\n{head}<tbody>{cells}</tbody></table>'
    made = pages.mended(table)
    assert '<td role="cell" data-name="a &quot;b&quot;"><p>1</p></td>' in made
    assert '<td role="cell" data-name="c"><p>2</p></td>' in made
    assert made.count('role="row"') == 2
    assert pages.mended(made) == made
    bare = pages.mended(table.replace('a "b"', "").replace(">c<", "><"))
    assert "thead" not in bare
    assert bare.count('data-name=""') == 2
    assert "long" not in made
    assert 'class="long"' in pages.mended(table.replace(">2<", f">{'word ' * 20}<"))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    words = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--quiet", "docs", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    anchors = {name: set(re.findall(r'id="([^"]+)"', text)) for name, text in built.items()}
    broken = []
    for name, text in built.items():
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), name
        for target, anchor in re.findall(r'href="([^"#:?]*)(?:#([^"]*))?"', text):
            place = (tmp_path / name).parent / target if target else tmp_path / name
            relative = Path(place).resolve().relative_to(tmp_path.resolve()).as_posix()
            if not place.exists() or (anchor and relative in anchors and anchor not in anchors[relative]):
                broken.append((name, target, anchor))
    assert not broken
    shutil.rmtree(tmp_path)
