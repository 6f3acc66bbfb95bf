"""What CONTRIBUTING says one adds for a task, a study or an average is enough: the specimens in its own text."""

import json
import re
import sys
import tomllib

import pytest
from tests.house.house import ROOT
from tests.house.test_specimens import DIFFS, apply, copy, parts, passes, says  # noqa: F401
from tests.tasks.battery import BATTERY

from isobatch import cli
from isobatch.tasks import SHIPPED

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
POINTS = [tomllib.loads(block)["project"]["entry-points"]
          for block in re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]  # fmt: skip


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution that holds the specimens and announces them, as an installer would leave it."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    info = tmp_path / "specimens-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: specimens\nVersion: 1.0\n")
    groups = [(group, points) for block in POINTS for group, points in block.items()]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("check", BATTERY, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["specimen", "specimen_task:make"])
def test_a_task_is_one_function_and_an_entry_point(installed, check, name):
    check(name, 64, {})


def test_a_study_is_one_object_and_an_entry_point(installed, tmp_path, capsys):
    assert cli.run(["study", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["specimen"] == "Is four even?"
    assert cli.run(["study", "specimen", "--quick", "--out", str(tmp_path / "out")]) == 0
    assert "specimen/even" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["claims"][0]["held"] is True
    assert cli.run(["study", "specimen", "--out", str(tmp_path / "out")]) == 2
    assert "holds study specimen --quick" in capsys.readouterr().err


def test_every_shipped_task_is_in_the_docs():
    page = (ROOT / "docs" / "tasks.md").read_text()
    assert not [name for name in SHIPPED if f"`{name}`" not in page]


@pytest.mark.slow
def test_an_average_is_one_class_one_export_and_one_test_row(copy):  # noqa: F811
    [mean] = [diff for diff in DIFFS if "class Mean" in diff]
    assert len(list(parts(mean))) == 5
    apply(copy, mean)
    says(copy, "from isobatch.average.mean import Mean; print(Mean.__doc__)", "each step by its samples")
    passes(copy, "mean", "tests/average/test_kinds.py")
