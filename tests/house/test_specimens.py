"""What CONTRIBUTING says one adds is enough: its diffs go into a copy, where the batteries take the specimens."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIFFS = re.findall(r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
ROWS, PAGE = "tests/rules/test_rows.py", "tests/house/test_optimizers_page.py"


def parts(diff, *, back=False):
    """(file, text that stands there, text in its place) of each file of a diff; a new file stands for nothing."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("@@\n")
        file = re.search(r"^\+\+\+ b/(\S+)$", head, re.MULTILINE)[1]
        before, after = ("".join(line[1:] or "\n" for line in body.splitlines(keepends=True) if line[0] in signs)
                         for signs in (" -", " +"))  # fmt: skip
        yield (file, after, before) if back else (file, before, after)


def apply(folder, diff, *, back=False):
    for file, old, new in parts(diff, back=back):
        path = folder / file
        text = path.read_text() if path.exists() else ""
        assert text.count(old) == 1 or not old, f"{file} must hold once: {old}"
        path.write_text(text.replace(old, new) if old else new)


@pytest.fixture
def copy(tmp_path):
    skip = shutil.ignore_patterns("__pycache__", "results", "fixtures", "*.png")
    for name in ("src", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    for name in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(folder, *words):
    path = os.pathsep.join([str(folder / "src"), str(folder)])
    return subprocess.run([sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": path},
                          capture_output=True, text=True)  # fmt: skip


def passes(folder, chosen, *files):
    done = run(folder, "-m", "pytest", *files, "-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:]


def says(folder, code, text):
    done = run(folder, "-c", code)
    assert text in done.stdout + done.stderr, done.stdout + done.stderr


def planned(optimizer="sgd", **parts):
    values = {"batch": {"size": 8}, "optimizer": {"name": optimizer, "lr": 0.1}, **parts}
    return f"from isobatch import Recipe; print(Recipe.parse({values!r}).at(32).row('optimizer.lr').becomes)"


def test_lion_is_one_row_one_test_row_and_one_line_of_the_docs(copy):
    [lion] = [diff for diff in DIFFS if "Lion" in diff]
    assert len(list(parts(lion))) == 3
    says(copy, planned("lion"), "0.4")
    apply(copy, lion, back=True)
    words = [path for path in (copy / "src").rglob("*.py") if re.search(r"\blion\b", path.read_text(), re.IGNORECASE)]
    assert words == []
    says(copy, planned("lion"), "optimizer.name='lion' is not known")
    passes(copy, "has_a_row or has_a_line", ROWS, PAGE)
    apply(copy, lion)
    passes(copy, "has_a_row or has_a_line or (lion and not printed)", ROWS, "tests/rules/test_reasons.py", PAGE)


@pytest.mark.slow
def test_wsd_is_one_function_and_one_test_row(copy):
    [wsd] = [diff for diff in DIFFS if "def wsd" in diff]
    assert len(list(parts(wsd))) == 2
    schedule = {"length": "800 samples", "shape": "wsd"}
    says(
        copy,
        planned(schedule=schedule),
        "schedule.shape='wsd' must be one of 'constant', 'linear', 'minus-sqrt', 'cosine' or 'autowu'",
    )
    apply(copy, wsd)
    says(copy, planned(schedule=schedule), "0.4")
    passes(copy, "row or reference or sum or paper", "tests/curves/test_staircase.py", "tests/curves/test_legw.py")


@pytest.mark.slow
def test_a_learning_rate_rule_is_one_file_and_one_test_row(copy):
    [rule] = [diff for diff in DIFFS if "to-critical" in diff]
    assert len(list(parts(rule))) == 2
    chosen = {"rules": {"lr": "to-critical"}, "critical": {"batch": 16.0}}
    says(copy, planned(**chosen), "rules.lr='to-critical' must be one of 'auto', 'linear'")
    apply(copy, rule)
    says(copy, planned(**chosen), "0.2")
    passes(copy, "has_a_row or rate_of_the_row or (printed and 24-sgd) or (printed and 24-lion)", ROWS)
