"""The study byol-24576: its arms, its criteria on invented figures, seeds one by one, and a run taken up again."""

import copy

import pytest

from isobatch.verify.cells import missing, train_on
from isobatch_studies import catalogue
from isobatch_studies.byol_24576 import judging
from isobatch_studies.claims import claims, criteria
from isobatch_studies.teachers import grid as layout

NAME = "byol-24576"
PART = criteria(NAME)["grid"]
SMALL = {"data": "glyphs", "side": 8, "width": 4, "stages": 1, "frames": 124, "probe": 62}


def of(kind):
    return next(arm.recipe for arm in layout.arms(PART, NAME) if arm.kind == kind)


def test_the_step_is_the_papers_own():
    base, rule = layout.reference(PART, NAME), of("rule")
    length = int(base.staircase().length)
    assert (base.batch.size, rule.batch.size, length // base.batch.size, length // rule.batch.size) == (
        4096, 24_576, 900, 150,
    )  # fmt: skip
    assert (rule.optimizer.name, rule.optimizer.lr) == ("invariant-adamw", pytest.approx(6 * 4e-4))
    assert rule.optimizer.betas == pytest.approx((0.9**6, 0.999**6))
    assert rule.ema.decay == pytest.approx(0.97**6)


def test_the_controls_leave_out_what_they_say():
    rule, unruled, bare = of("rule"), of("no EMA rule"), of("nothing scaled")
    assert unruled.optimizer == rule.optimizer
    assert unruled.ema.decay == bare.ema.decay == 0.97
    assert bare.optimizer == layout.reference(PART, NAME).optimizer
    assert bare.batch.size == unruled.batch.size == 24_576
    progressive = of("progressive")
    assert progressive.optimizer.name == "invariant-adamw"
    assert progressive.optimizer.lr == 4e-4
    assert progressive.batch.schedule == (("0 samples", 4096), ("933888 samples", 24_576))


def test_complete_pairs_come_first_and_two_arms_have_fewer_seeds():
    groups = layout.groups(PART, NAME, 8, "cpu")
    order = [(job.arm.removeprefix(f"{NAME} "), job.seed) for group in layout.seed_by_seed(groups, 1) for job in group]
    names = ["reference", "rule x6", "no EMA rule x6", "nothing scaled x6", "progressive x6"]
    assert order[:6] == [(name, 0) for name in names] + [("reference", 1)]
    assert order[-3:] == [(name, 7) for name in names[:3]]
    assert len(order) == 32
    assert [len(group) for group in layout.seed_by_seed(groups, 3)] == [3] * 10 + [2]


def row(kind="rule", verdict="SAME", *, seeds=8, probe=0.0, knn=0.0, gained=8.0, collapsed=(), steps=150, spread=0.1):
    def ends(shift_probe, shift_knn):
        return {
            "accuracy": [50 + shift_probe + spread * s for s in range(seeds)],
            "knn": [47 + shift_knn + spread * s for s in range(seeds)],
        }

    gain = {"mean": gained, "low": gained - 1, "high": gained + 1, "values": seeds}
    return {
        "variant": NAME, "arm": kind, "kappa": 6, "seeds": seeds, "planned": 8,
        "verdicts": {"average": verdict, "raw": verdict}, "worst": {"average": 0.3, "raw": 0.3},
        "per_seed": {"average": ends(probe, knn)}, "collapsed": list(collapsed), "stopped": 0, "steps": steps,
        "reference": {
            "per_seed": {"average": ends(0, 0)}, "gained": {"average": {"accuracy": gain, "knn": gain}}, "steps": 900,
        },
    }  # fmt: skip


CONTROL = row("no EMA rule", "DIFFERENT")


@pytest.mark.parametrize(("rows", "held"), [
    ([row(), CONTROL], True),
    ([row(verdict="UNDECIDED"), CONTROL], False),
    ([row(verdict="DIFFERENT"), CONTROL], False),
    ([row(collapsed=[3]), CONTROL], False),
    ([row(), row("no EMA rule", "SAME")], None),
    ([row(), row("no EMA rule", "SAME"), row("nothing scaled", "DIFFERENT")], True),
    ([row(gained=4.0), CONTROL], None),
    ([row(seeds=7), CONTROL], None),
    ([CONTROL], None),
])  # fmt: skip
def test_rule_same(rows, held):
    assert judging.rule_same(rows)[0] is held


@pytest.mark.parametrize(("verdict", "held"), [("DIFFERENT", True), ("SAME", False), ("UNDECIDED", False)])
def test_unscaled_different(verdict, held):
    assert judging.unscaled_different([row(), row("no EMA rule", verdict)])[0] is held


@pytest.mark.parametrize(("values", "kept", "fewer"), [
    ({}, True, True),
    ({"probe": -0.9}, True, True),
    ({"probe": -1.1}, False, False),
    ({"knn": -1.1}, True, False),
    ({"steps": 300}, True, False),
    ({"collapsed": [0]}, True, False),
    ({"gained": 4.0}, None, None),
    ({"seeds": 7}, None, None),
])  # fmt: skip
def test_probe_kept_and_six_times_fewer_steps(values, kept, fewer):
    assert judging.probe_kept([row(**values)])[0] is kept
    assert judging.six_times_fewer_steps([row(**values)])[0] is fewer


def test_a_wide_interval_does_not_keep_the_probe():
    noisy = row()
    noisy["per_seed"]["average"]["accuracy"] = [50.0 + (-2) ** s / 20 for s in range(8)]
    assert judging.probe_kept([noisy])[0] is False


def shrunk():
    rules = copy.deepcopy(criteria(NAME))
    part = rules["quick"]
    part["recipe"]["batch"] = {"size": 8, "micro": 4}
    part["recipe"]["schedule"] |= {"length": "320 samples", "warmup": "32 samples"}
    part["recipe"]["options"] |= SMALL
    part |= {"kappas": [2], "unruled": [2], "progressive": [], "unscaled": []}
    return rules


def test_seeds_are_counted_one_by_one(tmp_path, monkeypatch):
    rules = shrunk()
    monkeypatch.setattr("isobatch_studies.teachers.study.criteria", lambda name, grid="": rules)
    done = []

    def stop(curve):
        done.append(curve)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.BYOL_24576.run(quick=True, out=tmp_path, workers=1, on_done=stop)
    assert [(curve.arm.split()[1], curve.seed) for curve in done] == [
        ("reference", 0), ("rule", 0), ("no", 0), ("reference", 1),
    ]  # fmt: skip
    data = catalogue.BYOL_24576.run(quick=True, out=tmp_path, workers=1, budget=0.0)
    assert [(r["arm"], r["seeds"]) for r in data["rows"]] == [("rule", 1), ("no EMA rule", 1)]
    assert {r["verdicts"]["average"] for r in data["rows"]} == {"no verdict yet"}
    assert data["cells"] == {"complete": 0, "of": 2}
    known = claims(NAME)
    assert [claim["id"] for claim in data["claims"]] == list(known)
    assert all(claim["held"] is None for claim in data["claims"])
    assert "1 of 2 seeds, no verdict yet" in data["claims"][0]["evidence"]
    assert "1 seeds of the 8" in data["claims"][0]["evidence"]
    assert (tmp_path / f"{NAME}.png").exists()


def test_a_run_that_was_ended_goes_on_from_its_last_stop(tmp_path, monkeypatch):
    rules = shrunk()["quick"]
    job = layout.groups(rules, NAME, 1, "cpu")[1][0]
    assert job.recipe.optimizer.name == "invariant-adamw"
    whole = train_on(job, tmp_path / "whole")
    from isobatch.train import Trainer

    (tmp_path / "cut").mkdir()  # by the caller, whose disk a worker shares
    evaluate, calls = Trainer.evaluate, []

    def ended(self):
        calls.append(self.seen)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", ended)
    with pytest.raises(KeyboardInterrupt):
        train_on(job, tmp_path / "cut")
    again = train_on(job, tmp_path / "cut")
    assert calls[5:] == list(job.stops[4:]), "the four stops before are not trained again"
    assert again.values == whole.values
    assert again.steps == whole.steps
    assert missing([job], tmp_path) == [job]
