"""docs/formats.md: its examples are run, its table names every format; the hooks call what exists."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from tests.formats.shelf import FILES, SHELF, read

from isobatch import cli
from isobatch.formats import FORMATS, load
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


GROUPS = {
    "batch, devices": ("batch", "devices", "micro", "accumulation", "rollout", "generation", "group", "critic", "nbs"),
    "rate, moments, decay, clip": ("optimizer", "groups", "curves.lr", "curves.weight_decay", "curves.momentum",
                                   "schedule.final", "batch_norm"),
    "average": ("ema",),
}  # fmt: skip


def vocabulary(form):
    """The keys that a format's files of the shelf are read by, in groups, and the trainers' own rules."""
    cells = {name: [] for name in (*GROUPS, "spans", "own rule")}
    for name in SHELF:
        if name.split("/")[0] != form.name:
            continue
        ledger = read(name).ledger
        for link in ledger.links:
            heads = ((group, head) for group, starts in GROUPS.items() for head in starts)
            group = next((group for group, head in heads if link.path.startswith(head)), "spans")
            key = re.sub(r"\[\d+\]", "[]", re.sub(r"^(large|llama3_70b|build_\w+|main)\.", "", link.name))
            cells[group].append(f"`{key}`")
        if ledger.own_rule is not None:
            cells["own rule"].append(ledger.own_rule.formula)
    return f"| `{form.name}` | " + " | ".join(", ".join(dict.fromkeys(cell)) or "-" for cell in cells.values()) + " |"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_vocabulary_is_what_is_read(form):
    assert vocabulary(form) in PAGE


def test_the_table_names_every_format():
    for form in FORMATS:
        assert f"| {form.title} | `{form.name}` | {form.source} |" in PAGE


def table(title):
    """The cells of the first table below a heading, its head left out."""
    text = PAGE[PAGE.index(title) :]
    lines = text[text.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def test_efficientdet_four_scripts():
    found = load(FILES / "timm/efficientdet_d0.sh", data_size=117266, set={"rules.momentum": "keep"})
    for batch, _, rate, _, warmup, _, decay in table("### EfficientDet-D0"):
        made = found.at(int(batch)).recipe
        if batch == "480":
            assert rate == warmup == decay == "(reference)"
            continue
        assert rate == f"{made.optimizer.lr:.6g}"
        assert decay == f"{made.ema.decay:.6g}"
        assert float(warmup) * 117266 == pytest.approx(made.samples(made.curves["lr"][0].span, "warm-up"))
    for batch in (480, 1200):
        assert f"{batch * math.log(0.5) / math.log(0.999):,.0f}" in PAGE
    free = load(FILES / "timm/efficientdet_d0.sh", data_size=117266).at(1200).recipe.optimizer
    assert f"0.768433, rate {free.lr:.6g}" in PAGE
    assert f"{free.momentum:.6g}" == "0.768433"


def test_swav_pair():
    values = {"batch": {"size": 256}, "data_size": 1281167, "spans": {"freeze": "5005 steps"}}
    values |= {"optimizer": {"name": "lars", "lr": 0.6, "momentum": 0.9, "weight_decay": 1e-6}}
    values |= {"schedule": {"length": "200 epochs", "shape": "cosine", "final": 0.001}, "rules": {"momentum": "keep"}}
    new = Recipe.parse(values).at(4096).recipe
    plan = [new.optimizer.lr, new.optimizer.lr * new.schedule.final, new.optimizer.momentum, new.optimizer.weight_decay]
    plan.append(round(new.samples(new.spans["freeze"], "freeze") / 4096))
    assert [row[3] for row in table("### SwAV")][:5] == [f"{number:.6g}" for number in plan]


def test_dino_pair():
    read = load(FILES / "dino/vanilla.sh", data_size=1281167, devices=16)
    size = read.recipe.batch.size
    made = read.at(size // 4)
    found = {row.path: row.becomes for row in (*made.rows, *made.unsaid)}
    cells = {row[0]: row[3] for row in table("### DINO, 1,024")}
    assert "optimizer.lr" not in found
    assert cells["`lr` (at 256)"] == "0.0005"
    assert cells["`momentum_teacher`"] == f"{0.996**0.25:.6g}" == f"{found['ema.decay']:.6g}"
    assert cells["betas (torch)"] == f"[{found['optimizer.betas[0]']:.6g}, {found['optimizer.betas[1]']:.6g}]"


def test_rnnt_pair():
    values = {"batch": {"size": 1024}, "optimizer": {"name": "lamb", "lr": 0.007447, "betas": [0.9, 0.999]}}
    new = Recipe.parse(values | {"ema": {"decay": 0.992}}).at(6144).recipe
    plan = [new.optimizer.lr, *new.optimizer.betas, new.ema.decay]
    cells = table("### RNN-T")
    assert [row[3] for row in cells][:4] == [f"{number:.6g}" for number in plan]
    assert f"{0.007447 * 6**0.5:.5g}" in cells[0][4]
    for batch, decay in ((1024, 0.992), (6144, 0.96)):
        assert f"{batch * math.log(0.5) / math.log(decay):,.0f}" in cells[3][4]


def test_the_hooks_call_what_exists():
    from isobatch.formats.texts import read_yaml

    action = read_yaml((ROOT / "action.yml").read_text(), "action.yml").tree
    assert "isobatch plan" in action["runs"]["steps"][1]["run"]
    assert "isobatch plan --check" in (ROOT / ".pre-commit-hooks.yaml").read_text()
