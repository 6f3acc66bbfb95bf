"""isobatch noise: exit codes, JSON, files, and refusals without a traceback."""

import json

import pytest

from isobatch import cli

RECIPE = """task = "quadratic"
data_size = 4096
batch = { size = 8 }
optimizer = { name = "sgd", lr = 5.0 }
schedule = { length = "800 samples" }
options = { dimension = 1, noise = 0.004 }
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return str(file)


SWEEP = ["--batches", "8,32,128", "--goals", "0.005,0.002", "--lrs", "5,20", "--seeds", "2", "--workers", "1"]


def test_a_sweep_prints_its_sentences_and_keeps_its_runs(path, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.run(["noise", "sweep", path, *SWEEP, "--out", str(out)]) == 0
    assert "loss 0.002: critical batch" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["cells", "front.png", "report.html", "result.json"]
    stored = json.loads((out / "result.json").read_text())
    assert [goal["goal"] for goal in stored["goals"]] == [0.005, 0.002]
    assert stored["goals"][0]["fit"]["critical"]["value"] > 0
    assert "Pareto front" in (out / "report.html").read_text()
    assert cli.run(["noise", "sweep", path, *SWEEP, "--out", str(out), "--budget", "0s", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["goals"] == stored["goals"]
    assert shown.err == ""
    assert cli.run(["noise", "sweep", path, *SWEEP, "--budget", "0s"]) == 0
    shown = capsys.readouterr().out
    assert "not begun within the budget: batches 8, 32, 128" in shown
    assert "no files written" in shown


BAD = [
    (["sweep", "PATH", "--batches", "8,x", "--goals", "0.1"], "--batches '8,x' must be whole numbers by comma"),
    (["sweep", "PATH", "--batches", "8,1.5,9", "--goals", "0.1"], "must be whole numbers"),
    (["sweep", "PATH", "--batches", "8,16", "--goals", "0.1"], "takes at least 3"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", ""], "--goals '' must be numbers by comma"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "9"], "goal=9 is reached before training"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "0.001", "--seeds", "0"], "seeds=0 must be at least 1"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "0.001", "--budget", "9"], "such as 10m"),
    (["sweep", "nowhere.toml", "--batches", "8,16,32", "--goals", "0.1"], "cannot read the recipe nowhere.toml"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_2_and_says_what_to_do(words, message, path, capsys):
    words = [path if word == "PATH" else word for word in words]
    assert cli.run(["noise", *words, *(["--workers", "1"] if words[0] == "sweep" else [])]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
