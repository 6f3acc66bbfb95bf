"""Whole comparisons of small tasks at the edge: each with its right outcome, none SAME by mistake or a traceback."""

from pathlib import Path

import pytest

from isobatch import Recipe
from isobatch.cli import run as command
from isobatch.errors import InputError
from isobatch.verify import run, to_dict
from isobatch.verify.advice import next_actions
from isobatch.verify.largest import largest_kappa
from isobatch.verify.workers import Job, train_curve

CASES = Path(__file__).parent / "cases"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOBATCH_CACHE", str(tmp_path / "cache"))


def case(file, length=None, **options):
    made = Recipe.load(CASES / f"{file}.toml")
    parts = {"options": {**made.options, **options}}
    if length:
        parts["schedule"] = made.schedule.model_copy(update={"length": length})
    return made.model_copy(update=parts)


def judged(recipe, batch, **more):
    return run(recipe, batch, **{"seeds": 8, "ablate": ("unscaled",), "workers": 1, **more})


@pytest.mark.parametrize("name", ["off", "a1", "a3", "a4", "a5b", "a6", "a7", "a8", "a8z"])
def test_a_task_that_does_not_declare_its_metric_is_refused_with_the_lines_to_write(name):
    recipe = case(name, declare="none")
    with pytest.raises(
        InputError, match=r"does not declare its metric '\w+'.*write in it:\n.*import Metric\n.*declared=\{"
    ):
        judged(recipe, 32)


def test_a_loss_of_ten_times_its_start_is_different_and_every_failure_is_named():
    found = judged(case("off", "3 epochs"), 128)
    assert str(found.verdict) == "DIFFERENT"
    assert "plan failed in 8 of 8 seeds (0, 1, 2, 3, 4, 5, 6, 7)" in found.conclusion.headline
    assert all(f.why for f in found.table["plan"]["average"].failures)
    assert to_dict(found)["arms"]["plan"]["average"]["worst"] is None


@pytest.mark.slow
def test_a_plan_that_leaves_the_finite_is_different():
    found = judged(case("a1", "8 epochs"), 128)
    assert str(found.verdict) == "DIFFERENT"
    assert "loss is inf" in found.table["plan"]["average"].failures[0].why


@pytest.mark.parametrize(("name", "unit"), [("a3", "fraction"), ("a6", "percent")])
def test_points_lost_are_seen_in_percent_and_as_a_fraction(name, unit):
    found = judged(case(name), 32)
    assert str(found.table["unscaled"]["average"].verdict) == "DIFFERENT"
    assert str(found.verdict) != "SAME"
    assert found.margins["average"] == {"fraction": 0.005, "percent": 0.5}[unit]


@pytest.mark.parametrize(("name", "declare", "message"), [
    ("a3", "percent", 'never exceeds .* declare unit="fraction"'),
    ("a6", "fraction", "outside 0 to 1 of unit='fraction'"),
    ("a3", "ratio", None),
])  # fmt: skip
def test_a_wrong_declaration_is_refused(name, declare, message):
    recipe = case(name, declare=declare)
    if message is None:
        judged(recipe, 32)  # positive values may be compared as ratios: no fault
        return
    with pytest.raises(InputError, match=message):
        judged(recipe, 32)


def test_the_name_of_a_metric_decides_nothing():
    one, other = (judged(case("a4", "4 epochs", name=name), 32) for name in ("mse", "loss"))
    assert one.verdicts == other.verdicts
    assert one.table["plan"]["average"].worst == other.table["plan"]["average"].worst


def test_where_no_control_differs_the_test_could_not_have_told():
    found = judged(case("a5b"), 32, ablate=("lr-only",))
    assert str(found.table["plan"]["average"].verdict) == "SAME"
    assert str(found.verdict) == "UNDECIDED"
    assert "could not have told" in found.conclusion.headline
    assert any("make a control differ" in said for said in next_actions(found))


@pytest.mark.parametrize(("at", "allowed", "wanted"), [(32, 0, "UNDECIDED"), (32, 1, "SAME"), (1000, 0, "SAME")])
def test_one_seed_that_dies_is_a_veto(at, allowed, wanted):
    found = judged(case("a7", "2 epochs", at_batch=at), 32, allow_failures=allowed)
    assert str(found.verdict) == wanted
    assert ("plan failed in 1 of 8 seeds (3)" in found.conclusion.headline) == (at == 32)


def test_a_reference_seed_that_dies_is_told_of_the_recipe_before_anything_else_is_trained():
    trained = []
    with pytest.raises(
        InputError, match=r"the recipe itself fails in 1 of 8 seeds \(seed 3: stopped at step 11"
    ) as told:
        judged(case("a7", "2 epochs", at_batch=0), 32, on_done=trained.append)
    assert {curve.arm for curve in trained} == {"reference"}
    assert "the finished runs are kept in" in str(told.value)


@pytest.mark.parametrize(("name", "batch"), [("a8", 32), ("a8z", 64)])
def test_zero_and_negative_losses_are_refused_as_ratios_and_judged_as_differences(name, batch):
    with pytest.raises(InputError, match="a ratio needs values above 0"):
        judged(case(name), batch)
    found = judged(case(name, "2 epochs", declare="nats"), batch // 2)
    assert str(found.table["unscaled"]["average"].verdict) == "DIFFERENT"


def test_a_loss_that_starts_at_or_below_zero_is_refused_before_training():
    trained = []
    with pytest.raises(InputError, match=r"loss is -.* before training, and a ratio needs values above 0"):
        judged(case("a8", c=5.0), 32, on_done=trained.append)
    assert not trained


def test_a_constant_metric_is_no_evidence():
    recipe = case("a8", "2 epochs").model_copy(update={"task": "tests.verify.edge_tasks:constant", "options": {}})
    found = judged(recipe, 32)
    assert str(found.verdict) == "UNDECIDED"
    assert any("do not vary" in said for said in next_actions(found))


def test_runs_with_dropout_can_be_made_again():
    recipe = case("a8").model_copy(update={"task": "tests.verify.edge_tasks:dropout", "options": {}})
    job = Job("plan", recipe, 1, 0, (0, 64, 128))
    first = train_curve(job)
    assert train_curve(job).values == first.values
    assert (
        train_curve(Job("plan", recipe, 1, 1, (0, 64, 128))).values["raw"]["loss"][0] == first.values["raw"]["loss"][0]
    )
    assert train_curve(Job("plan", recipe, 1, 1, (0, 64, 128))).values != first.values


@pytest.mark.parametrize("after", [0, 30])
def test_a_task_that_raises_is_bad_input_and_says_where(after):
    recipe = case("a8", "2 epochs").model_copy(
        update={"task": "tests.verify.edge_tasks:broken", "options": {"after": after}}
    )
    with pytest.raises(
        InputError, match=r"failed in arm \w+, seed 0: RuntimeError: the disk went away \(.*edge_tasks.py"
    ):
        judged(recipe, 32)


def test_a_second_call_trains_only_what_is_missing():
    counts = []
    for _ in range(2):
        done = []
        found = judged(
            case("a7", "2 epochs", at_batch=1000), 32, on_done=lambda curve, done=done: done.append(curve.seconds)
        )
        counts.append((len(done), found.table["plan"]["average"].worst, list(found.folder.glob("cells/*"))))
    assert counts[0] == counts[1]
    cells = counts[0][2]
    assert len(cells) == 24
    kept = cells[5].read_text()
    cells[5].unlink()
    cells[6].write_text("{half")
    again = judged(case("a7", "2 epochs", at_batch=1000), 32)
    assert again.folder == found.folder
    strip = lambda text: text[: text.index('"seconds"')]  # noqa: E731
    assert strip(cells[5].read_text()) == strip(kept)


def test_a_folder_of_another_comparison_is_refused_and_nothing_of_it_is_lost(tmp_path):
    out = tmp_path / "out"
    judged(case("a7", "2 epochs", at_batch=1000), 32, out=out)
    before = sorted(p.name for p in out.rglob("*"))
    for more in ({"seeds": 9}, {"seed_from": 8}, {"margin": 0.05}, {"allow_failures": 1}):
        with pytest.raises(InputError, match=r"holds another comparison .*give another --out"):
            judged(case("a7", "2 epochs", at_batch=1000), 32, out=out, **more)
    with pytest.raises(InputError, match="its recipe differs in options"):
        judged(case("a7", "2 epochs", at_batch=500), 32, out=out)
    assert sorted(p.name for p in out.rglob("*")) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "result.json").write_text('{"study": "byol"}')
    with pytest.raises(InputError, match="holds another result"):
        judged(case("a7", "2 epochs", at_batch=1000), 32, out=foreign)


def test_seeds_that_were_judged_before_are_named_and_fresh_ones_are_not():
    recipe, told = case("a7", "2 epochs", at_batch=1000), []
    note = lambda folder, reused: told.append(reused)  # noqa: E731
    judged(recipe, 32, on_folder=note)
    judged(recipe, 32, on_folder=note)  # the same comparison again is no new look
    found = judged(recipe, 32, seeds=10, on_folder=note)
    fresh = judged(recipe, 32, seed_from=10, on_folder=note)
    assert told[0] is None
    assert told[1] is None
    assert told[2]["shared"] == 8
    assert told[3] is None
    assert any("8 of these seeds were judged before" in said for said in next_actions(found))
    assert fresh.seeds == tuple(range(10, 18))


def test_a_sequential_design_stops_at_the_first_look_that_decides():
    found = judged(case("a7", "2 epochs", at_batch=1000), 32, seeds=(8, 32))
    assert found.design.looks.seeds[0] == 8
    assert found.design.looks.seeds[-1] == 32
    assert str(found.verdict) == "SAME"
    assert len(found.seeds) in found.design.looks.seeds
    assert len(found.seeds) < 32


@pytest.mark.slow
def test_the_largest_kappa_uses_the_same_judge_and_keeps_its_runs():
    found = judged(case("a1", "4 epochs"), 64)
    largest = largest_kappa(found, workers=1)
    assert 1 <= largest.kappa < 16
    kept = len(list(found.folder.glob("cells/*")))
    assert largest_kappa(found, workers=1) == largest
    assert len(list(found.folder.glob("cells/*"))) == kept


def test_the_command_says_it_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["verify", "run", str(CASES / "a7.toml"), "--batch-size", "32", "--seeds", "8", "--workers", "1"]
    assert command([*words, "--ablate", "unscaled"]) == 3
    printed = capsys.readouterr()
    assert "finished runs are kept in" in printed.err
    assert "UNDECIDED: the plan is UNDECIDED (averaged model); plan failed in 1 of 8 seeds (3)" in printed.out
    assert "1/8" in printed.out
    assert "seed 3: stopped at step 11" in printed.out
    assert command([*words, "--ablate", "unscaled", "--expect", "foo=SAME"]) == 2
    assert "--expect foo=... names an arm that is not trained; trained: plan, unscaled" in capsys.readouterr().err
    assert command([*words, "--ablate", "unscaled", "--expect", "plan=UNDECIDED,unscaled=DIFFERENT"]) == 0
    assert command([*words, "--ablate", "none", "--allow-failures", "1"]) == 3
    assert "could not have told: no control was trained" in capsys.readouterr().out
