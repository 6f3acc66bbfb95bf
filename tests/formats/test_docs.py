"""docs/formats.md: its examples are run, its table names every format; the hooks call what exists."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.formats.shelf import FILES

from isobatch import cli
from isobatch.formats import FORMATS
from isobatch.plan import Recipe
from isobatch.plan.plan import show

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text()
SCHEMA = json.loads((ROOT / "docs" / "plan.schema.json").read_text())
EXAMPLES = re.findall(
    r"### (\d+\. [^\n]+)\n```console\n\$ isobatch (plan [^\n]+)\n```\n(.*?)(?=\n### |\n## )", PAGE, re.S
)
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def valid(value, schema):
    """Whether a value is what a schema of the words that ours uses says."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind in ("number", "integer"):
            found = isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
        else:
            found = isinstance(value, KINDS[kind])
        if found:
            break
    else:
        assert not kinds, (value, schema)
    assert value == schema.get("const", value)
    assert value in schema.get("enum", [value])
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= value.keys()
        assert schema.get("additionalProperties", True) or value.keys() <= schema["properties"].keys()
        for key, inner in schema.get("properties", {}).items():
            if key in value:
                valid(value[key], inner)
    if isinstance(value, list):
        for item in value:
            valid(item, schema.get("items", {}))


def test_there_are_ten():
    assert len(EXAMPLES) == 10


@pytest.mark.parametrize(("title", "command", "text"), EXAMPLES, ids=[title for title, _, _ in EXAMPLES])
def test_an_example(title, command, text, monkeypatch, capsys):
    monkeypatch.chdir(FILES)
    assert cli.run([*shlex.split(command), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    valid(data, SCHEMA)
    rows = [(f"`{row['key']}`", show(row["was"]), show(row["becomes"])) for row in data["changes"]]
    written = [tuple(line.strip("| ").split(" | ")) for line in text.splitlines() if line.startswith("| `")]
    assert written == rows
    for row in data["unsaid"]:
        assert f"`{row['path']}` {show(row['was'])} -> {show(row['becomes'])}" in text


def test_the_table_names_every_format():
    for form in FORMATS:
        assert f"| {form.title} | `{form.name}` | {form.source} |" in PAGE


@pytest.mark.parametrize(("optimizer", "sizes", "numbers"), [
    ({"name": "sgd", "lr": 0.65, "momentum": 0.9}, (480, 1200), {"lr": "1.625", "ema": (0.999, "0.997502")}),
    ({"name": "lars", "lr": 0.6, "momentum": 0.9}, (256, 4096), {"lr": "9.6"}),
    ({"name": "adamw", "lr": 5e-4}, (1024, 256), {"ema": (0.996, "0.998998")}),
    ({"name": "lamb", "lr": 0.007447, "betas": [0.9, 0.999]}, (1024, 6144),
     {"lr": "0.044682", "ema": (0.992, "0.95295"), "beta2": "0.994015"}),
])  # fmt: skip
def test_the_same_authors_at_two_batches(optimizer, sizes, numbers):
    ema = {"ema": {"decay": numbers["ema"][0]}} if "ema" in numbers else {}
    values = {"batch": {"size": sizes[0]}, "optimizer": optimizer, "rules": {"momentum": "keep"}, **ema}
    made = Recipe.parse(values).at(sizes[1]).recipe
    if "lr" in numbers:
        assert f"{made.optimizer.lr:.6g}" == numbers["lr"]
        assert f"{numbers['lr']}" in PAGE
    if "ema" in numbers:
        assert f"{made.ema.decay:.6g}" == numbers["ema"][1]
        assert numbers["ema"][1] in PAGE
    if "beta2" in numbers:
        assert f"{made.optimizer.betas[1]:.6g}" == numbers["beta2"]


def test_the_hooks_call_what_exists():
    from isobatch.formats.texts import read_yaml

    action = read_yaml((ROOT / "action.yml").read_text(), "action.yml").tree
    assert "isobatch plan" in action["runs"]["steps"][1]["run"]
    assert "isobatch plan --check" in (ROOT / ".pre-commit-hooks.yaml").read_text()
