"""The studies of batch augmentation and of concurrent adversaries: arms, selection, claims, pictures."""

import numpy as np
import pytest

from isobatch.report import png
from isobatch.tasks import make_run
from isobatch.verify.workers import Curve
from isobatch_studies.batch_augmentation import grid as views
from isobatch_studies.batch_augmentation import page as views_page
from isobatch_studies.batch_augmentation import study as views_study
from isobatch_studies.claims import criteria
from isobatch_studies.concurrent_adversarial import grid as adversary
from isobatch_studies.concurrent_adversarial import overlap
from isobatch_studies.concurrent_adversarial import page as adversary_page
from isobatch_studies.concurrent_adversarial import study as adversary_study
from isobatch_studies.folds import chosen, fold_options

BA, CA = criteria("batch-augmentation"), criteria("concurrent-adversarial")


def curve(arm, seed, final, validation=None):
    series = [final] if validation is None else list(validation)
    return Curve(arm, seed, {"raw": {"accuracy": [final] * len(series), "validation_accuracy": series}}, 150, 0.0)


def test_every_fold_trains_on_as_many_images():
    for seed in range(5):
        recipe = views.recipe(BA, 0.1, seed)
        assert len(make_run(recipe, 0).samples) == 400
        assert recipe.options["fold"] == seed
    assert fold_options(5, 200) == fold_options(0, 200) == {"fold": 0, "validation": 1237}


def test_arms_of_views_share_updates_and_rate():
    (group, *_), rates = views.reported(BA, dict.fromkeys(range(5), 0.2), 1), {}
    arms = {job.arm: job.recipe for job in group}
    for m in BA["views"]:
        made = arms[f"M = {m}"]
        rates[made.optimizer.lr] = made.augment.views
        assert made.augment.views == m
        assert made.staircase().length == 150 * 40
    assert set(rates) == {0.2}
    lengths = {name: arms[name].staircase().length / arms[name].batch.size for name in views.CONTROLS}
    assert list(lengths.values()) == [600, 1200, 150, 150]
    assert [arms[name].optimizer.lr for name in views.CONTROLS] == [0.2, 0.2, 0.2, 0.8]
    assert len({job.order_seed for job in group}) == len(group)
    assert {job.seed for job in views.selection(BA, 2)}.isdisjoint(range(BA["seeds"]))


def test_arms_of_adversaries_differ_by_one_thing():
    group = adversary.reported(
        CA, dict.fromkeys(range(5), 0.1), dict.fromkeys(range(5), 0.2), dict.fromkeys(range(5), 0.3), 1
    )[0]
    arms = {job.arm: job.recipe for job in group}
    assert arms["plain"].adversary is None
    assert [arms[f"tau = {t}"].adversary.tau for t in range(6)] == list(range(6))
    assert (arms[adversary.NOISE].adversary.form, arms[adversary.NOISE].adversary.eps) == ("random-sign", 0.3)
    assert arms[adversary.TWO].adversary.norms == "two"
    assert arms[adversary.SUM].adversary.weights == (1.0, 1.0)
    small = arms[adversary.SMALL]
    assert (small.batch.size, small.optimizer.lr) == (20, pytest.approx(0.01))
    assert len({made.staircase().length for made in arms.values()}) == 1


def test_arms_beside_the_long_adversaries_say_why():
    rules = criteria("concurrent-adversarial", "long")
    groups = adversary.reported(rules, {0: 0.1}, {0: 0.1}, {0: 0.3}, 40)
    arms = {job.arm: job.recipe for job in groups[0]}
    one, signs, fewer = arms["tau = 1"], arms["random signs"], "fewer updates"
    assert [len(group) for group in groups] == [9] * 40
    for name, made, updates, eps in (
        (f"tau = 1, {fewer}", one, 300, 0.1),
        (f"random signs, {fewer}", signs, 300, 0.3),
        ("random signs, eps of the adversary", signs, 1000, 0.1),
    ):
        beside = arms[name]
        assert beside.staircase().length == updates * 200
        assert beside.adversary == made.adversary.model_copy(update={"eps": eps})
        assert (beside.optimizer, beside.batch, beside.options) == (made.optimizer, made.batch, made.options)

    def values(mean):
        return [mean + 0.1 * (seed % 2) for seed in range(40)]

    named = {"plain": 92.0, "tau = 0": 95.0, "tau = 1": 95.0, "tau = 3": 95.0, "tau = 5": 95.0, "random signs": 95.0}
    named |= {f"tau = 1, {fewer}": 95.0, f"random signs, {fewer}": 94.0, "random signs, eps of the adversary": 94.5}
    runs = {name: [curve(name, seed, v) for seed, v in enumerate(values(mean))] for name, mean in named.items()}
    row = adversary_study._accuracy(rules, runs)
    table = adversary_study.beside(row)
    assert [line[-1].split(" ")[0] for line in table[1:]] == ["0.00", "1.00", "0.50"]
    assert [o.held for o in adversary_study.judge_long(row, rules["taus"])] == [True, False, True]
    data = {"study": "concurrent-adversarial", "title": "T", "accuracy": row, "overlap": None, "claims": []}
    shown = adversary_page.html({**data, "beside": table, "why_beside": "because"})
    assert "because" in shown
    assert "random signs, eps of the adversary" in shown


def test_a_setting_is_chosen_in_its_fold_by_validation():
    tried = {
        f"select {rate}": [curve("", 1000 + fold, 99 - rate, [50 + (rate if fold else -rate)]) for fold in range(2)]
        for rate in (1, 2)
    }
    assert chosen(tried, (1, 2), lambda rate: f"select {rate}") == {0: 1, 1: 2}


def runs(gain, reached, seeds=20):
    noise = np.random.default_rng(0).normal(size=(9, seeds)) * 0.3
    arms = [f"M = {m}" for m in BA["views"]] + list(views.CONTROLS)
    found = {}
    for place, arm in enumerate(arms):
        better = gain if 0 < place < 5 else 0.0
        first = reached if 0 < place < 5 else 12
        validation = [80.0] * (first - 1) + [90.0] * (16 - first)
        found[arm] = [curve(arm, s, 95 + better + noise[place, s], validation) for s in range(seeds)]
    return found


def law(factor, seeds=20):
    values = {"between": [7.0], "views": [3.0], "share": [0.3], "pays": [4.0]}
    for m in BA["views"]:
        values |= {f"M={m}": [factor * (0.7 + 0.3 / m)], f"law {m}": [0.7 + 0.3 / m]}
    jitter = np.random.default_rng(1).normal(size=seeds) * 0.02
    return [
        Curve(
            "variance", s, {"raw": {k: [v[0] * (1 + jitter[s] * k.startswith("M"))] for k, v in values.items()}}, 1, 0.0
        )
        for s in range(seeds)
    ]


def held_views(gain=1.0, reached=8, factor=1.0, seeds=20):
    row = views_study._accuracy(BA, runs(gain, reached, seeds))
    return [o.held for o in views_study.judge_claims(row, views_study._law(BA, law(factor, seeds)))]


def test_claims_of_views_are_judged_by_their_criteria():
    assert held_views() == [True, True, True]
    assert held_views(gain=0.0) == [False, True, True]
    assert held_views(reached=12) == [True, False, True]
    assert held_views(factor=1.12) == [True, True, False]
    assert held_views(seeds=10) == [None, None, None]
    assert [o.held for o in views_study.judge_claims(None, None)] == [None, None, None]


def adversarial(gain=1.0, stale=0.0, seeds=40):
    noise = np.random.default_rng(0).normal(size=(11, seeds)) * 0.3
    names = [adversary.PLAIN, *(f"tau = {t}" for t in range(6)), *adversary.CONTROLS]
    better = {name: (gain if "tau" in name else 0.0) - (stale if name == "tau = 5" else 0) for name in names}
    return {
        name: [curve(name, s, 95 + better[name] + noise[place, s]) for s in range(seeds)]
        for place, name in enumerate(names)
    }


def timing(sequential=1.4, concurrent=1.05, rounds=31):
    values = {"clean": 10.0, "same rows": 20.0, "sequential": 20 * sequential, "concurrent": 20 * concurrent}
    found = {arm: [value] * rounds for arm, value in values.items()}
    found |= {"sent": [4000.0], "received": [12800.0], "load": [0.5], "cores": [2.0]}
    return overlap.summary(Curve("overlap", 0, {"raw": found}, 1, 0.0))


def held_adversary(times=None, **parts):
    row = adversary_study._accuracy(CA, adversarial(**parts))
    return [o.held for o in adversary_study.judge_claims(row, times or timing())]


def test_claims_of_adversaries_are_judged_by_their_criteria():
    assert held_adversary() == [True, True, True]
    assert held_adversary(gain=0.0) == [False, True, True]
    assert held_adversary(stale=0.6) == [True, False, True]
    assert held_adversary(times=timing(concurrent=1.12)) == [True, True, False]
    assert held_adversary(times=timing(sequential=1.2, concurrent=1.09)) == [True, True, False]
    assert held_adversary(times=timing(rounds=11)) == [True, True, None]
    assert held_adversary(seeds=10) == [None, None, True]
    assert [o.held for o in adversary_study.judge_claims(None, None)] == [None, None, None]
    assert timing()["hidden"] == pytest.approx(0.875)


def test_pages_hold_claims_arms_and_pictures():
    row, terms = views_study._accuracy(BA, runs(1.0, 8)), views_study._law(BA, law(1.0))
    data = {"study": "batch-augmentation", "title": "Views", "accuracy": row, "variance": terms}
    data["claims"] = [vars(o) for o in views_study.judge_claims(row, terms)]
    assert "batch-augmentation/variance-law" in views_page.html(data)
    assert png(views_page.figure(data)).startswith(b"\x89PNG")
    empty = {**data, "accuracy": None, "variance": None}
    assert png(views_page.figure(empty)).startswith(b"\x89PNG")
    row, times = adversary_study._accuracy(CA, adversarial()), timing()
    data = {"study": "concurrent-adversarial", "title": "Adversaries", "accuracy": row, "overlap": times}
    data["claims"] = [vars(o) for o in adversary_study.judge_claims(row, times)]
    assert "concurrent-adversarial/overlap" in adversary_page.html(data)
    assert png(adversary_page.figure(data)).startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_processes_are_timed():
    found = overlap.summary(overlap.timed(overlap.Timing(rounds=2, steps=1, width=4, batch=40)))
    assert found["rounds"] == 2
    assert found["bytes"]["received"] == 40 * 64
    assert all(value > 0 for value in found["milliseconds"].values())
