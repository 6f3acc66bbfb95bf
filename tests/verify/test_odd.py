"""Tasks, folders and machines that do what they should not: a verdict or a refusal with a way out, no traceback."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.recipes import recipe

from isobatch.cli import run as command
from isobatch.errors import InputError
from isobatch.tasks import LOSS, Metric
from isobatch.tasks.isolation import alone
from isobatch.tasks.sources import source_of
from isobatch.verify import conclude, judge, run, to_dict
from isobatch.verify.advice import next_actions
from isobatch.verify.design import design_of
from isobatch.verify.largest import largest_kappa
from isobatch.verify.mending import Mended
from isobatch.verify.store import cache, held_looks, identity, judged_before, note_judged, open_folder, place
from isobatch.verify.workers import Curve, Job, probe, read_curve, train_curve

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOBATCH_CACHE", str(tmp_path / "cache"))


def odd(trick="", **parts):
    made = {
        "task": "tests.verify.odd_tasks:make",
        "data_size": 128,
        "batch": {"size": 4},
        "optimizer": {"lr": 0.02},
        "schedule": {"length": "3 epochs", "warmup": "0 samples"},
        "ema": {"decay": 0.9},
        "options": {"trick": trick},
    }
    return recipe(**{**made, **parts})


def judged(trick, **more):
    return run(odd(trick), 16, **{"seeds": 8, "ablate": ("unscaled",), "workers": 1, **more})


@pytest.mark.parametrize(("trick", "message"), [
    ("none", "metric 'loss' is NoneType, None; it must be one number"),
    ("nested", "metric 'loss' is dict, .*must be one number"),
    ("empty", r"arm reference, seed 0: the task measures \{'raw': \[\].* after 192 samples"),
    ("list", "metrics are list; they must be a dict"),
    ("vanishes", "must be the same ones every time"),
    ("appears", "must be the same ones every time"),
    ("numbered", "names a metric 0; names must be text"),
    ("another at the large batch", "arm plan, seed 0 does not measure 'loss' but nll"),
    ("declares a word", "declared=.*must be a dict from the names of its metrics to Metric objects"),
    ("declares a list", "must be a dict from the names"),
    ("declares nothing", "must be a dict from the names"),
    ("exits", "failed in arm reference, seed 2: SystemExit: no data here"),
    ("exits with 0", "failed in arm reference, seed 2: SystemExit: 0"),
])  # fmt: skip
def test_what_no_verdict_can_use_is_refused_by_name(trick, message):
    with pytest.raises(InputError, match=message):
        judged(trick)


@pytest.mark.parametrize(("trick", "message"), [("dies", "ended from outside"), ("exits with 0", "SystemExit: 0")])
def test_a_process_that_ends_is_no_verdict(trick, message):
    with pytest.raises(InputError, match=message):
        judged(trick, workers=2)


@pytest.mark.parametrize(("trick", "why"), [
    ("overflows at the large batch", "OverflowError with 192 samples seen"),
    ("other is nan at the large batch", "aux of the raw model is nan"),
    ("explodes at the large batch", r"loss of the average model is .*e\+"),
])  # fmt: skip
def test_a_run_that_left_the_finite_or_exploded_anywhere_has_failed(trick, why, tmp_path):
    found = judged(trick, out=tmp_path / "out")
    assert str(found.verdict) == "DIFFERENT"
    assert len(found.table["plan"]["average"].failures) == 8
    assert why.split(".*")[0] in found.table["plan"]["average"].failures[0].why
    assert to_dict(found)["arms"]["plan"]["average"]["worst"] is None


@pytest.mark.parametrize("trick", ["scalars", "aux is never a number", "threads", "facts", "draws"])
def test_what_does_no_harm_changes_no_value(trick):
    plain, other = (train_curve(Job("plan", odd(name), 1, 0, (0, 64, 128))) for name in ("", trick))
    assert [s["loss"] for s in other.values.values()] == [s["loss"] for s in plain.values.values()]
    assert all(isinstance(value, str) for item in other.facts.items() for value in item)


@pytest.mark.parametrize("trick", ["", "dtype", "deterministic", "one thread", "draws"])
def test_curves_are_the_same_in_this_process_and_in_others_whatever_a_task_leaves_behind(trick):
    made = odd(trick, options={"trick": trick, "width": 300})
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    one, other = (
        run(made, 16, seeds=8, ablate=(), workers=workers, seed_from=0, margin=margin)
        for workers, margin in ((1, 0.03), (2, 0.04))
    )
    for arm, curves in one.curves.items():
        assert [c.values for c in curves] == [c.values for c in other.curves[arm]]
    assert before == (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())


def test_a_run_has_one_thread_and_its_caller_keeps_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with alone(0, "cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stdout_is_json_alone_whatever_a_task_prints(workers, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(
        'task = "tests.verify.odd_tasks:make"\ndata_size = 128\n[batch]\nsize = 4\n'
        '[optimizer]\nname = "sgd"\nlr = 0.02\n'
        '[schedule]\nlength = "3 epochs"\n[ema]\ndecay = 0.9\n[options]\ntrick = "prints"\n'
    )
    words = [sys.executable, "-m", "isobatch", "verify", "run", str(file), "--batch-size", "16", "--seeds", "8"]
    words += ["--ablate", "none", "--json", "--workers", workers]
    made = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert json.loads(made.stdout)["verdict"] == "UNDECIDED"
    assert made.returncode == 3
    assert "a task that talks" in made.stderr


def test_odd_names_reach_every_page(tmp_path):
    out = tmp_path / "out"
    found = judged("dollars", out=out)
    from isobatch.verify.page import write_report

    write_report(out, to_dict(found))
    assert "&lt;b&gt;" in (out / "report.html").read_text()


def test_a_metric_that_stands_still_proves_nothing():
    found = judged("still but for noise")
    assert str(found.verdict) == "UNDECIDED"
    assert "could not have told" in found.conclusion.headline
    assert any("a scale that fits" in said for said in next_actions(found))


def still(move, *, spread=1e-3, seeds=8):
    """A reference that moves by a number of margins, a plan like it, and a control."""
    rng = torch.Generator().manual_seed(0)
    level = torch.linspace(0, 1, 21).numpy() * move * math.log(1.05)

    def runs(arm, stopped=""):
        noise = spread * torch.randn(seeds, 21, generator=rng).numpy()
        made = [[float(v) for v in 2 * math.e ** (level + row)] for row in noise]
        values = [{"raw": {"loss": [math.nan if stopped and i else v for i, v in enumerate(row)]}} for row in made]
        return [Curve(arm, seed, v, 10, 0.1, stopped) for seed, v in enumerate(values)]

    return {
        "reference": runs("reference"),
        "plan": runs("plan"),
        "unscaled": runs("unscaled", "stopped"),
    }


@pytest.mark.parametrize(("move", "wanted"), [(0.0, "UNDECIDED"), (1.5, "UNDECIDED"), (2.5, "SAME"), (-2.5, "SAME")])
def test_a_control_that_died_does_not_make_a_metric_that_cannot_move_count(move, wanted):
    table = judge(still(move), tuple(range(2, 21, 2)), {"loss": LOSS})
    assert str(table["unscaled"]["raw"].verdict) == "DIFFERENT"
    said = conclude(table, "raw")
    assert str(said.verdict) == wanted
    assert ("the reference itself moves by" in said.headline) == (wanted != "SAME")


def test_where_nothing_is_different_no_kappa_and_no_mended_recipe_is_called_the_same():
    found = judged("still but for noise")
    plan = found.table["plan"]["average"]
    assert str(plan.verdict) == "SAME"
    assert Mended({}, {"hold": plan}).best == "hold"
    assert Mended({}, {"hold": plan}, told=False).best is None
    assert largest_kappa(found, workers=1).kappa == 1


def test_a_slow_task_counts_in_the_estimate(monkeypatch):
    from isobatch.verify import workers
    from isobatch.verify.campaign import Campaign

    jobs = design_of(odd(), 16, 8).jobs(range(8))
    known = probe(jobs[0])
    slow = workers.Probe(known.loading, 5.0, known.step, known.evaluation, known.declared, known.first)
    kinds = {(job.recipe.batch.size, job.recipe.optimizer.name): slow for job in jobs}
    assert Campaign(workers=1).seconds(kinds, jobs) > 5 * len(jobs)
    assert Campaign(workers=1).seconds(kinds, []) == 0


# folders


def which(**more):
    from isobatch.verify.design import Criteria

    design = design_of(odd(), 16, more.pop("seeds", 8))
    rule = Criteria({"loss": LOSS}, "loss", more.pop("margins", {}), 0, design.marks, design.stops, 0.1)
    return identity(design, rule, None, None)


@pytest.mark.parametrize("held", ["{half", "[1, 2]", '"text"', "null", "{}", '{"recipe": 3}'])
def test_a_damaged_mark_is_never_taken_for_this_comparison(held, tmp_path):
    (tmp_path / "comparison.json").write_text(held)
    with pytest.raises(InputError, match="give another --out"):
        open_folder(tmp_path, which(), own=False)
    assert (tmp_path / "comparison.json").read_text() == held
    own = open_folder(tmp_path, which(), own=True)
    assert json.loads((own / "comparison.json").read_text()) == which().values


@pytest.mark.parametrize("name", ["result.json", "report.html", "overlay.png", "mended.toml"])
@pytest.mark.parametrize("content", ["", "[1]", "{half", "somebody's"])
def test_nothing_of_somebody_else_is_overwritten(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"holds another result \\({name}\\)"):
        open_folder(tmp_path, which(), own=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def bad_curves():
    good = {"arm": "plan", "seed": 0, "values": {"raw": {"loss": [1.0, 2.0]}}, "steps": 3, "seconds": 0.1}
    yield from (None, 3, [], {}, {"arm": "plan"}, {**good, "more": 1})
    for values in (None, [], {}, {"raw": None}, {"raw": {"loss": 1.0}}, {"raw": {"loss": ["1", 2.0]}},
                   {"raw": {"loss": [None, 1.0]}}, {"raw": {"loss": [1.0]}}, {"raw": {"loss": [1.0, 2.0, 3.0]}},
                   {"raw": {"loss": [1.0, 2.0]}, "average": {"loss": [1.0]}},
                   {"raw": {"loss": [True, False]}}):  # fmt: skip
        yield {**good, "values": values}
    for name, value in (("stopped", None), ("facts", None), ("steps", "3"), ("seconds", None)):
        yield {**good, name: value}


@pytest.mark.parametrize("values", list(bad_curves()))
def test_values_that_no_run_leaves_behind_are_no_curve(values):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        read_curve(values, 2)


def test_a_kept_run_that_no_run_leaves_behind_is_trained_again():
    found = judged("", ablate=())
    cells = sorted(found.folder.glob("cells/*"))[:10]
    kept = [json.loads(cell.read_text())["values"] for cell in cells]
    for cell, values in zip(cells, list(bad_curves())[-10:], strict=True):
        cell.write_text(json.dumps(values))
    again = judged("", ablate=())
    assert [json.loads(cell.read_text())["values"] for cell in cells] == kept
    assert again.table["plan"]["average"].worst == found.table["plan"]["average"].worst


def test_a_stopped_run_may_be_without_values():
    assert read_curve(
        {"arm": "a", "seed": 0, "values": {}, "steps": 0, "seconds": 0.0, "stopped": "at once"}, 2
    ).stopped


@pytest.mark.parametrize(
    "notes", ["{half", "[1]", '{"a": 1}', "3", '[{"seed_from": "0", "seeds": 8, "verdict": "SAME"}]']
)
def test_damaged_notes_of_judged_seeds_are_forgotten(notes):
    note_judged(which(), 8, "SAME")
    ledger = next(cache().rglob("judged.json"))
    ledger.write_text(notes)
    assert judged_before(which(seeds=9)) is None
    note_judged(which(), 8, "SAME")
    assert judged_before(which(seeds=9))["shared"] == 8


@pytest.mark.parametrize(("more", "told"), [({}, False), ({"seeds": 12}, True), ({"margins": {"average": 0.05}}, True)])
def test_seeds_judged_by_another_margin_are_named(more, told):
    note_judged(which(), 8, "UNDECIDED")
    assert (judged_before(which(**more)) is not None) == told


@pytest.mark.parametrize(("variables", "wanted"), [
    ({"XDG_CACHE_HOME": "/x"}, "/x/isobatch"),
    ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/isobatch"),
    ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/isobatch"),
    ({"HOME": "/h"}, "/h/.cache/isobatch"),
    ({"HOME": "/h", "ISOBATCH_CACHE": "/c"}, "/c"),
])  # fmt: skip
def test_where_the_cache_is(variables, wanted, monkeypatch):
    for name in ("ISOBATCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache()) == wanted


def test_without_a_home_out_is_enough(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ISOBATCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="set ISOBATCH_CACHE to a folder, or give --out"):
        judged("")
    assert judged("", out=tmp_path / "out").folder == tmp_path / "out"


def test_a_full_disk_costs_no_verdict(monkeypatch, tmp_path, capsys):
    file = tmp_path / "r.toml"
    file.write_text((Path(__file__).parent / "cases" / "a8.toml").read_text() + 'declare = "nats"\n')

    def full(*_):
        raise InputError("cannot write report.html: No space left on device; give another --out")

    monkeypatch.setattr("isobatch.verify.page.write_report", full)
    words = ["verify", "run", str(file), "--batch-size", "32", "--seeds", "8", "--workers", "1", "--ablate", "unscaled"]
    assert command([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "the plan is" in said.out
    assert "No space left" in said.err


# code


@pytest.mark.parametrize(("edited", "differs"), [
    ("task.py", True), ("beside.py", True), ("parts/__init__.py", True), ("parts/deep.py", True), ("other.py", False),
])  # fmt: skip
def test_an_edited_task_is_another_one_with_all_that_it_imports_beside_it(edited, differs, tmp_path, monkeypatch):
    files = {
        "task.py": "import math\nimport beside\nfrom parts import deep\n",
        "beside.py": "x = 1\n",
        "parts/__init__.py": "",
        "parts/deep.py": "from . import missing\nfrom .. import far\n",
        "other.py": "x = 1\n",
    }
    (tmp_path / "parts").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = odd(task="task:make")
    before = source_of(made)
    (tmp_path / edited).write_text(files[edited] + "y = 2\n")
    assert before
    assert (source_of(made) != before) == differs


@pytest.mark.parametrize("task", ["digits", "isobatch.tasks.digits:make", "nowhere_at_all:make", "no such task", None])
def test_shipped_tasks_and_missing_ones_have_no_code_of_their_own(task):
    assert not source_of(odd(task=task))


# arguments


@pytest.mark.parametrize(("more", "message"), [
    ({"seed_from": 10**30}, "seed_from=1000000000000000000000000000000 must be at most 4294967287"),
    ({"seed_from": 2**32}, "must be at most 4294967287"),
    ({"budget": math.nan}, "budget=nan"),
    ({"extra": {"plan": None}}, "extra='plan' is the name of an arm that is trained anyway"),
    ({"extra": {"reference": None}}, "extra='reference' is the name"),
])  # fmt: skip
def test_arguments_that_would_end_in_a_traceback_are_refused(more, message):
    with pytest.raises(InputError, match=message):
        judged("", **more)


def test_the_last_seeds_that_there_are_can_be_used():
    assert judged("", seed_from=2**32 - 1 - 8, ablate=()).seeds[-1] == 2**32 - 2


@pytest.mark.parametrize("expect", ["plan=SAME,plan=DIFFERENT", "plan=SAME,plan=SAME"])
def test_one_arm_has_one_expected_verdict(expect, tmp_path, capsys):
    case = Path(__file__).parent / "cases" / "a8.toml"
    assert command(["verify", "run", str(case), "--batch-size", "32", "--expect", expect]) == 2
    assert "names plan twice" in capsys.readouterr().err


def test_a_budget_that_chose_the_seeds_chooses_them_once(monkeypatch, tmp_path):
    from isobatch.verify.campaign import Campaign

    asked = []

    def seconds(self, probes, jobs):
        asked.append(len(jobs))
        return len(jobs) * (1.0 if len(asked) < 4 else 1.3)

    monkeypatch.setattr(Campaign, "seconds", seconds)
    for out in (None, tmp_path / "out"):
        asked.clear()
        first = judged("", seeds=None, ablate=(), budget=2 * 10.5, out=out)
        second = judged("", seeds=None, ablate=(), budget=2 * 10.5, out=out)
        assert first.seeds == second.seeds == tuple(range(10))
        assert first.folder == second.folder
        assert asked[-1] == 0  # all of them are kept: nothing is left to pay for


def test_looks_are_taken_from_a_folder_of_the_same_comparison_only(tmp_path):
    open_folder(tmp_path, which(seeds=12), own=False)
    assert held_looks(tmp_path, which(seeds=20)) == (12,)
    assert held_looks(tmp_path, which(margins={"raw": 0.02})) is None
    assert place(None, which(seeds=12), chosen=True) == place(None, which(seeds=20), chosen=True)
    assert place(None, which(seeds=12)) != place(None, which(seeds=20))
    assert place(tmp_path, which()) == tmp_path


@pytest.mark.parametrize("values", [[0.2, 0.9, 1.0], [0.2, 0.9, 1.0000001]])
def test_a_fraction_called_percent_is_refused_before_the_other_arms(values):
    from isobatch.verify.workers import check_percent

    curve = Curve("reference", 0, {"raw": {"accuracy": values}}, 1, 0.1)
    with pytest.raises(InputError, match='declare unit="fraction"'):
        check_percent([curve], Metric("difference", better="higher", unit="percent"), "accuracy")


def test_training_threads_of_the_caller_do_no_harm():
    code = (
        "import torch; torch.set_num_threads(2); a = torch.randn(400, 400, requires_grad=True)\n"
        "(a @ a).sum().backward()\n"
        "from tests.verify.test_odd import odd\nfrom isobatch.verify import run\n"
        "print(run(odd(), 16, seeds=8, ablate=(), workers=2).verdict)"
    )
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    made = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)
    assert made.stdout.split() == ["UNDECIDED"], made.stderr
