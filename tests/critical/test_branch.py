"""Branched training: on the quadratic, whose losses are known exactly; from a checkpoint; refusals."""

import math

import numpy as np
import pytest
from tests.recipes import recipe
from tests.reference import critical as slow

from isobatch import critical
from isobatch.critical.branch_runs import BranchJob, train_branches
from isobatch.critical.branching import critical_factor, over_seeds
from isobatch.errors import InputError
from isobatch.tasks.quadratic import curvatures
from isobatch.train.job import Options, train

FACTORS = (1, 2, 4, 8, 16)
B, ETA, C, D = 8, 0.15, 0.02, 4


def task(**parts):
    whole = {
        "task": "quadratic", "data_size": 4096, "ema": None, "options": {"dimension": D, "noise": C},
        "optimizer": {"lr": ETA}, "schedule": {"length": "4096 samples", "warmup": "0 samples", "shape": "constant"},
    }  # fmt: skip
    return recipe(**{**whole, **parts})


def test_the_branches_have_the_losses_of_theory_and_its_critical_batch():
    """At k = 16 the steepest coordinate has k eta a = 2.4 > 2: batches serve up to 8 x 8 and no longer."""
    found = critical.branch(task(), start=256, span=1024, factors=FACTORS, seeds=6, tolerance=0.002, workers=1)
    wanted = slow.branch_losses(curvatures(D), C, ETA, B, 256, 1024, FACTORS, 8, 0.5)
    means = np.mean(found.losses, axis=1)
    spread = np.std(found.losses, axis=1, ddof=1) / math.sqrt(6)
    assert np.all(np.abs(means - wanted) < 4 * spread + 0.02 * np.array(wanted))
    assert found.batch == B * critical_factor(FACTORS, wanted, 0.002)
    assert found.low <= found.batch <= found.high
    assert found.batch == 64
    assert not found.largest
    assert f"batch {found.batch}" in found.sentence


def test_a_loose_tolerance_says_at_least_and_a_lost_branch_never_qualifies():
    loose = critical.branch(task(), start=64, span=512, factors=(1, 2, 4), seeds=2, tolerance=10.0, workers=1)
    assert (loose.batch, loose.largest) == (32, True)
    assert "no larger one was tried" in loose.sentence
    wild = critical.branch(task(), start=0, span=4096, factors=(1, 64), seeds=1, tolerance=10.0, workers=1)
    assert wild.losses[1][0] > 1e3
    assert wild.batch == 8
    assert (wild.low, wild.high) == (8, 512), "one seed knows no spread"
    assert "(of 1 seed; an interval takes 3)" in wild.sentence
    with pytest.raises(
        InputError, match=r"lost at its own batch in 3 of 3 seeds \(0, 1, 2\).*lower optimizer.lr \(9\)"
    ):
        critical.branch(task(optimizer={"lr": 9.0}), start=0, span=4096, factors=(1, 2), seeds=3, workers=1)


NOISE = {
    "a knee": (0, 0, 0.005, 0.02, 0.05),
    "a slope": (0, 0.004, 0.008, 0.012, 0.03),
    "none": (0, 0, 0, 0, 0),
    "close to the tolerance": (0, 0, 0.009, 0.011, 0.05),
}


@pytest.mark.parametrize("kind", NOISE)
def test_the_interval_over_seeds_holds_the_truth(kind):
    """Five seeds, noise as large as the tolerance. Plain bootstrap of the means: 93% to 99%, two seeds 60% to 75%."""
    rng, truth = np.random.default_rng(3), np.array(NOISE[kind])[:, None]
    wanted, held = critical_factor(FACTORS, truth[:, 0], 0.01), 0
    for _ in range(30):
        low, high = over_seeds(FACTORS, truth + 0.01 * rng.standard_normal((5, 5)), 0.01)
        held += low <= wanted <= high
    assert held >= 27


def test_the_interval_by_hand():
    """Two batches, gap 0.01 over the tolerance in the mean: it reaches down as soon as the spread of a t interval does.

    Five seeds with the gaps g + d (-1, -1, 0, 1, 1): s = d, t = 2.776, so that the half width is 1.241 d.
    """
    for spread, wanted in ((0.007, (1, 1)), (0.012, (1, 2))):
        gaps = 0.02 + spread * np.array([-1, -1, 0, 1, 1])
        assert over_seeds((1, 2), np.stack([np.zeros(5), gaps]), 0.01) == wanted
    lost = np.array([[0.5] * 5, [0.5, 0.5, 0.5, 0.5, math.inf]])
    assert over_seeds((1, 2), lost, 0.01) == (1, 2)
    assert over_seeds((1, 2, 4), np.zeros((3, 2)), 0.01) == (1, 4)


def test_definition():
    assert critical_factor((1, 2, 4, 8), (0.5, 0.505, 0.52, 0.509), 0.01) == 8
    assert critical_factor((1, 2, 4), (0.5, 0.6, math.inf), 0.01) == 1
    assert critical_factor((1, 2), (math.inf, math.inf), 0.01) == 1, "what is lost is not as good as what is lost"


def test_factor_one_is_the_run_that_goes_on():
    """Bit for bit, momentum and all."""
    from isobatch.tasks import make_run
    from isobatch.train import Trainer

    made = task(optimizer={"momentum": 0.9, "lr": 0.01})
    curves = train_branches(BranchJob(made, (1, 2), 128, 256, 3, "loss", None))
    whole = Trainer(make_run(made, 3), made, order_seed=3)
    whole.train_to(128 + 256)
    assert curves.curves["1"][-1] == whole.run.evaluate()["loss"]
    assert curves.curves["2"][-1] != curves.curves["1"][-1]
    assert curves.seen == 128


def test_from_a_stored_run_and_on_where_it_stopped(tmp_path):
    made = task(schedule={"length": "512 samples", "warmup": None}, ema={"decay": 0.9})
    train(made, Options(out=tmp_path / "run", every=512))
    asked = {"span": 256, "factors": (1, 2, 4), "seeds": 3, "workers": 1, "out": tmp_path / "out"}
    place, done = tmp_path / "run" / "checkpoints", []
    found = critical.branch(made, checkpoint=place, **asked, on_done=done.append)
    assert found.start == 512
    assert len(done) == 3
    assert len(set(found.losses[0])) == 3, "each seed has its own order"
    again = critical.branch(made, checkpoint=place, **asked, budget=-1.0)
    assert again == found
    longer = made.model_copy(update={"schedule": made.schedule.model_copy(update={"length": "1024 samples"})})
    train(longer, Options(out=tmp_path / "longer", every=512))
    (tmp_path / "longer" / "checkpoints").rename(tmp_path / "moved")
    place.rename(tmp_path / "old")
    (tmp_path / "moved").rename(place)
    assert critical.branch(made, checkpoint=place, **asked).start == 1024, "a newer checkpoint is another main run"


@pytest.mark.parametrize(("change", "message"), [
    ({"span": 100}, "span=100 holds 3 steps of the largest batch 32; it takes at least 8: 256"),
    ({"factors": (2, 4)}, "must rise from 1"),
    ({"factors": (1,)}, "must rise from 1"),
    ({"factors": (1, 4, 2)}, "must rise from 1"),
    ({"start": None}, "give start, the samples of the main run, or checkpoint"),
    ({"start": -1}, "start=-1 must be at least 0"),
    ({"start": 4000}, "start=4000 and span=256 end at 4256, after the run itself at 4096"),
    ({"seeds": 0}, "seeds=0 must be at least 1"),
    ({"tolerance": -1.0}, r"tolerance=-1 must be in \[0, inf\]"),
    ({"metric": "accuracy"}, "metric='accuracy' is not measured by the task"),
    ({"budget": -1.0}, "the budget ended before any branch"),
])  # fmt: skip
def test_refusals(change, message):
    asked = {"start": 64, "span": 256, "factors": (1, 2, 4), "seeds": 1, "workers": 1, **change}
    with pytest.raises(InputError, match=message):
        critical.branch(task(), **asked)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        critical.branch(task(), checkpoint=tmp_path, span=256, factors=(1, 2), seeds=1, workers=1)
