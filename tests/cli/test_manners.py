"""Manners of the command line: closed pipes, full disks, what is missing, tasks in files, what is said beforehand."""

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.test_commands import OPTIONS, commands
from tests.cli.test_processes import ROOT, environment, process
from tests.recipes import TEXT, recipe

from isobatch import cli, critical, installed
from isobatch.cli import doctor
from isobatch.errors import InputError
from isobatch.installed import EXTRAS
from isobatch.split.run import target
from isobatch.tasks import beside, find, from_file
from isobatch.tasks.sources import module_of, source_of

OWN = (ROOT / "examples" / "own_task.py").read_text()
SHORT = """task = "own.py:make"
data_size = 1024
batch = { size = 8 }
optimizer = { name = "sgd", lr = 0.01 }
schedule = { length = "256 samples" }
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "r.toml").write_text(TEXT)
    return tmp_path / "r.toml"


def run(words, **more):
    command = [sys.executable, "-m", "isobatch", *words]
    return subprocess.run(command, env=environment(), cwd=ROOT, text=True, timeout=120, check=False, **more)


def test_a_reader_that_goes_away_costs_no_word():
    read, write = os.pipe()
    os.close(read)
    found = run(["plan", "--keys"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (found.returncode, found.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_on_a_full_disk_is_one_line():
    words = ["plan", "examples/digits.toml", "--batch-size", "64", "--json"]
    with Path("/dev/full").open("w") as full:
        found = run(words, stdout=full, stderr=subprocess.PIPE)
    [line] = found.stderr.splitlines()
    assert (found.returncode, line[:10]) == (2, "isobatch: ")
    assert "No space left on device" in line


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["plan", "R", "--html", "OUT/p.html"],
    ["train", "R", "--out", "OUT"],
    ["noise", "measure", "R", "--out", "OUT"],
    ["verify", "run", "R", "--batch-size", "32", "--seeds", "8", "--out", "OUT"],
], ids=lambda words: " ".join(words[:2]))  # fmt: skip
def test_a_full_disk_leaves_nothing_half_written(words, tmp_path):
    """A limit of a kilobyte for every file stands for the disk: what is larger fails as on a full one."""
    file, out = tmp_path / "r.toml", tmp_path / "out"
    file.write_text(SHORT.replace("own.py:make", "quadratic").replace("1024", "256").replace("256 s", "2048 s"))
    out.mkdir()
    filled = [{"R": str(file)}.get(word, word.replace("OUT", str(out))) for word in words]
    line = f"ulimit -f 1; exec {sys.executable} -m isobatch {' '.join(filled)}"
    found = subprocess.run(
        ["bash", "-c", line], env=environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert "File too large" in found.stderr.splitlines()[-1]
    assert not [one for one in out.rglob("*") if one.suffix in (".toml", ".html", ".png", ".safetensors")]


def test_the_version_names_the_extras(capsys, monkeypatch):
    monkeypatch.setattr(installed, "extras", lambda: {"torch": [], "dask": ["distributed"]})
    with pytest.raises(SystemExit, match="0"):
        cli.run(["--version"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("isobatch 0.")
    assert "Python 3." in first
    assert second == "extras: torch; not installed: dask"


def test_doctor_says_what_is_missing_for_which_command(capsys, monkeypatch):
    missing = {name: [] for name in EXTRAS} | {"torch": ["torch"], "dask": ["distributed"]}
    monkeypatch.setattr(doctor, "extras", lambda: missing)
    assert cli.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commands"]["--on dask://HOST:PORT"] == ["torch", "dask"]
    assert found["commands"]["plan RECIPE.toml, plan --html"] == []
    assert found["machine"]["cores"].isdecimal()
    assert cli.run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert 'pip install "isobatch[torch,dask]"' in shown
    assert "ready" in shown


def test_doctor_knows_every_extra_and_every_command():
    assert {extra for needs in doctor.NEEDS.values() for extra in needs} == set(EXTRAS)
    told = " ".join(doctor.NEEDS)
    heavy = {name.split()[0] for name in OPTIONS} - {"doctor", "study"}
    assert all(name in told for name in heavy)


def test_doctor_survives_a_torch_that_does_not_load(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "extras", lambda: {name: [] for name in EXTRAS})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.run(["doctor", "--json"]) == 0
    assert "does not load" in json.loads(capsys.readouterr().out)["machine"]["torch"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys):
    pytest.importorskip("shtab", reason='pip install "isobatch[completion]"')
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, parser in commands(cli.parser()):
        assert all(word in script for word in name.split())
        for action in parser._actions:
            if action.option_strings:
                long = action.option_strings[-1]
                assert long in script or long.lstrip("-") in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_completion_without_its_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(installed, "_found", lambda module: module != "shtab")
    assert cli.run(["completion", "bash"]) == 2
    assert capsys.readouterr().err == 'isobatch: not installed: shtab; pip install "isobatch[completion]"\n'


@pytest.fixture
def paths(tmp_path):
    before, own = [*sys.path], {*installed._OWN}
    loaded = {*sys.modules}
    yield
    sys.path[:] = before
    installed._OWN.intersection_update(own)
    for name in {*sys.modules} - loaded:  # a user's own alone: whatever else was loaded meanwhile stays
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["own.py:make", "./own.py:make", "own:make", "ABSOLUTE"])
def test_a_task_is_a_file_beside_the_recipe_whatever_the_folder(name, tmp_path, monkeypatch, capsys, paths):
    """Both ways to name it: as a file, and as a module of the recipe's own folder."""
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "own.py").write_text(OWN)
    (there / "r.toml").write_text(SHORT.replace("own.py:make", name.replace("ABSOLUTE", f"{there / 'own.py'}:make")))
    monkeypatch.chdir(here)
    assert cli.run(["train", str(there / "r.toml"), "--out", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["task"] == "own:make"


def test_the_code_of_a_task_in_a_file_counts(tmp_path, monkeypatch, paths):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.py"
    file.write_text(OWN)
    made = recipe(task="own.py:make")
    assert module_of(made) == "own"
    before = source_of(made)
    file.write_text(OWN + "\n# changed\n")
    assert before
    assert source_of(made) not in ("", before)


@pytest.mark.parametrize(("task", "message"), [
    ("nothing.py:make", "no file"),
    ("random.py:make", "random.py; rename the file"),
    ("torch.py:make", r"torch/__init__\.py; rename the file"),
    ("own.v2.py:make", "has a dot in its name, which parts packages; rename the file"),
    ("__main__.py:make", "rename the file"),
])  # fmt: skip
def test_a_file_that_cannot_be_imported_is_refused(task, message, tmp_path, paths):
    for name in ("random.py", "torch.py", "own.v2.py", "__main__.py"):
        (tmp_path / name).write_text(OWN)
    with pytest.raises(InputError, match=message):
        from_file(task, tmp_path)


LIBRARIES = (
    "torch",
    "numpy",
    "json",
    "rich",
    "random",
    "networkx",
    "typing_extensions",
)  # two are torch's and pydantic's
EARLY = ("re", "typing", "pathlib", "enum", "dataclasses")  # of Python, needed before the first line


@pytest.mark.parametrize("name", ["own_two.py", "own task.py", "1st.py", "own-task.py", "größe.py"])
def test_every_file_that_can_be_imported_is_found_by_one_reader(name, tmp_path, paths):
    """By a recipe's task, by the function, and by verify split's target; a space is no obstacle."""
    (tmp_path / name).write_text(OWN + f"\nNAME = {name!r}\n")
    found = [
        find(f"{tmp_path / name}:make"),
        target(f"{tmp_path / name}:make"),
        find(beside(recipe(task=f"{name}:make"), tmp_path).task),
    ]
    assert [one.__globals__["NAME"] for one in found] == [name] * 3


@pytest.mark.parametrize(("files", "mine"), [
    (["own_helper.py"], ["own_helper"]),
    (["pytest.py"], ["pytest"]),  # installed here, and nothing that this package needs
    (["sympy/readme.txt"], []),  # no package: it hides nothing
    (["own_helper.py", "torch.py"], ["own_helper"]),
    (["numpy/__init__.py"], []),
    (["safetensors.so"], []),
    *(([f"{name}.py"], []) for name in LIBRARIES),
], ids=" ".join)  # fmt: skip
def test_a_users_file_hides_no_library(files, mine, tmp_path, paths):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    installed.import_from(tmp_path)
    names = {name.partition(".")[0].partition("/")[0] for name in files}
    found = {name: PathFinder.find_spec(name, sys.path) for name in names}
    assert {name for name, spec in found.items() if Path(spec.origin).is_relative_to(tmp_path)} == set(mine)


def test_a_users_file_is_not_the_library_that_is_missing(tmp_path, paths, monkeypatch):
    (tmp_path / "submitit.py").write_text("")
    monkeypatch.setattr(sys, "path", [])
    installed.import_from(tmp_path)
    monkeypatch.delitem(sys.modules, "submitit", raising=False)
    with pytest.raises(installed.MissingExtra, match=r"not installed: submitit; pip install .isobatch\[slurm\]"):
        installed.need("slurm")


HIDING = {
    "plan": ["r.toml", "--batch-size", "16"],
    "train": ["r.toml", "--out", "out"],
    "verify split": ["own.py:make"],
    "verify run": ["r.toml", "--batch-size", "4", "--ablate", "none", "--seeds", "8", "--workers", "1"],
    "noise fit": ["runs.csv"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "plan" else pytest.mark.slow) for name in HIDING]
)
def test_commands_run_beside_files_that_are_named_as_libraries(name, tmp_path):
    """In a process of its own, where the current folder is the user's."""
    for library in (*LIBRARIES, *EARLY):
        (tmp_path / f"{library}.py").write_text("raise RuntimeError('mine')\n")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.toml").write_text(SHORT)
    (tmp_path / "runs.csv").write_text("batch,samples\n8,1000\n16,1010\n32,1040\n64,1100\n128,1200\n")
    found = process("-m", "isobatch", *name.split(), *HIDING[name], cwd=tmp_path)
    assert "Traceback" not in found.stderr
    assert found.returncode in ((0, 3, 4) if name == "verify run" else (0,)), found.stderr


def test_what_out_will_hold_is_said_before_any_work(path, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise InputError("stopped")

    monkeypatch.setattr(critical, "measure", stop)
    words = ["noise", "measure", str(path), "--out", str(tmp_path / "o")]
    assert cli.run(words) == 2
    said = f"isobatch: {tmp_path / 'o'} will hold result.json, noise.png, report.html\n10 readings of one run\n"
    assert capsys.readouterr().err == said + "isobatch: stopped\n"
    assert cli.run([*words, "--json"]) == 2
    assert capsys.readouterr().err == "isobatch: stopped\n"


def test_out_may_be_no_file(path, capsys):
    assert cli.run(["noise", "measure", str(path), "--out", str(path)]) == 2
    assert "r.toml: it is a file, and results take a folder; give another --out" in capsys.readouterr().err
    assert path.read_text() == TEXT


def test_a_calibration_that_fails_keeps_the_sweep(path, tmp_path, monkeypatch, capsys):
    seen = []

    def sweep(*_, out, **__):
        seen.append(out)
        data = {"goals": [], "unit": "samples", "metric": "loss", "recipe": {}, "seeds": 1}
        return SimpleNamespace(to_dict=lambda: dict(data))

    def calibrate(*_, **__):
        raise InputError("no goal of the sweep has an identified critical batch; add batches or seeds")

    monkeypatch.setattr(critical, "sweep", sweep)
    monkeypatch.setattr(critical, "calibrate", calibrate)
    words = ["noise", "sweep", str(path), "--batches", "4,8", "--goals", "0.5", "--calibrate"]
    assert cli.run([*words, "--out", str(tmp_path / "o")]) == 2
    assert sorted(one.name for one in (tmp_path / "o").iterdir()) == ["front.png", "report.html", "result.json"]
    capsys.readouterr()
    assert cli.run(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"isobatch: finished runs are kept in {seen[1]}; the same command goes on from there"
    assert seen[0] == tmp_path / "o"
    assert seen[1].parent == Path(os.environ["ISOBATCH_CACHE"]) / "sweep"


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["people", "programs"])
def test_a_log_is_told_how_far_a_training_is(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isobatch.executors.progress._SILENT", -1.0)  # not only once a minute
    path = tmp_path / "r.toml"
    path.write_text(SHORT.replace("own.py:make", "quadratic"))
    assert cli.run(["train", str(path), "--out", str(tmp_path / "out"), *words]) == 0
    assert ("isobatch: training: 128 of 256 samples" in capsys.readouterr().err) is (not words)
