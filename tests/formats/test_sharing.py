"""YAML values that several keys share: read as every loader reads them, edited without moving what was not meant."""

from difflib import ndiff
from io import StringIO

import pytest

from isobatch import cli
from isobatch.formats.texts import read_yaml

YAML = pytest.importorskip("ruamel.yaml").YAML

LISTED = "o:\n- &g\n  lr: 1\n  n: a\n- <<: *g\n  n: b\n- *g\n"
TABLES = "base: &b {lr: 1.0e-3, wd: 0.1}\ntrain: {<<: *b, bs: 3}\nother: *b  # kept\n"
BLOCKS = "base: &b\n  lr: 1.0e-3\n  wd: 0.1\ntrain:\n  <<: *b\n  bs: 3\nother:\n    <<: [{wd: 9}, *b]\n"
NUMBER = "batch: &n 512 # one\neval: *n # two\nlast: [*n, 3]\n"
DEEP = "x: &x {a: {lr: 1, k: [1, 2]}}\ny:\n  <<: *x\n  b: 2\nz: 1\n"


@pytest.mark.parametrize(("text", "changes", "lines"), [
    (NUMBER, {("batch",): 1024}, ["batch: &n 1024 # one", "eval: 512 # two", "last: [512, 3]"]),
    (NUMBER, {("batch",): 1024, ("eval",): 1024}, ["batch: &n 1024 # one", "last: [512, 3]"]),
    (NUMBER, {("batch",): 9, ("eval",): 9, ("last", 0): 9}, ["batch: &n 9 # one"]),
    (NUMBER, {("eval",): 7}, ["eval: 7 # two"]),
    (NUMBER, {("batch",): 9, ("eval",): 7}, ["batch: &n 9 # one", "eval: 7 # two", "last: [512, 3]"]),
    (TABLES, {("train", "lr"): 2e-3}, ["train: {<<: *b, bs: 3, lr: 0.002}"]),
    (TABLES, {("train", "wd"): 0.2, ("train", "bs"): 4}, ["train: {<<: *b, bs: 4, wd: 0.2}"]),
    (TABLES, {("other", "lr"): 2e-3}, ["other: {lr: 0.002, wd: 0.1}  # kept"]),
    (TABLES, {("other", "new"): 2}, ["other: {lr: 0.001, wd: 0.1, new: 2}  # kept"]),
    (TABLES, {(k, "lr"): 2e-3 for k in ("base", "train", "other")}, ["base: &b {lr: 0.002, wd: 0.1}"]),
    (BLOCKS, {("train", "lr"): 2e-3}, ["  lr: 0.002"]),
    (BLOCKS, {("other", "wd"): 1}, ["    wd: 1"]),
    (BLOCKS, {("base", "wd"): 0.3, ("train", "wd"): 0.3}, ["  wd: 0.3"]),
    (LISTED, {("o", 1, "lr"): 3}, ["  lr: 3"]),
    (LISTED, {("o", 2, "lr"): 3}, ["- {lr: 3, n: a}"]),
    (LISTED, {("o", i, "lr"): 3 for i in range(3)}, ["  lr: 3"]),
    (DEEP, {("y", "a", "k"): (3, 4)}, ["  a:", "    lr: 1", "    k: [3, 4]"]),
    (DEEP, {("x", "a", "lr"): 5, ("y", "a", "lr"): 5}, ["x: &x {a: {lr: 5, k: [1, 2]}}"]),
    ("a: &x\nb: 1\nc: *x\n", {("a",): 5}, ["a: &x 5", "c: null"]),
    ("a: &s 'it''s'\nb: *s\n", {("a",): "no"}, ["a: &s 'no'", 'b: "it\'s"']),
    ("a: &x\n  # said\n  p: 1\nb: *x\n", {("a", "p"): 2, ("b", "p"): 2}, ["  p: 2"]),
    ("b: &x {a: 1}\n<<: *x\n", {("a",): 4}, ["a: 4"]),
    ("b: &x {a: 1}\n<<: *x\n", {("b", "a"): 4}, ["b: &x {a: 4}", "a: 1"]),
    ("\ufeffa: &x 1\r\nb: *x\r\n", {("a",): 2}, ["\ufeffa: &x 2", "b: 1"]),
])  # fmt: skip
def test_an_edit_moves_what_is_named_and_nothing_else(text, changes, lines):
    source = read_yaml(text, "f.yaml")
    assert source.tree == loaded(text)
    edited = source.edit(changes)
    wanted = loaded(text)
    for key, value in changes.items():
        table = wanted
        for part in key[:-1]:
            table = table[part]
        table[key[-1]] = list(value) if isinstance(value, tuple) else value
    assert loaded(edited) == wanted
    assert [line[2:] for line in ndiff(text.splitlines(), edited.splitlines()) if line.startswith("+ ")] == lines


def loaded(text: str):
    """Return what a loader of YAML makes of a text, every shared value a copy of its own."""
    return copied(YAML(typ="safe", pure=True).load(StringIO(text.removeprefix("\ufeff"))))


def copied(value):
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def test_a_plan_of_a_file_that_merges(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "common: &c\n  learning_rate: 1.0e-4\n  max_steps: &n 1000\n<<: *c\nper_device_train_batch_size: 8\n"
    (tmp_path / "a.yaml").write_text(text)
    asked = ["--format", "hf", "--devices", "1", "--batch-size", "16", "--micro", "16", "--patch"]
    assert cli.run(["plan", "a.yaml", *asked]) == 0, capsys.readouterr()
    planned = loaded((tmp_path / "a.yaml").read_text())
    assert (planned["per_device_train_batch_size"], planned["max_steps"]) == (16, 500)
    assert planned["common"] == {"learning_rate": 1e-4, "max_steps": 1000}
