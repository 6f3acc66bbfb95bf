"""Around one comparison: the operating characteristic, and the search for the largest kappa."""

from dataclasses import replace

import pytest
from tests.fabricated import comparison, curves
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.verify import Verdict, characteristic, search
from isobatch.verify.characteristic import measure, planted


def test_planted_arms_move_one_setting():
    made = recipe()
    found, plan = planted(made, 32), made.at(32).recipe
    assert found["A/A"] == made
    assert found["lr x1.3"].optimizer.lr == pytest.approx(1.3 * plan.optimizer.lr)
    assert found["half-life x1.5"].half_life == pytest.approx(1.5 * made.half_life)
    with pytest.raises(InputError, match="seeds=39 must be at least 4 x sample = 40"):
        measure(made, 32, seeds=39)


def test_the_characteristic_counts_verdicts_of_subsets(monkeypatch):
    gaps = {"plan": 0.0, "A/A": 0.0, "lr x1.3": 0.4, "half-life x1.1": 0.02}
    monkeypatch.setattr(characteristic, "run", lambda *_, **__: comparison(gaps, seeds=40, spread=0.01))
    monkeypatch.setattr(characteristic, "DRAWS", 100)
    data = measure(recipe(), 32)
    shares = {arm: models["average"] for arm, models in data["shares"].items()}
    for found in shares.values():
        assert found["SAME"] + found["UNDECIDED"] + found["DIFFERENT"] == pytest.approx(1)
    assert shares["A/A"]["SAME"] == 1
    assert shares["lr x1.3"]["DIFFERENT"] == 1
    assert 0 < shares["half-life x1.1"]["UNDECIDED"] < 1
    assert shares["lr x1.3"]["worst"] == pytest.approx(0.4, abs=0.02)
    rows = characteristic.table(data)
    assert rows[0][:3] == ["arm", "model", "SAME"]
    assert len(rows) == 1 + 2 * len(gaps)


@pytest.mark.parametrize(("limit", "wanted", "tried"), [(2, 2, {16, 4, 2}), (8, 8, {16, 4, 8}), (1, 1, {16, 4, 2})])
def test_the_largest_kappa_is_found_by_bisection(limit, wanted, tried, monkeypatch):
    far = comparison({"plan": 0.5})
    far = replace(far, plan=far.recipe.at(128))

    def fake(_, jobs, **__):
        kappa = jobs[0].recipe.batch.size / 8
        assert len({job.stream for job in jobs}) == 1
        return curves({"plan": 0.0 if kappa <= limit else 0.5})["plan"]

    monkeypatch.setattr(search, "map_jobs", fake)
    found = search.largest_kappa(far)
    assert found.kappa == wanted
    assert set(found.tried) == tried
    assert all((found.tried[k] is Verdict.SAME) == (k <= limit) for k in tried)


def test_the_search_goes_down_as_well(monkeypatch):
    far = comparison({"plan": 0.5})
    far = replace(far, plan=far.recipe.at(1))
    tried = []

    def fake(_, jobs, **__):
        tried.append(jobs[0].recipe.batch.size)
        return curves({"plan": 0.0 if tried[-1] >= 4 else 0.5})["plan"]

    monkeypatch.setattr(search, "map_jobs", fake)
    assert search.largest_kappa(far).kappa == 0.5
    assert tried == [4, 2]


def test_nothing_is_searched_when_the_far_end_is_same(monkeypatch):
    monkeypatch.setattr(search, "map_jobs", None)
    assert search.largest_kappa(comparison({"plan": 0.0})).kappa == 4
