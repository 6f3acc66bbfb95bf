"""The command line in this process: exit codes, JSON, frozen options, no traceback on bad input."""

import argparse
import json
import math
import re

import pytest
from tests.fabricated import GAPS, comparison
from tests.recipes import TEXT

from isobatch import cli, verify
from isobatch.cli.options import print_table
from isobatch.verify.largest import Largest

OPTIONS = {
    "doctor": "--json",
    "completion": "shell",
    "plan": "--batch-size --check --devices --diff --explain --format --goal --html --json --keep-batch --keys "
    "--length --like --markdown --micro --noise-scale --optimizer --overwrite --patch --plot --reference --rule --set "
    "--snippet --write recipe",
    "verify run": "--ablate --allow-failures --batch-size --budget --device --expect --json --margin --max-kappa "
    "--mend --metric --on --optimizer --out --seed-from --seeds --timeout --workers recipe",
    "verify split": "--batch-size --json --markdown --out --own-types --parts --processes --seed --timeout target",
    "verify characteristic": "--batch-size --device --json --on --out --sample --seeds --workers recipe",
    "train": "--adaptive --async-save --batch-size --device --every --json --log --noise --order-seed --out --patience "
    "--resume --seed --shard --tensorboard recipe",
    "study": "--budget --device --grid --json --on --out --quick --simulate-nodes --workers name",
    "noise measure": "--device --geometry --json --marks --out --samples --seed recipe",
    "noise branch": "--budget --checkpoint --device --factors --json --metric --on --out --seeds --smoothing --span "
    "--start --tolerance --workers recipe",
    "noise advise": "--bandwidth --critical --device --devices --extra --fits --gradient-bytes --json --latency --most "
    "--noise-scale --out --overlap --samples --throughput recipe",
    "noise fit": "--advise --batch --draws --goal --json --keep-outliers --level --out --round --size --unit --value "
    "table",
    "noise sweep": "--batches --budget --calibrate --device --goals --json --limit --lrs --metric --on --out --seeds "
    "--smoothing --workers recipe",
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TEXT)
    return str(file)


def commands(parser, prefix=""):
    """Every command that does something, by its words."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield prefix.strip(), parser
    for action in nested:
        for name, child in action.choices.items():
            yield from commands(child, f"{prefix} {name}")


def planted(monkeypatch, gaps=GAPS, **more):
    """Let `verify run` find invented curves instead of training."""
    calls = []

    def fake(recipe, batch_size, **asked):
        calls.append((batch_size, asked))
        asked["on_estimate"](90.0, 40)
        return comparison(gaps, **more)

    monkeypatch.setattr(verify, "run", fake)
    return calls


def test_the_options_are_frozen():
    found = {}
    for name, parser in commands(cli.parser()):
        words = [action.option_strings[-1] if action.option_strings else action.dest for action in parser._actions]
        found[name] = " ".join(sorted(word for word in words if word != "--help"))
    assert found == {name: " ".join(sorted(words.split())) for name, words in OPTIONS.items()}


@pytest.mark.parametrize("command", [[], *(name.split() for name in OPTIONS)], ids=" ".join)
def test_help_and_version(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.run([*command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: isobatch")
    assert command or "130 interrupted" in shown
    with pytest.raises(SystemExit, match="0"):
        cli.run(["--version"])
    assert capsys.readouterr().out.startswith("isobatch 0.")


def test_plan_prints_a_table_json_or_markdown(path, capsys):
    assert cli.run(["plan", path, "--batch-size", "128"]) == 0
    table = capsys.readouterr()
    assert "kappa = 16" in table.out
    assert table.err == ""
    assert cli.run(["plan", path, "--batch-size", "128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["optimizer"]["lr"] == 0.32
    assert cli.run(["plan", path, "--batch-size", "128", "--markdown"]) == 0
    assert "| optimizer.lr | 0.02 | 0.32 | kappa*eta |" in capsys.readouterr().out


def test_plan_hands_its_options_on(path, capsys):
    options = ["--micro", "16", "--devices", "4", "--json"]
    assert cli.run(["plan", path, "--batch-size", "128", *options]) == 0
    batch = json.loads(capsys.readouterr().out)["recipe"]["batch"]
    assert batch == {"size": 128, "unit": "samples", "micro": 16, "devices": 4}


BAD = [
    (["plan", "PATH"], "give the devices and what fits on them: --devices, --micro"),
    (["plan", "PATH", "--batch-size", "0"], "batch size=0 must be at least 1"),
    (["plan", "PATH", "--batch-size", "-8"], "batch size=-8 must be at least 1"),
    (["plan", "PATH", "--batch-size", "128", "--micro", "0"], "micro=0"),
    (["plan", "PATH", "--batch-size", "128", "--micro", "3"], "not a multiple"),
    (["plan", "PATH", "--batch-size", "128", "--noise-scale", "-1"], "noise scale=-1 must be in [0, inf]"),
    (["plan", "PATH", "--batch-size", "128", "--noise-scale", "nan"], "noise scale=nan must be finite"),
    (["plan", "PATH", "--batch-size", "128", "--optimizer", "invariant"], "'sgd' has no invariant form"),
    (["plan"], "plan needs a recipe file"),
    (["plan", "PATH", "--batch-size", "16", "--write", "PATH"], "exists; give another name, or overwrite it"),
    (["plan", "PATH", "--batch-size", "16", "--write", "new.yaml"], "a name that ends with .toml"),
    (["plan", "PATH", "--batch-size", "16", "--write", "nowhere/new.toml"], "No such file or directory; give another"),
    (["plan", "nowhere.toml", "--batch-size", "128"], "cannot read the recipe nowhere.toml"),
    (["verify", "run", "PATH", "--batch-size", "128", "--seeds", "7"], "seeds=7 must be at least 8"),
    (["verify", "run", "PATH", "--batch-size", "128", "--budget", "10"], "such as 10m"),
    (["verify", "run", "PATH", "--batch-size", "128", "--margin", "nan"], "margin=nan must be in (0, 0.25]"),
    (["verify", "run", "PATH", "--batch-size", "128", "--margin", "-1"], "margin=-1 must be in (0, 0.25]"),
    (["verify", "run", "PATH", "--batch-size", "128", "--ablate", "ema"], "ablate='ema' must be among lr-only"),
    (["verify", "run", "PATH", "--batch-size", "128", "--expect", "plan"], "must be arm=VERDICT pairs"),
    (["verify", "run", "PATH", "--batch-size", "128", "--expect", "plan=GOOD"], "must be arm=VERDICT pairs"),
    (["verify", "run", "PATH", "--batch-size", "128", "--workers", "0"], "workers=0 must be at least 1"),
    (["verify", "run", "PATH", "--batch-size", "4096"], "batch 4096 leaves 10 steps"),
    (["verify", "run", "PATH", "--batch-size", "128", "--out", "PATH/below"], "give another --out"),
    (["verify", "characteristic", "PATH", "--batch-size", "128", "--seeds", "39"], "seeds=39 must be at least 4 x"),
    (["study", "nothing"], "nothing"),
    (["study", "progressive", "--budget", "10"], "such as 10m"),
    (["study", "progressive", "--workers", "0"], "workers=0 must be at least 1"),
    (["plan", "PATH", "--batch-size", "64", "--goal", "speed", "--noise-scale", "0"], "noise scale=0 must be in (0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(words[2:]) or words[-1] for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_two(arguments, message, path, capsys):
    assert cli.run([word.replace("PATH", path) for word in arguments]) == 2
    shown = capsys.readouterr()
    [line] = shown.err.strip().splitlines()
    assert line.startswith("isobatch: ")
    assert message in line
    assert shown.out == ""


READ = {
    "plan FILE.toml --batch-size 64": "recipe",
    "plan FILE.yaml --batch-size 64": "recipe",
    "plan FILE.json --batch-size 64": "recipe",
    "plan FILE.py --batch-size 64": "recipe",
    "plan FILE.sh --batch-size 64": "recipe",
    "plan PATH.yaml --check --reference FILE.yaml": "recipe",
    "train FILE.toml --out OUT": "recipe",
    "verify run FILE.toml --batch-size 64": "recipe",
    "verify characteristic FILE.toml --batch-size 64": "recipe",
    "noise measure FILE.toml": "recipe",
    "noise branch FILE.toml --span 100": "recipe",
    "noise sweep FILE.toml --batches 4,8,16 --goals 0.5": "recipe",
    "noise advise FILE.toml --critical 64": "recipe",
    "noise advise PATH --critical 64 --throughput FILE.csv": "throughput",
    "noise fit FILE.csv": "table",
    "noise fit FILE.tsv": "table",
    "noise fit FILE.json": "table",
    "noise fit FILE.jsonl": "table",
}
WRONG = {
    "folder": None,
    "bytes": b"\xff\xfe\x00\x01",
    "empty": b"",
    "broken": b"[[{ : nothing at all\n= 3 (\n",
    "list": b"[1, 2, 3]\n",
    "table": b"batch,samples\n8,many\n16,2\n32,3\n",
}
WAY_OUT = re.compile(r"; (add|correct|give|leave|let|mend|name|save|say)\b| must (have|hold) ")


@pytest.mark.parametrize("words", READ)
def test_every_file_that_cannot_be_used_is_named_with_a_way_out(words, path, tmp_path, capsys):
    (tmp_path / "recipe.toml.yaml").write_text("a: 1\n")
    given = words.replace("PATH", path).replace("OUT", str(tmp_path / "out"))
    for kind, content in {"absent": None, **WRONG}.items():
        file = tmp_path / kind
        [name] = [word for word in given.split() if word.startswith("FILE")]
        file = file.with_suffix(name.removeprefix("FILE"))
        if kind == "folder":
            file.mkdir()
        elif content is not None:
            file.write_bytes(content)
        assert cli.run([str(file) if word == name else word for word in given.split()]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert file.name in line
        assert WAY_OUT.search(line), line
        if kind in ("absent", "folder", "bytes"):
            assert f"cannot read the {READ[words]} {file}: " in line


@pytest.mark.parametrize("words", [["--batch-size", "1.5"], ["--batch-size", "true"], ["--micro", "few"]])
def test_what_argparse_refuses_has_exit_code_two_as_well(words, path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.run(["plan", path, *words])
    assert "isobatch plan: error:" in capsys.readouterr().err


def test_the_folder_is_tried_before_anything_is_trained(path, monkeypatch, tmp_path):
    calls = planted(monkeypatch)
    (tmp_path / "file").write_text("")
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--out", str(tmp_path / "file")]) == 2
    assert calls == []


@pytest.mark.parametrize(("gap", "spread", "code", "verdict"), [
    (0.0, 0.002, 0, "SAME"), (0.02, 0.1, 3, "UNDECIDED"), (0.5, 0.002, 4, "DIFFERENT"),
    (math.nan, 0.002, 4, "DIFFERENT"),
])  # fmt: skip
def test_the_verdict_of_the_plan_is_the_exit_code(gap, spread, code, verdict, path, monkeypatch, capsys):
    planted(monkeypatch, {**GAPS, "plan": gap}, spread=spread)
    assert cli.run(["verify", "run", path, "--batch-size", "32"]) == code
    shown = capsys.readouterr()
    assert f"{verdict}: the plan is {verdict} (averaged model)" in shown.out
    assert "estimated 1.5 minutes for 40 runs" in shown.err
    assert "no report written" in shown.out


def test_json_alone_is_printed_and_files_are_written(path, monkeypatch, tmp_path, capsys):
    calls = planted(monkeypatch, {**GAPS, "plan": 0.5})
    out = tmp_path / "deep" / "out"
    words = ["--seeds", "9", "--ablate", "lr-only,unscaled", "--margin", "0.05", "--budget", "2h", "--workers", "3"]
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--json", "--out", str(out), *words]) == 4
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert data["verdicts"]["plan"] == data["verdict"] == "DIFFERENT"
    assert shown.err == ""
    stored = json.loads((out / "result.json").read_text())
    assert stored["verdicts"] == data["verdicts"]
    assert sorted(p.name for p in out.iterdir()) == ["overlay.png", "report.html", "result.json"]
    [(batch, asked)] = calls
    assert batch == 32
    assert (asked["seeds"], asked["margin"], asked["budget"], asked["workers"]) == (9, 0.05, 7200.0, 3)
    assert asked["ablate"] == ("lr-only", "unscaled")


@pytest.mark.parametrize(("words", "wanted"), [([], verify.ABLATIONS), (["--ablate", "none"], ())])
def test_all_or_no_ablations(words, wanted, path, monkeypatch):
    calls = planted(monkeypatch)
    cli.run(["verify", "run", path, "--batch-size", "32", *words])
    assert calls[0][1]["ablate"] == wanted


@pytest.mark.parametrize(("expect", "code", "words"), [
    ("plan=SAME,lr-only=DIFFERENT,ema-only=DIFFERENT,unscaled=DIFFERENT", 0, ""),
    ("plan=DIFFERENT", 4, "plan is SAME, expected DIFFERENT"),
    ("plan=SAME,unscaled=UNDECIDED", 4, "unscaled is DIFFERENT, expected UNDECIDED"),
    ("other=SAME", 2, "names an arm that is not trained; trained: plan, lr-only, ema-only, unscaled"),
])  # fmt: skip
def test_an_expected_pattern_decides_the_exit_code(expect, code, words, path, monkeypatch, capsys):
    planted(monkeypatch)
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--expect", expect]) == code
    assert words in capsys.readouterr().err


def test_the_largest_kappa_is_printed_and_stored(path, monkeypatch, capsys):
    planted(monkeypatch, {**GAPS, "plan": 0.5})
    tried = {2.0: verify.Verdict.SAME, 4.0: verify.Verdict.DIFFERENT}
    found = Largest(2.0, tried, {2.0: 0.01, 4.0: 0.5})
    monkeypatch.setattr("isobatch.verify.largest.largest_kappa", lambda *_, **__: found)
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--max-kappa"]) == 4
    assert "largest kappa that is SAME: 2 (to a factor of 2; tried 2: SAME, 4: DIFFERENT)" in capsys.readouterr().out
    cli.run(["verify", "run", path, "--batch-size", "32", "--max-kappa", "--json"])
    assert json.loads(capsys.readouterr().out)["max_kappa"]["tried"]["4"] == {"verdict": "DIFFERENT", "worst": 0.5}


def test_an_interrupt_is_130_and_leaves_no_file(path, monkeypatch, tmp_path, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", interrupt)
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_an_internal_error_is_not_disguised(path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(verify, "run", broken)
    with pytest.raises(ZeroDivisionError, match="inside"):
        cli.run(["verify", "run", path, "--batch-size", "32"])


def test_a_narrow_terminal_still_shows_every_confidence(path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["plan", path, "--batch-size", "128"]) == 0
    table = capsys.readouterr().out
    assert "confidence" in table
    assert "because" not in table
    assert table.count("derived") >= 2
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(("command", "when"), [
    (["train", "--out", "OUT"], "to make its run"), (["verify", "run", "--batch-size", "32"], r"in arm \w+, seed \d"),
])  # fmt: skip
def test_a_task_of_ones_own_that_fails_is_named_and_its_traceback_can_be_had(
    command, when, tmp_path, monkeypatch, capsys
):
    (tmp_path / "broken_task.py").write_text("def make(settings, seed):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "recipe.toml"
    file.write_text(TEXT.replace('task = "digits"', 'task = "broken_task:make"'))
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    words.insert(2 if words[0] == "verify" else 1, str(file))
    assert cli.run(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"task='broken_task:make' failed {when}: ZeroDivisionError", error)
    assert "broken_task.py:2, in make" in error
    monkeypatch.setenv("ISOBATCH_TRACEBACK", "1")
    assert cli.run(words) == 2
    assert "return 1 / 0" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "wanted"), [([], None), (["--seeds", "20"], 20), (["--seeds", "10..40"], (10, 40))])
def test_seeds_are_a_number_or_a_range_of_looks(words, wanted, path, monkeypatch):
    calls = planted(monkeypatch)
    cli.run(["verify", "run", path, "--batch-size", "32", *words, "--seed-from", "5", "--device", "cpu,bf16"])
    assert calls[0][1]["seeds"] == wanted
    assert (calls[0][1]["seed_from"], calls[0][1]["device"]) == (5, "cpu,bf16")


@pytest.mark.parametrize("seeds", ["ten", "10..", "..40", "10-40", ""])
def test_seeds_that_are_neither_are_refused(seeds, path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.run(["verify", "run", path, "--batch-size", "32", "--seeds", seeds])
    assert "must be a number such as 20, or a range such as 10..40" in capsys.readouterr().err


def test_where_runs_are_kept_and_which_seeds_were_seen_is_said_first(path, monkeypatch, tmp_path, capsys):
    def fake(recipe, batch_size, **asked):
        if asked["on_folder"] is not None:
            asked["on_folder"](tmp_path, {"shared": 8, "verdict": "UNDECIDED"})
        return comparison()

    monkeypatch.setattr(verify, "run", fake)
    assert cli.run(["verify", "run", path, "--batch-size", "32"]) == 0
    said = capsys.readouterr().err
    assert f"finished runs are kept in {tmp_path}; the same command goes on from there" in said
    assert "8 of these seeds were judged before (UNDECIDED)" in said
    assert cli.run(["verify", "run", path, "--batch-size", "32", "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [200, 80, 40])
def test_a_verdict_stays_whole_in_a_narrow_terminal(columns, path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    planted(monkeypatch, {**GAPS, "plan": 0.02}, spread=0.1)
    cli.run(["verify", "run", path, "--batch-size", "32"])
    shown = capsys.readouterr().out
    table = shown.partition("UNDECIDED: the plan")[0]
    assert table.count("UNDECIDED") + table.count("SAME") + table.count("DIFFERENT") == 8
    for arm in ("plan", "lr-only", "ema-only", "unscaled"):
        assert arm in table
    assert max(map(len, table.splitlines())) <= columns


@pytest.mark.parametrize("columns", [200, 80, 40])
def test_words_and_numbers_of_a_table_stay_whole(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [
        ["samples", "noise scale", "interval", "verdict", "T/T_peak", "what it is"],
        ["1,234,567", "0.0000827", "at least 1,530", "not identified", "5.11e-08", "a sentence of some length " * 3],
        ["0", "91.2", "80.1 to 103", "identified", "1", ""],
    ]
    print_table("readings", rows)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    for word in ("1,234,567", "0.0000827", "5.11e-08", "not identified", "103", "1,530"):
        assert word in shown
    assert ("│" in shown) == (columns > 40)
    if columns > 40:
        assert len({len(line) for line in shown.splitlines()[1:]}) == 1  # no border is cut
