"""The check as a function and a command: verdicts, exit codes, what cannot be checked, several processes."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import escape
from tests.split import targets
from torch import distributed as dist

from isobatch import cli, testing, verify
from isobatch.errors import InputError
from isobatch.installed import EXTRAS
from isobatch.split import SplitReport, split
from isobatch.split.run import target

HERE = str(Path(__file__).with_name("targets.py"))


def test_a_right_trainer_is_invariant_and_a_wrong_one_is_named():
    assert verify.split(targets.good).invariant
    report = verify.split(targets.bad, parts=4)
    assert [cause.name for cause in report.causes] == ["missing-division", "mean-of-means"]
    assert report["gradient at the step"].ratio == pytest.approx(4)
    assert report["update"].verdict == "DIFFERENT"
    assert SplitReport.from_dict(json.loads(json.dumps(report.to_dict()))).to_dict() == report.to_dict()


def test_markdown_holds_the_table_the_cause_and_the_advice():
    text = split(targets.bad).to_markdown()
    assert "| gradient at the step | DIFFERENT | x 4 |" in text
    assert "**missing division by accumulation** (measured)" in text
    assert "divide each micro-batch's mean loss" in text


def test_the_helper_of_test_suites():
    assert testing.assert_batch_invariant(targets.good, 2).invariant
    with pytest.raises(AssertionError, match="missing division by accumulation"):
        testing.assert_batch_invariant(targets.bad, 2)
    assert testing.assert_batch_invariant(targets.bad, 2, allow=["missing-division", "mean-of-means"]).exit_code == 4


def test_a_trainer_that_never_splits_is_not_comparable():
    report = split(targets.never_splits)
    assert report.exit_code == 3
    assert "does update use `parts`" in report["update"].reason
    with pytest.raises(AssertionError, match="not comparable"):
        testing.assert_batch_invariant(targets.never_splits)


def test_non_determinism_is_said_and_nothing_is_accused():
    report = split(targets.not_deterministic)
    assert [cause.name for cause in report.causes] == ["non-determinism"]
    assert report.exit_code == 3


UNABLE = [
    ("raises", "make raised RuntimeError: no data here"),
    ("update_raises", "raised ValueError: a shape that does not fit"),
    ("other_data", "make gives other samples each time"),
    ("needs_gpu", "needs a GPU"),
    ("too_large", "out of memory"),
    ("few_rows", "5 samples are less than a batch of 8"),
    ("nothing", "make returned int"),
]


@pytest.mark.parametrize(("name", "said"), UNABLE)
def test_what_cannot_be_checked_is_bad_input(name, said):
    with pytest.raises(InputError, match=said):
        split(getattr(targets, name))


@pytest.mark.parametrize(("name", "said"), [("hangs", "the check hung"), ("killed", "killed by signal 9")])
def test_what_hangs_or_is_killed_leaves_no_process(name, said, capsys, monkeypatch):
    monkeypatch.setattr("isobatch.executors.progress._SILENT", -1.0)  # a log is told every second
    monkeypatch.setattr("isobatch.cli.verify_split._PROMPT", 0.0)
    assert cli.run(["verify", "split", f"{HERE}:{name}", "--timeout", "2"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert ("isobatch: checking: 1 s, at most 2" in error) is (name == "hangs")
    assert not multiprocessing.active_children()


def test_an_untidy_trainer_leaves_nothing_and_breaks_no_json(capfd):
    assert cli.run(["verify", "split", f"{HERE}:untidy", "--parts", "2", "--json", "--timeout", "60"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["exit_code"] == 0
    for words in ("by Python", "past what stands for stdout", "past Python"):
        assert words in shown.err
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if _read(one) == b"sleep\x0098765\x00"]


def _read(file):
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 4), ("raises", 2), ("never_splits", 3)])
def test_the_command_leaves_with_the_verdict(name, code, capsys, tmp_path):
    assert cli.run(["verify", "split", f"{HERE}:{name}", "--json", "--out", str(tmp_path / "out")]) == code
    shown = capsys.readouterr()
    if code == 2:
        assert "no data here" in shown.err
        return
    data = json.loads(shown.out)
    assert (data["exit_code"], data["invariant"]) == (code, code == 0)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["headline"] == data["headline"]
    assert (tmp_path / "out" / "report.md").read_text().startswith("**")
    page = (tmp_path / "out" / "report.html").read_text()
    badge = {0: "SAME", 3: "NOT COMPARABLE", 4: "DIFFERENT"}[code]
    assert f">{badge}</span>" in page
    assert str(escape(data["headline"])) in page


def test_without_the_extra_for_pages_the_other_files_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXTRAS, "verify", ("no_such_module",))
    assert cli.run(["verify", "split", f"{HERE}:bad", "--parts", "2", "--out", str(tmp_path / "out")]) == 4
    assert 'no report.html: not installed: no_such_module; pip install "isobatch[verify]"' in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.md", "result.json"]


def test_the_command_prints_for_people(capsys):
    assert cli.run(["verify", "split", f"{HERE}:bad", "--parts", "2"]) == 4
    assert "missing division by accumulation (measured)" in capsys.readouterr().out
    assert cli.run(["verify", "split", f"{HERE}:bad", "--parts", "2", "--markdown"]) == 4
    assert capsys.readouterr().out.startswith("**missing division")


@pytest.mark.parametrize("words", [
    [f"{HERE}:absent"], ["nowhere.py:make"], ["no.such.module:make"], [f"{HERE}:good", "--parts", "3"],
    [f"{HERE}:good", "--parts", "1"], [f"{HERE}:good", "--batch-size", "2"], [f"{HERE}:good", "--processes", "3"],
    [f"{HERE}:good", "--timeout", "0"], [f"{HERE}:good", "--json", "--markdown"],
    [f"{HERE}:good", "--timeout", "inf"], [f"{HERE}:good", "--seed", "-1"], [f"{HERE}:good", "--seed", f"{2**64}"],
])  # fmt: skip
def test_bad_words_are_bad_input(words, capsys):
    assert cli.run(["verify", "split", *words]) == 2
    assert capsys.readouterr().err.startswith("isobatch: ")


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("RANK", "")])
def test_a_world_that_is_no_number_is_bad_input(name, value, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    assert cli.run(["verify", "split", f"{HERE}:good"]) == 2
    assert capsys.readouterr().err.startswith("isobatch: ")


def test_a_layout_that_fails_is_not_comparable():
    report = split(targets.one_rank_fails, 2, processes=2, timeout=100)
    assert report.exit_code == 3
    for name in ("2 processes x 4", "2 processes x 2 x 2"):
        assert "rank one is sick" in report[name].reason


@pytest.mark.parametrize(("name", "causes"), [
    ("data_parallel", []), ("sharded", []), ("data_parallel_sums", ["sum-instead-of-mean"]),
    ("never_synchronised_in_parts", ["processes-apart"]),
    pytest.param("ranks_apart", ["processes-apart"], marks=pytest.mark.slow),
])  # fmt: skip
def test_on_two_processes(name, causes):
    report = split(getattr(targets, name), 2, processes=2, timeout=100)
    assert [cause.name for cause in report.causes] == causes, str(report)
    assert {"2 processes x 4", "2 processes x 2 x 2"} <= {*report.layouts}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "causes"), [
    ("data_parallel", []), ("sharded", []), ("ranks_apart", ["processes-apart"]),
    ("waits_for_all_that_were_launched", []),
])  # fmt: skip
def test_under_torchrun(name, causes):
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "isobatch", "verify", "split"]
    done = subprocess.run(
        [sys.executable, "-m", *words, f"{HERE}:{name}", "--parts", "2", "--timeout", "200", "--json"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [cause["name"] for cause in found["causes"]] == causes
    assert "2 processes x 4" in found["layouts"]


def test_an_open_process_group_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match="a process group is open here"):
            split(targets.good)
    finally:
        dist.destroy_process_group()


def test_a_rank_that_hangs_ends_all():
    with pytest.raises(InputError, match="the check hung"):
        split(targets.one_rank_hangs, 2, processes=2, timeout=6)
    assert not multiprocessing.active_children()
    assert [pid for pid in Path("/proc").glob("[0-9]*") if _session_of_a_check(pid)] == []


def _session_of_a_check(process):
    """Whether a process was forked by a check of this one: same command, another session, gone from its parent."""
    try:
        words = (process / "stat").read_text().rsplit(")", 1)[1].split()
        same = (process / "cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except (OSError, IndexError):
        return False
    return same and words[0] != "Z" and process.name != str(os.getpid()) and int(words[3]) != os.getsid(0)


def test_this_packages_own_loop_is_checked_by_a_task_or_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "quadratic"\n[batch]\nsize = 8\n[optimizer]\nname = "sgd"\nlr = 0.1\nmomentum = 0.9\nclip = 0.5\n'
        '[schedule]\nlength = "800 samples"\nwarmup = "80 samples"\n[ema]\ndecay = 0.9\n'
    )
    for name in ("quadratic", str(recipe)):
        report = split(target(name), 2)
        assert report.exit_code == 0, str(report)
        assert {"average", "learning rate", "optimizer state"} <= {one.name for one in report.components}
