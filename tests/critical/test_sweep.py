"""The sweep: goals found on a track, rates searched outwards, and a quadratic whose noise scale is known."""

import math

import pytest
from tests.recipes import recipe

from isobatch import critical
from isobatch.critical import rates, trial
from isobatch.critical.trial import Track
from isobatch.errors import InputError

RUN = {"seeds": 1, "limit": 5, "workers": 1}


def task(**parts):
    """One coordinate of curvature a = 0.03: B_noise = noise/(a theta)^2 = 4.4/theta^2, best learning rate below 1/a."""
    whole = {
        "task": "quadratic", "data_size": 4096, "ema": None, "options": {"dimension": 1, "noise": 0.004},
        "optimizer": {"lr": 5.0}, "schedule": {"length": "2048 samples", "warmup": "0 samples", "shape": "constant"},
    }  # fmt: skip
    return recipe(**{**whole, **parts})


def test_a_goal_is_found_between_two_evaluations():
    track = Track(8, 0.1, 0, [0, 10, 20, 40], [4.0, 2.0, 1.0, 0.5])
    assert trial.reached(track, 2.0, "loss", 0.0) == 10
    assert trial.reached(track, 1.5, "loss", 0.0) == pytest.approx(math.sqrt(200))
    assert trial.reached(track, 0.4, "loss", 0.0) == math.inf
    assert 20 < trial.reached(track, 1.0, "loss", 0.5) < 40
    rising = Track(8, 0.1, 0, [0, 10, 20], [10.0, 50.0, 90.0])
    assert trial.reached(rising, 70.0, "accuracy", 0.0) == pytest.approx(math.sqrt(200))
    assert trial.reached(rising, 70.0, "loss", 0.0, -1) == pytest.approx(math.sqrt(200))
    assert trial.reached(track, 1.5, "perplexity", 0.0, 1) == pytest.approx(math.sqrt(200))


def test_the_lag_of_smoothing_is_one_factor_at_every_batch():
    """A power law in the steps: the factor by which a goal comes later does not depend on where it lies."""
    steps = trial.stops(5000)
    track = Track(8, 0.1, 0, [0, *steps], [9.0, *(step**-0.5 for step in steps)])
    factors = [trial.reached(track, goal, "loss", 0.5) / goal**-2 for goal in (0.1, 0.05, 0.02)]
    assert max(factors) / min(factors) < 1.03


def test_rates_are_searched_until_the_best_is_inside():
    asked = []

    def run(new):
        asked.append(list(new))
        return {lr: [(math.log(lr) - math.log(6.0)) ** 2, (math.log(lr) - math.log(3.0)) ** 2] for lr in new}

    scores = rates.explore(0.5, None, run)
    assert asked[0] == [0.25, 0.5, 1.0]
    assert rates.best(scores, 0) == pytest.approx(6.0, rel=0.1)
    assert rates.best(scores, 1) == pytest.approx(3.0, rel=0.1)
    assert all(min(scores) < rates.best(scores, goal) < max(scores) for goal in (0, 1))
    assert len(scores) <= rates.MOST
    assert rates.explore(0.5, [0.1, 0.2], run).keys() == {0.1, 0.2}
    assert rates.explore(0.5, None, lambda new: None) is None


def test_a_run_at_another_batch_follows_the_plan_but_for_its_learning_rate():
    base = recipe(optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, ema={"decay": 0.9})
    made = trial.at(base, 32, 5e-3)
    assert made.optimizer.lr == 5e-3
    assert made.optimizer.betas == base.at(32).recipe.optimizer.betas
    assert made.optimizer.lr * made.optimizer.weight_decay / 32 == pytest.approx(1e-4 / 8)
    assert made.ema is None
    assert made.staircase().mean(0, 10_000) == 1


def test_a_sweep_finds_hyperbolas_and_goes_on_where_it_stopped(tmp_path):
    """From theta = 1 to loss 3e-4 (theta = 0.14) B_noise rises from 4 to 220; an early goal sees less of it."""
    done = []
    asked = {"batches": [4, 16, 64, 256], "seeds": 2, "limit": 200, "workers": 1, "out": tmp_path}
    asked["goals"] = [0.0015, 0.0003]
    found = critical.sweep(task(), **asked, on_done=done.append)
    assert [goal.goal for goal in found.goals] == [0.0015, 0.0003]
    assert len(done) == len(found.tracks)
    for goal in found.goals:
        assert not goal.missed
        assert goal.points[0].steps > goal.points[-1].steps
    first, last = (goal.fit.critical.value for goal in found.goals)
    assert 1 < first < last < 220
    again = critical.sweep(task(), **asked, budget=-1.0)
    assert again.goals == found.goals
    assert not again.left
    none = critical.sweep(task(), **{**asked, "out": tmp_path / "empty"}, budget=-1.0)
    assert none.left == (4, 16, 64, 256)
    assert "only 0 batches reached it" in none.goals[0].sentence


def test_goals_out_of_reach_are_missed_not_invented():
    found = critical.sweep(task(), goals=[1e-9], batches=[4, 8, 16], **RUN)
    assert found.goals[0].missed == (4, 8, 16)
    assert found.goals[0].fit is None


BAD = [
    ({"goals": []}, r"goals=\[\] is empty"),
    ({"goals": [5.0]}, "goal=5 is reached before training: loss starts at"),
    ({"goals": [float("nan")]}, "goal=nan must be finite"),
    ({"batches": [4, 8]}, "are 2 different ones; a hyperbola takes at least 3"),
    ({"batches": [4, 8, 0]}, "batch=0 must be at least 1"),
    ({"seeds": 0}, "seeds=0 must be at least 1"),
    ({"limit": 0}, "limit=0 must be at least 1"),
    ({"smoothing": 1.0}, r"smoothing=1 must be in \[0, 1\)"),
    ({"metric": "accuracy"}, "metric='accuracy' is not measured by the task; it has loss"),
    ({"lrs": {4: [-1.0]}}, r"learning rate=-1 must be in \(0, inf\]"),
    ({"lrs": {4: []}}, "lrs for batch 4 is empty"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        critical.sweep(task(), **{"goals": [0.001], "batches": [4, 8, 16], **RUN, **change})


def test_a_recipe_without_a_schedule_needs_a_limit():
    with pytest.raises(InputError, match="give limit"):
        critical.sweep(recipe(task="quadratic", schedule=None, ema=None), goals=[0.1], batches=[4, 8, 16])


@pytest.mark.parametrize(("low", "high", "batches", "named"), [
    (14.0, 21.0, 8, True), (0.0, 21.0, 8, False), (14.0, None, 8, False), (14.0, 21.0, 3, False), (4.0, 21.0, 8, False),
])  # fmt: skip
def test_a_picture_names_no_number_that_is_not_identified(low, high, batches, named):
    """The rule of the text: at least four batches, and an interval whose ends exist and lie within a factor of 4."""
    from isobatch.critical.pictures import front_figure

    critical = {"value": 17.7, "low": low, "high": high}
    fit = {"steps": {"value": 30.0}, "critical": critical, "residual": 0.1, "batches": batches, "level": 0.95}
    points = [{"batch": b, "steps": 30 * (1 + 17.7 / b)} for b in (4, 16, 64)]
    goal = {"goal": 0.5, "points": points, "fit": fit}
    figure = front_figure({"goals": [goal], "metric": "loss", "unit": "samples", "recipe": {}, "seeds": 3})
    [label] = [text.get_text() for text in figure.legends[0].get_texts()]
    assert label == f"loss 0.5: critical batch {'17.7' if named else 'not identified'}"
    for axes in figure.axes:
        drawn = [x for line in axes.lines for x in line.get_xdata()]
        low_, high_ = axes.get_xlim()
        assert low_ >= min(drawn) / 1.3
        assert high_ <= max(drawn) * 1.3
