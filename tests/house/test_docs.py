"""Every Python block of README and docs runs, one page in one namespace, in a folder of its own."""

import re
from pathlib import Path

import pytest
from tests.docs.blocks import files

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)")
FENCED = re.compile(r"^(```+)\w.*?^\1$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if BLOCK.search(path.read_text())])
def test_code_runs(name, tmp_path, monkeypatch):
    for file, content in files(PAGES[name].read_text()).items():
        (tmp_path / file).write_text(content)
    for folder in ("examples", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text, namespace = PAGES[name].read_text(), {"__name__": "page"}
    for found in BLOCK.finditer(text):
        line = text[: found.start(1)].count("\n")
        code = compile("\n" * line + found[1], str(PAGES[name]), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("name", PAGES)
def test_links_into_the_project_lead_somewhere(name):
    page = PAGES[name]
    targets = [target for target in LINK.findall(FENCED.sub("", page.read_text())) if "://" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_examples_are_recipes_that_can_be_planned():
    from isobatch import Recipe

    found = sorted((ROOT / "examples").glob("*.toml"))
    assert found
    for path in found:
        recipe = Recipe.load(path)
        assert recipe.at(recipe.batch.size * 2).kappa == 2
