"""The command line as people call it: in a process of its own, end to end, and without torch where none is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.recipes import TEXT, recipe

from isobatch import cli, verify

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "concurrent.futures")


def environment():
    """What another process needs to see the same isobatch, one thread wide."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def process(*words, cwd=ROOT):
    """Run Python in another process that sees the same isobatch."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def loaded(code):
    """Which heavy packages a piece of code leaves in sys.modules."""
    check = f"{code}\nimport sys\nsys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules) + '|done')"
    found = process("-c", check)
    assert found.stderr.endswith("|done"), found.stderr
    return found.stderr.rpartition("\n")[2].removesuffix("|done").split()


def test_importing_isobatch_and_planning_import_nothing_heavy(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TEXT.replace('"sgd"', '"adamw"'))
    plan = f"from isobatch.cli import run\nassert run(['plan', {str(file)!r}, '--batch-size', '128']) == 0"
    assert loaded("import isobatch") == []
    assert loaded(plan) == []
    assert (
        loaded(
            "import isobatch.units, isobatch.rules, isobatch.curves, isobatch.recipe, isobatch.plan, isobatch.control"
        )
        == []
    )
    assert "torch" in loaded("import isobatch; isobatch.ModelEMA")


def test_bad_input_has_no_traceback(tmp_path):
    file = tmp_path / "bad.toml"
    for text, message in ((TEXT.replace("0.999", "nan"), "ema.decay=nan"), ("size = =", "is not TOML")):
        file.write_text(text)
        found = process("-m", "isobatch", "plan", str(file), "--batch-size", "128")
        assert found.returncode == 2
        assert message in found.stderr
        assert "Traceback" not in found.stderr
        assert found.stdout == ""


def test_a_task_of_ones_own_is_verified_from_a_recipe(tmp_path):
    """examples/own_task.py, called as its page says."""
    words = ["examples/own_task.toml", "--batch-size", "32", "--seeds", "16", "--workers", "2", "--out", str(tmp_path)]
    found = process("-m", "isobatch", "verify", "run", *words, "--ablate", "lr-only,unscaled")
    assert found.returncode == 0, found.stderr
    assert "SAME: the plan is SAME (averaged model)" in found.stdout
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["verdicts"] == {"plan": "SAME", "lr-only": "DIFFERENT", "unscaled": "DIFFERENT"}
    assert data["command"].startswith("isobatch verify run examples/own_task.toml")
    assert len((ROOT / "examples/own_task.py").read_text().splitlines()) <= 30


def test_verify_run_on_the_quadratic_finds_the_expected_pattern(tmp_path, capsys):
    made = recipe(
        task="quadratic", data_size=256, optimizer={"lr": 0.008}, ema={"decay": 0.98},
        schedule={"length": "2048 samples", "warmup": "0 samples", "shape": "constant"},
        options={"dimension": 4, "noise": 0.01},
    )  # fmt: skip
    done, estimates = [], []
    result = verify.run(
        made, 32, seeds=8, workers=2, on_done=done.append, on_estimate=lambda *found: estimates.append(found)
    )
    assert result.verdicts == {"plan": "SAME", **dict.fromkeys(("lr-only", "ema-only", "unscaled"), "DIFFERENT")}
    assert str(result.table["lr-only"]["raw"].verdict) == "SAME"
    assert len(done) == 40
    assert estimates[0][1] == 40
    first = {arm: [curve.values["raw"]["loss"][0] for curve in runs] for arm, runs in result.curves.items()}
    assert all(values == first["reference"] for values in first.values())
    assert len(set(first["reference"])) == 8
    assert {curve.steps for curve in result.curves["reference"]} == {result.design.stops[-1] // 8}
    assert {curve.steps for curve in result.curves["plan"]} == {result.design.stops[-1] // 32}


def test_a_reference_that_diverges_is_refused_by_the_command(tmp_path, capsys):
    file = tmp_path / "wild.toml"
    file.write_text("""task = "quadratic"
data_size = 256
batch = { size = 8 }
optimizer = { name = "sgd", lr = 1e6 }
schedule = { length = "2048 samples" }
options = { dimension = 2 }
""")
    words = ["verify", "run", str(file), "--batch-size", "32", "--seeds", "8", "--workers", "1"]
    assert cli.run([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the recipe itself fails in 8 of 8 seeds (seed 0: stopped at step" in said
    assert "lower optimizer.lr (1e+06)" in said
    assert not list((tmp_path / "out").glob("*.html"))


def test_sigterm_ends_a_comparison_with_143_and_the_same_command_goes_on(tmp_path):
    words = ["-m", "isobatch", "verify", "run", "tests/verify/cases/a7.toml", "--batch-size", "32", "--seeds", "8"]
    words += ["--ablate", "unscaled", "--workers", "2", "--out", str(tmp_path)]
    first = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("cells/*.json"))) < 3 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[1]
    kept = {path: path.read_text() for path in tmp_path.glob("cells/*.json")}
    assert first.returncode == 143, said
    assert "what was finished is kept" in said
    assert f"finished runs are kept in {tmp_path}" in said
    assert 3 <= len(kept) < 24
    assert not (tmp_path / "result.json").exists()
    found = process(*words)
    assert found.returncode == 3, found.stderr  # one seed of the plan dies
    assert len(list(tmp_path.glob("cells/*.json"))) == 24
    assert all(path.read_text() == text for path, text in kept.items())
