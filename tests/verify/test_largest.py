"""Around one comparison: looks on the way, the operating characteristic, and the search for the largest kappa."""

import math
from dataclasses import replace

import pytest
from tests.fabricated import comparison, curves, rule
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.verify import Verdict, characteristic
from isobatch.verify import comparison as comparing
from isobatch.verify.campaign import Campaign
from isobatch.verify.characteristic import measure, planted
from isobatch.verify.design import Criteria, design_of
from isobatch.verify.largest import largest_kappa


@pytest.mark.parametrize(("gaps", "looked"), [
    ({"plan": 0.0, "unscaled": 0.9}, 1), ({"plan": 0.9, "unscaled": 0.9}, 1), ({"plan": 0.0, "unscaled": 0.0}, 4),
])  # fmt: skip
def test_a_look_is_judged_at_its_own_level_and_ends_where_the_whole_comparison_is_decided(gaps, looked, monkeypatch):
    """8, 16, 24 and 32 seeds spend a quarter of the rates each; SAME without a control that differs goes on."""
    made, levels, judge = recipe(task="digits", data_size=1437), [], Criteria.judge
    drawn, design = curves(gaps, seeds=32), design_of(made, 32, (8, 32))
    monkeypatch.setattr(Criteria, "judge", lambda self, of, level: levels.append(level) or judge(self, of, level))

    class Trained:
        def train(self, jobs, rule, ahead):
            assert {job.seed for job in ahead} == set(range(max(job.seed for job in jobs) + 1, 32))
            return {arm: [runs[job.seed] for job in jobs if job.arm == arm] for arm, runs in drawn.items()}

    design = replace(design, arms={arm: design.arms[arm] for arm in drawn}, controls=("unscaled",))
    found, table, level = comparing._trained(design, Trained(), rule(design, recipe=made), "average")
    assert [one.different for one in levels] == pytest.approx([0.00625] * looked)
    assert levels[0].same == pytest.approx(0.05 / 4)
    assert level == levels[-1]
    assert {len(runs) for runs in found.values()} == {8 * looked} == {table["plan"]["average"].seeds}
    assert [curve.seed for curve in found["plan"]] == list(range(8 * looked))


def test_planted_arms_move_one_setting():
    made = recipe()
    found, plan = planted(made, 32), made.at(32).recipe
    assert found["A/A"] == made
    assert found["lr x1.3"].optimizer.lr == pytest.approx(1.3 * plan.optimizer.lr)
    assert found["half-life x1.5"].half_life == pytest.approx(1.5 * made.half_life)
    with pytest.raises(InputError, match="seeds=39 must be at least 4 x sample = 40"):
        measure(made, 32, seeds=39)


def test_the_characteristic_judges_subsets_as_a_run_would(monkeypatch):
    gaps = {"plan": 0.0, "A/A": 0.0, "lr x1.3": 0.4, "half-life x1.1": 0.02}
    whole = comparison(gaps, seeds=40, spread=0.012)
    monkeypatch.setattr(characteristic, "run", lambda *_, **__: whole)
    monkeypatch.setattr(characteristic, "DRAWS", 50)
    data = measure(recipe(), 32)
    shares = {arm: models["average"] for arm, models in data["shares"].items()}
    for found in shares.values():
        assert found["SAME"] + found["UNDECIDED"] + found["DIFFERENT"] == pytest.approx(1)
    assert shares["A/A"]["SAME"] > 0.9
    assert shares["lr x1.3"]["DIFFERENT"] == 1
    assert 0 < shares["half-life x1.1"]["UNDECIDED"] < 1
    assert shares["lr x1.3"]["worst"] == pytest.approx(0.4, abs=0.02)
    rows = characteristic.table(data)
    assert rows[0][:3] == ["arm", "model", "SAME"]
    assert len(rows) == 1 + 2 * len(gaps)


@pytest.mark.parametrize(("metric", "gap"), [("loss", 0.06), ("accuracy", 0.9)])
def test_the_characteristic_judges_every_kind_of_metric_by_its_own_margin(metric, gap, monkeypatch):
    arms = {"plan": 0.0, "far": gap}
    whole = comparison(arms, seeds=40, spread=0.001, metric=metric)
    monkeypatch.setattr(characteristic, "run", lambda *_, **__: whole)
    monkeypatch.setattr(characteristic, "DRAWS", 20)
    shares = measure(recipe(), 32)["shares"]
    for arm, verdict in (("plan", "SAME"), ("far", "DIFFERENT")):
        assert shares[arm]["average"][verdict] == 1
        assert shares[arm]["average"]["all_seeds"] == verdict


@pytest.fixture
def trained(monkeypatch):
    """A campaign whose plans are the same up to a kappa, and the batches that it trained."""
    limit, batches = {"kappa": math.inf}, []

    def train(self, jobs, rule):
        batches.append(jobs[0].recipe.batch.size)
        kappa = batches[-1] / 8
        same = kappa <= limit["kappa"] if kappa > 1 else kappa >= limit["kappa"]
        return {"plan": curves({"plan": 0.0 if same else 0.5})["plan"]}

    monkeypatch.setattr(Campaign, "train", train)
    return limit, batches


def far_away(batch, gap=0.5):
    found = comparison({"plan": gap, "unscaled": 0.9})
    return replace(found, design=replace(found.design, plan=found.recipe.at(batch)))


@pytest.mark.parametrize(("limit", "wanted", "tried"), [(2, 2, {16, 4, 2}), (8, 8, {16, 4, 8}), (1, 1, {16, 4, 2})])
def test_the_largest_kappa_is_found_by_bisection(limit, wanted, tried, trained):
    trained[0]["kappa"] = limit
    found = largest_kappa(far_away(128))
    assert found.kappa == wanted
    assert set(found.tried) == tried
    assert all((found.tried[k] is Verdict.SAME) == (k <= limit) for k in tried)


@pytest.mark.parametrize(("batch", "most"), [(16, 1), (32, 1), (64, 2), (128, 2), (256, 3)])
def test_verdicts_on_the_way_share_the_error_rates(batch, most, trained, monkeypatch):
    """8 to 256 are the batches 16, 32, 64, 128 and 256, between which up to three verdicts fall: a third for each."""
    levels, judge = [], Criteria.judge
    monkeypatch.setattr(Criteria, "judge", lambda self, of, level: levels.append(level) or judge(self, of, level))
    for limit in (1, 2, 4, 8, 16):
        trained[0]["kappa"] = limit
        found, levels[:] = far_away(batch), []
        largest_kappa(found)
        assert len(levels) <= most
        assert {(level.same, level.different) for level in levels} <= {(0.05 / most, 0.025 / most)}


def test_the_search_goes_down_as_well(trained):
    trained[0]["kappa"] = 0.5
    assert largest_kappa(far_away(1)).kappa == 0.5
    assert trained[1] == [4, 2]


def test_nothing_is_searched_when_the_far_end_is_same(trained):
    assert largest_kappa(far_away(32, 0.0)).kappa == 4
    assert not trained[1]
