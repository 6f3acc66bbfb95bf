"""Further grids of the studies: claims of their own, judged by their own criteria."""

import numpy as np
import pytest
from studies.tests.test_autowu import row as autowu_row
from studies.tests.test_legw import row as legw_row

from isobatch import cli
from isobatch.cli.study import find, options
from isobatch.errors import InputError
from isobatch.report import png
from isobatch.verify.workers import Curve
from isobatch_studies import claims_table
from isobatch_studies.adam import further as adam
from isobatch_studies.adaptive import late, late_page
from isobatch_studies.autowu import grid as autowu_grid
from isobatch_studies.autowu import study as autowu
from isobatch_studies.batch_augmentation import study as views
from isobatch_studies.claims import claims, criteria, grids
from isobatch_studies.concurrent_adversarial import study as adversary
from isobatch_studies.dino import study as dino
from isobatch_studies.legw import grid as legw_grid
from isobatch_studies.legw import study as legw
from isobatch_studies.noise_scale import decay
from isobatch_studies.noise_scale import judging as noise
from isobatch_studies.paired import interval
from isobatch_studies.teachers import grid as teachers

GRIDS = [(study, grid) for study in claims_table.studies() for grid in grids(study) if grid]


@pytest.mark.parametrize(("study", "grid"), GRIDS)
def test_a_further_grid_has_claims_and_a_design_of_its_own(study, grid):
    own, further = claims(study), claims(study, grid)
    assert further
    assert not own.keys() & further.keys()
    assert all(name.startswith(f"{study}/") for name in further)
    assert "grids" not in criteria(study)
    assert len(criteria(study, grid)["design"]) > 100
    assert "grid" in find(study).takes


def test_no_claim_stands_in_two_grids():
    every = [name for study in claims_table.studies() for grid in grids(study) for name in claims(study, grid)]
    assert len(every) == len(set(every))


def test_a_grid_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="--grid 'wide' of study adam must be one of from-one, text-4x"):
        criteria("adam", "wide")
    with pytest.raises(InputError, match="must be left out: it has none"):
        criteria("byol", "wide")
    with pytest.raises(InputError, match="has one grid; leave --grid wide out"):
        options("decentlam", find("decentlam").takes, "cpu", None, "wide")
    with pytest.raises(InputError, match="leave it or --grid from-one out"):
        options("adam", find("adam").takes, "cpu", None, "from-one", quick=True)
    assert cli.run(["study", "adam", "--grid", "wide", "--out", str(tmp_path / "out")]) == 2
    assert "must be one of" in capsys.readouterr().err


def adam_row(task, batch, kappa, rule, verdict, worst=0.02):
    models = ("average", "raw")
    return {
        "task": task, "batch": batch, "kappa": kappa, "rule": rule, "verdicts": dict.fromkeys(models, verdict),
        "worst": dict.fromkeys(models, worst),
        "worst_per_seed": {model: [worst + 1e-4 * seed for seed in range(8)] for model in models},
    }  # fmt: skip


def adam_rows(invariant="SAME", kept="DIFFERENT", root="SAME", hold=0.01):
    found = []
    for task, batch, kappa in (*adam.DIGITS, *adam.TEXT):
        found.append(adam_row(task, batch, kappa, "invariant", invariant))
        found.append(adam_row(task, batch, kappa, "invariant, EMA unscaled", kept, 0.5))
        found.append(adam_row(task, batch, kappa, "square root", root))
        found.append(adam_row(task, batch, kappa, adam.HOLD, invariant, hold))
    return found


def held(outcomes):
    return [one.held for one in outcomes]


def test_adams_claims_are_judged_by_their_criteria():
    assert held(adam.judge_claims(adam_rows(), 8, "from-one")) == [True] * 4
    assert held(adam.judge_claims(adam_rows(), 8, "text-4x")) == [True] * 3
    assert held(adam.judge_claims(adam_rows(invariant="UNDECIDED"), 8, "from-one")) == [False, True, True, True]
    assert held(adam.judge_claims(adam_rows(kept="SAME", root="DIFFERENT"), 8, "from-one")) == [
        True,
        False,
        False,
        True,
    ]
    assert held(adam.judge_claims(adam_rows(hold=0.03), 8, "from-one")) == [True, True, True, False]
    assert (
        held(adam.judge_claims(adam_rows(), 7, "from-one")) == held(adam.judge_claims([], 8, "from-one")) == [None] * 4
    )


def late_rows(**finals):
    jitter = np.random.default_rng(0).normal(0, 0.001, (5, 8))
    usual = {late.SMALL: 2.3, late.LARGE: 2.4, late.EARLY: 2.35, late.LATE: 2.2, late.STEPS: 2.19} | finals
    return [
        {"arm": arm, "steps": 10, "samples": 40, "final": (loss + jitter[n]).tolist(), "seconds": 1.0,
         "mean": interval((loss + jitter[n]).tolist()).to_dict(), "seen": [8, 16, 40],
         "at_step": [2, 4, 10], "losses": [3.0, 2.5, loss]}
        for n, (arm, loss) in enumerate(usual.items())
    ]  # fmt: skip


def test_the_late_switch_is_judged_by_its_criteria():
    assert held(late.judge(late_rows(), 8)) == [True] * 3
    assert held(late.judge(late_rows(early=2.2), 8))[0] is False
    assert held(late.judge(late_rows(small=2.1), 8)) == [True, False, True]
    assert held(late.judge(late_rows(late=2.3), 8)) == [True, False, False]
    assert held(late.judge(late_rows()[:3], 8)) == held(late.judge(late_rows(), 3)) == [None] * 3
    data = {"study": "adaptive", "title": "T", "rows": late_rows(), "claims": []}
    assert png(late_page.figure(data)).startswith(b"\x89PNG")
    assert png(late_page.figure(data | {"rows": []})).startswith(b"\x89PNG")
    assert "large, as many steps" in late_page.html(data)


def test_arms_beside_the_late_switch_differ_by_their_optimizer_alone():
    made = late.arms(criteria("adaptive", "late"))
    for arm in (late.LATE, late.STEPS):
        root, slow = made[f"{arm}, SGD"], made[f"{arm}, SGD, a tenth of the rate"]
        assert (root.optimizer.name, root.optimizer.lr, slow.optimizer.lr) == ("sgd", 0.05, 0.005)
        assert root.model_copy(update={"optimizer": made[arm].optimizer}) == made[arm]
    rows = late_rows()
    beside = [row | {"arm": f"{row['arm']}, SGD"} for row in rows if row["arm"] in (late.LATE, late.STEPS)]
    assert held(late.judge([*rows, *beside], 8)) == [True] * 3
    table = {row[0]: row[2] for row in late.beside([*rows, *beside], criteria("adaptive", "late"))[1:]}
    assert list(table) == [late.LATE, f"{late.LATE}, SGD"]
    assert table[late.LATE].startswith("+0.00"), "2.2 beside 2.19"
    assert late.beside([], criteria("adaptive", "late"))[1:] == []
    data = {"study": "adaptive", "title": "T", "rows": [*rows, *beside], "claims": [], "why_beside": "SGD, because"}
    assert "SGD, because" in late_page.html(data)


def test_the_late_arms_take_the_same_samples_and_keep_their_rate():
    made = late.arms(criteria("adaptive", "late"))
    lengths = {arm: recipe.staircase().length for arm, recipe in made.items()}
    assert {lengths[arm] for arm in (late.SMALL, late.LARGE, late.EARLY, late.LATE)} == {6144}
    assert lengths[late.STEPS] == 16 * (4608 // 4 + 1536 // 16)
    assert made[late.LATE].batch.schedule == (("0 samples", 4), ("4608 samples", 16))
    assert {recipe.batch.schedule_lr for arm, recipe in made.items() if arm != late.SMALL} == {"keep"}


def accuracies(seeds=40, **means):
    jitter = np.random.default_rng(1).normal(0, 0.3, (len(means), seeds))
    values = {name.replace("_", " "): mean + jitter[n] for n, (name, mean) in enumerate(means.items())}
    return {name: found.tolist() for name, found in values.items()}


def test_long_views_are_judged_by_their_criteria():
    def row(four, more, seeds=20):
        values = accuracies(seeds, one=95.0, four=four, more=more)
        named = {"M = 1": values["one"], "M = 4": values["four"], "4x the updates": values["more"]}
        gaps = {"M = 4": interval(np.subtract(named["M = 4"], named["M = 1"]).tolist()).to_dict()}
        return {"seeds": seeds, "values": named, "gains": gaps, "steps": dict.fromkeys(named, 1200)}

    assert held(views.judge_long(row(96, 96))) == [True, True]
    assert held(views.judge_long(row(95, 95))) == [False, True]
    assert held(views.judge_long(row(96, 97))) == [True, False]
    assert held(views.judge_long(row(96, 96, seeds=10))) == held(views.judge_long(None)) == [None, None]


def test_long_adversaries_are_judged_by_their_criteria():
    def row(stale=0.0, signs=-1.0, seeds=40):
        def gap(mean):
            return interval((mean + np.random.default_rng(2).normal(0, 0.3, seeds)).tolist()).to_dict()

        return {
            "seeds": seeds, "over_fresh": {f"tau = {tau}": gap(stale) for tau in (1, 3, 5)},
            "over_plain": {"tau = 1": gap(2.0)}, "noise_gap": gap(-signs),
        }  # fmt: skip

    taus = criteria("concurrent-adversarial", "long")["taus"]
    assert held(adversary.judge_long(row(), taus)) == [True] * 3
    assert held(adversary.judge_long(row(stale=-0.5), taus)) == [False, True, True]
    assert held(adversary.judge_long(row(signs=0.0), taus)) == [True, False, True]
    assert held(adversary.judge_long(row(seeds=20), taus)) == held(adversary.judge_long(None, taus)) == [None] * 3


def test_legw_on_frames_and_long_text_is_judged_by_its_criteria(monkeypatch):
    monkeypatch.setattr("studies.tests.test_legw.TASKS", {task: {"metric": "accuracy"} for task in legw_grid._BASES})
    tasks = list(criteria("legw", "frames")["tasks"])
    assert held(legw.judge_further([legw_row(task) for task in tasks], "frames")) == [True, True, True, True, False]
    worse = [legw_row(task, legw=-2.1, linear=-9.0) for task in tasks]
    assert held(legw.judge_further(worse, "frames")) == [False] * 5
    assert held(legw.judge_further([], "frames")) == [None] * 5
    texts = [legw_row(task, legw=0.0, base=2.0, seeds=10) for task in criteria("legw", "long-text")["tasks"]]
    for text in texts:
        text["values"]["LEGW"] = [2.05] * 10
        text["values"]["square root, base warm-up"] = [2.08] * 10
    assert held(legw.judge_further(texts, "long-text")) == [True] * 3
    texts[1]["values"]["LEGW"] = [2.2] * 10
    assert held(legw.judge_further(texts, "long-text")) == [True, False, True]


def test_legws_further_tasks_leave_the_updates_that_their_design_says():
    for grid, updates in (("frames", {16: 600, 64: 150}), ("long-text", {16: 2048, 32: 1024})):
        for task, part in criteria("legw", grid)["tasks"].items():
            made = legw_grid.arm(task, "LEGW", part["rates"][0], part["kappa"], 3)
            assert made.staircase().length / made.batch.size == updates[part["kappa"]]
            assert made.staircase().warmup <= 0.17 * made.staircase().length


def test_autowu_on_frames_is_judged_by_its_criteria():
    cells = autowu_grid.cells(criteria("autowu", "frames"), quick=False)
    assert len(cells) == 6
    assert all(cell.frames and 1280 * cell.epochs / cell.batch >= 500 for cell in cells)
    good = [autowu_row(cell, {"AutoWU": -0.3, "AutoWU, rollback": -0.3}) for cell in cells]
    assert held(autowu.judge_frames(good, 6)) == [True, True]
    assert held(autowu.judge_frames(good[:4], 6)) == [None, None]
    bad = autowu_row(cells[0], {"AutoWU": -1.0, "AutoWU, rollback": -0.3})
    assert held(autowu.judge_frames([bad, *good[1:]], 6)) == [False, True]


def dino_rows(rule="SAME", kept="DIFFERENT", gained=5.0, seeds=8):
    def row(arm, kappa, verdict, worst):
        part = {"mean": gained, "low": gained - 1, "high": gained + 1, "values": 8}
        return {
            "variant": "dino", "arm": arm, "kappa": kappa, "seeds": seeds, "planned": 8, "collapsed": [],
            "verdicts": {"average": verdict, "raw": "SAME"}, "worst": {"average": worst, "raw": 0.1},
            "worst_per_seed": {"average": [worst + 0.01 * seed for seed in range(8)]},
            "reference": {"gained": {"average": {"accuracy": part, "knn": part}}},
        }  # fmt: skip

    return [
        made for kappa in dino.KAPPAS
        for made in (row("rule", kappa, rule, 0.2), row("no EMA rule", kappa, kept, 3.0),
                     row("no centre rule", kappa, rule, 0.4))
    ]  # fmt: skip


def test_dino_in_the_invariant_form_is_judged_by_its_criteria():
    judges = [dino.JUDGES[name] for name in claims("dino", "invariant")]

    def verdicts(rows):
        return [judge(rows)[0] for judge in judges]

    assert verdicts(dino_rows()) == [True, True, True]
    assert verdicts(dino_rows(rule="UNDECIDED"))[0] is False
    assert verdicts(dino_rows(kept="UNDECIDED")) == [None, False, True]
    assert verdicts(dino_rows(gained=2.0)) == verdicts(dino_rows(seeds=5)) == verdicts([]) == [None] * 3


@pytest.mark.parametrize(("study", "grid"), [("polyak", "small-steps"), ("dino", "invariant")])
def test_arms_of_the_teachers_further_grids(study, grid):
    part = criteria(study, grid)["grid"]
    for variant in part["variants"]:
        base = teachers.reference(part, variant)
        for arm in teachers.arms(part, variant):
            assert arm.recipe.staircase().length == base.staircase().length
            if base.batch_norm is not None:
                assert arm.recipe.batch.per_device == base.batch.per_device


def domain(name, calibrated=1.2, ratio=1.5, wide=3.0):
    value = {"value": 100.0, "low": 100 / wide, "high": 100 * wide}
    return {
        "domain": name, "complete": True, "calibrated": calibrated, "ratio": ratio,
        "critical_average": value | {"identified": wide <= 2}, "simple_average": value,
    }  # fmt: skip


def test_the_noise_scales_further_grids_are_judged_by_their_criteria():
    def eight(**changed):
        names = list(criteria("noise-scale", "eight-seeds")["grid"]["domains"])
        return held(noise.judge_further([domain(name, **changed) for name in names], 8, "eight-seeds"))

    assert (eight(), eight(calibrated=2.1), eight(ratio=11)) == ([True, True], [False, True], [True, False])
    assert (eight(calibrated=None), eight(ratio=None)) == ([None, True], [True, None])

    def a2c(seeds=16, **changed):
        return held(noise.judge_further([domain("a2c", **changed)], seeds, "a2c"))

    assert (a2c(), a2c(wide=4.0), a2c(ratio=0.05)) == ([True, True], [False, True], [True, False])
    assert a2c(seeds=8) == [None, None]
    part = criteria("noise-scale", "a2c")["grid"]["domains"]["a2c"]
    assert part == criteria("noise-scale")["grid"]["domains"]["a2c"] | {"chunks": 512}


def wsd_curves(part, early=0.05, late=-0.05, end=0.02):
    marks = part["marks"]
    found = {}
    for schedule in decay.SCHEDULES:
        last = end if schedule == "decay" else late
        gaps = [0, *np.linspace(early, early, marks // 4), *np.linspace(early, late, marks - marks // 4)[:-1], last]
        gaps[round(marks * part["early"])], gaps[round(marks * part["decay_from"])] = early, late
        for batch in part["batches"]:
            factor = np.exp(np.array(gaps)) if batch == max(part["batches"]) else np.ones(marks + 1)
            found[decay.label(batch, schedule)] = [
                Curve("", s, {"raw": {"loss": (2.5 * factor * (1 + 1e-4 * s)).tolist()}}, 9, 0.0) for s in range(8)
            ]
    return found


def test_curves_that_cross_are_judged_by_their_criteria():
    part = criteria("noise-scale", "wsd")["grid"]
    assert held(decay.judge(part, wsd_curves(part))) == [True, True]
    assert held(decay.judge(part, wsd_curves(part, early=-0.01))) == [False, True]
    assert held(decay.judge(part, wsd_curves(part, late=0.01, end=-0.01))) == [False, False]
    assert held(decay.judge(part, {})) == [None, None]
    recipes = {job.arm: job.recipe for group in decay.groups(part) for job in group[:1]}
    assert {made.optimizer.lr for made in recipes.values()} == {0.003}
    assert recipes["batch 8, decay"].staircase().decay_from == 6144
    data = {
        "study": "noise-scale",
        "title": "T",
        "claims": [],
        "marks": [0, 10, 20, 30],
        "why_longer": "longer runs, because",
        "losses": {"batch 8, decay": [3, 2, 1], "batch 8, longer": [3, 2, 1, 0.5]},
    }
    assert "batch 8, decay" in decay.html(data)
    assert "longer runs, because" in decay.html(data)


def test_longer_runs_go_on_at_the_same_marks_over_fresh_text():
    part = criteria("noise-scale", "wsd")["grid"]
    short, longer = (
        {job.arm: job for group in decay.groups(part) for job in group[:1]}[arm]
        for arm in ("batch 2, constant", "batch 2, longer")
    )
    assert longer.stops[: len(short.stops)] == short.stops
    assert longer.stops[-1] == longer.recipe.data_size == longer.recipe.options["windows"] == 24576
    assert longer.recipe.optimizer == short.recipe.optimizer
    marks, curves = longer.stops, {}
    for batch in (2, 32):
        loss = [2.0 + (batch == 32) * 0.1 * (1 - mark / 24) for mark in range(len(marks))]  # level at the 24th mark
        arm = decay.label(batch, decay.LONGER)
        curves[arm] = [Curve(arm, s, {"raw": {"loss": [x * (1 + 1e-4 * s) for x in loss]}}, 9, 0.0) for s in range(8)]
    rows = decay.beside(part, curves, marks)[1:]
    assert [row[2:] for row in rows if row[1] == "constant"] == [["2,048", "not run"], ["6,144", "not run"]]
    crossed, end = (row for row in rows if row[1] == decay.LONGER)
    assert crossed[:3] == ["32 and 2", "longer", "12,800"]
    assert end[3].startswith("-0.0513"), "log 1.9 / 2.0"
