"""isobatch noise: exit codes, JSON, files, and refusals without a traceback."""

import json

import pytest

from isobatch import Recipe, cli, critical
from isobatch.plan import Critical

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
    nothing = tmp_path / "nothing"
    assert cli.run(["noise", "sweep", path, *SWEEP, "--budget", "0s", "--out", str(nothing)]) == 0
    assert (nothing / "front.png").stat().st_size > 1000
    capsys.readouterr()
    assert cli.run(["noise", "sweep", path, *SWEEP, "--budget", "0s"]) == 0
    shown = capsys.readouterr().out
    assert "not begun within the budget: batches 8, 32, 128" in shown
    assert "no files written" in shown


def test_a_calibrated_sweep_is_stored_in_the_recipe_and_advises(path, tmp_path, capsys, monkeypatch):
    known = Critical(batch=40.0, low=28.0, high=60.0, samples=900.0, source="a sweep", noise_scale=20.0, ratio=2.0)
    monkeypatch.setattr(critical, "calibrate", lambda _, **__: known)
    assert cli.run(["noise", "sweep", path, *SWEEP, "--calibrate"]) == 0
    assert "[critical]\nbatch = 40.0" in capsys.readouterr().out
    assert Recipe.load(path).critical == known
    table = tmp_path / "steps.csv"
    table.write_text("batch,seconds_per_step\n8,0.018\n64,0.074\n256,0.266\n")
    words = ["noise", "advise", path, "--throughput", str(table), "--devices", "1,8"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for part in ("8 samples keeps 83%", "cheapest: batch", "critical batch 40 samples [28 to 60] (a sweep)", "assumed"):
        assert part in shown
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["advice.png", "report.html", "result.json"]
    assert cli.run([*words, "--noise-scale", "100", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["critical"] == {"value": 200.0, "low": 0.0, "high": None}
    assert cli.run(["plan", path, "--batch-size", "32", "--goal", "speed"]) == 0
    assert "critical batch 40 samples" in " ".join(capsys.readouterr().out.split())


def test_this_machine_is_timed_where_no_file_is_given(path, capsys):
    assert cli.run(["noise", "advise", path, "--critical", "40"]) == 0
    shown = capsys.readouterr().out
    assert "timed on this machine" in shown
    assert "given without an interval" in shown


def test_a_run_is_branched(path, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--start", "64 samples", "--span", "256 samples", "--factors", "1,2,4", "--seeds", "2", "--workers", "1"]
    assert cli.run(["noise", "branch", path, *words, "--out", str(out)]) == 0
    assert "from 64 samples on, batch" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["branches.png", "cells", "report.html", "result.json"]
    assert cli.run(["noise", "branch", path, *words, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["factors"] == [1, 2, 4]


def test_the_noise_scale_is_measured_over_a_run(path, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.run(["noise", "measure", path, "--marks", "3", "--samples", "512", "--out", str(out)]) == 0
    assert "is not a critical batch" in capsys.readouterr().out
    data = json.loads((out / "result.json").read_text())
    assert [r["seen"] for r in data["readings"]] == [0, 400, 800]
    assert sorted(p.name for p in out.iterdir()) == ["noise.png", "report.html", "result.json"]


BAD = [
    (
        ["sweep", "PATH", "--batches", "8,x", "--goals", "0.1"],
        "'8,x' must be whole numbers separated by commas",
    ),
    (["sweep", "PATH", "--batches", "8,1.5,9", "--goals", "0.1"], "must be whole numbers"),
    (["sweep", "PATH", "--batches", "8,16", "--goals", "0.1"], "takes at least 3"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", ""], "--goals '' must be numbers separated by commas"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "9"], "goal=9 is reached before training"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "0.001", "--seeds", "0"], "seeds=0 must be at least 1"),
    (["sweep", "PATH", "--batches", "8,16,32", "--goals", "0.001", "--budget", "9"], "such as 10m"),
    (["measure", "PATH", "--marks", "1"], "marks=1 must be at least 2"),
    (["measure", "PATH", "--device", "nowhere"], "device='nowhere' cannot be used here"),
    (["measure", "PATH", "--samples", "1"], "samples=1 must be at least 4"),
    (["branch", "PATH", "--span", "256"], "--span='256' is not a quantity"),
    (["branch", "PATH", "--span", "2 epochs"], "give start, the samples of the main run, or checkpoint"),
    (["branch", "PATH", "--span", "9 samples", "--start", "8 samples"], "steps of the largest batch"),
    (["branch", "PATH", "--span", "2 epochs", "--checkpoint", "nowhere"], "holds no checkpoint"),
    (["branch", "PATH", "--span", "2 epochs", "--start", "1 epoch", "--factors", "1,a"], "--factors '1,a' must be"),
    (["advise", "PATH"], "the recipe has no [critical]; measure it"),
    (["advise", "PATH", "--noise-scale", "40"], "is not a critical batch"),
    (["advise", "PATH", "--critical", "9,8,7"], "low,value,high in rising order"),
    (["advise", "PATH", "--critical", "nan,8,9"], "'nan,8,9' must be a batch, or low,value,high in rising order"),
    (["advise", "PATH", "--critical=-1,8,9"], "none below 0"),
    (["advise", "PATH", "--critical", "0"], "critical batch=0 must be in (0, inf]"),
    (["advise", "PATH", "--critical", "nan"], "critical batch=nan must be finite"),
    (["advise", "PATH", "--critical", "40", "--throughput", "nowhere.csv"], "cannot read the throughput nowhere.csv"),
    (["advise", "PATH", "--critical", "40", "--devices", "0"], "devices=0 must be at least 1"),
    (["advise", "PATH", "--critical", "40", "--devices", "1,2", "--bandwidth", "0"], "bandwidth=0 must be in (0, inf]"),
    (["advise", "PATH", "--critical", "40", "--overlap", "2"], "overlap=2 must be in [0, 1)"),
    (["advise", "PATH", "--critical", "40", "--fits", "0"], "--fits=0 must be at least 1"),
    (["sweep", "nowhere.toml", "--batches", "8,16,32", "--goals", "0.1"], "cannot read the recipe nowhere.toml"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_2_and_says_what_to_do(words, message, path, capsys):
    words = [path if word == "PATH" else word for word in words]
    assert cli.run(["noise", *words, *(["--workers", "1"] if words[0] in ("sweep", "branch") else [])]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


TABLE = "batch,seed,samples\n" + "".join(
    f"{b},{seed},{round(100000 * (1 + b / 200) * (1 + 0.02 * (-1) ** (seed + i)))}\n"
    for i, b in enumerate((16, 64, 256, 1024, 4096)) for seed in range(3))  # fmt: skip


def test_a_table_is_fitted_pictured_and_advises(path, tmp_path, capsys):
    table, out = tmp_path / "runs.csv", tmp_path / "out"
    table.write_text(TABLE)
    assert cli.run(["noise", "fit", str(table), "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "runs: critical batch 20",
        "seeds alone: ",
        "a batch left out is predicted within",
        "which batch pays: ",
    ):
        assert part in shown
    assert sorted(p.name for p in out.iterdir()) == ["fit.png", "report.html", "result.json"]
    assert (out / "fit.png").stat().st_size > 10_000
    assert "The critical batch of runs" in (out / "report.html").read_text()
    stored = json.loads((out / "result.json").read_text())
    assert stored["hyperbola"]["critical"]["value"] == pytest.approx(200, rel=0.05)
    assert cli.run(["noise", "fit", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hyperbola"] == stored["hyperbola"]
    steps = tmp_path / "steps.csv"
    steps.write_text("batch,seconds_per_step\n8,0.018\n64,0.074\n256,0.266\n")
    assert cli.run(["noise", "fit", str(table), "--advise", f"{path} --throughput {steps}"]) == 0
    assert "cheapest: batch" in " ".join(capsys.readouterr().out.split())
    words = stored["next"].split("RECIPE ")[1].split()
    assert cli.run(["noise", "advise", path, "--throughput", str(steps), *words]) == 0


@pytest.mark.parametrize(("text", "words", "message"), [
    ("batch,seed,value\n16,0,3\n", [], "the unit of 'value' is not declared"),
    ("batch,steps,samples\n16,0,3\n", [], "mixed units"),
    ("batch,samples\n16,5\n16,6\n", [], "stands there twice"),
    ("batch,samples\n16,5\n", [], "1 batch; a fit takes at least 3"),
    ("batch,samples\n16,9\n32,8\n64,5\n128,3\n", [], "fall as the batch grows"),
    ("batch,samples\n16,0\n", [], "samples=0"),
    ("batch,samples\n16,many\n", [], "'many', which is no number"),
    (TABLE, ["--size", "-3"], "size=-3"),
    (TABLE, ["--json", "--advise", "recipe.toml"], "--advise beside --json"),
    ("batch,samples\n16,5\n32,6\n64,8\n", ["--advise", "recipe.toml"], "not identified"),
])  # fmt: skip
def test_tables_that_are_refused(text, words, message, tmp_path, capsys):
    table = tmp_path / "runs.csv"
    table.write_text(text)
    assert cli.run(["noise", "fit", str(table), *words]) == 2
    assert message in capsys.readouterr().err
