"""The direction that a task declares holds in whole sweeps and branches, whatever the metric is called."""

import pytest
from tests.recipes import recipe

from isobatch import critical

# metric, and its value where the loss has one
METRICS = {"loss": lambda loss: loss, "cost": lambda loss: loss, "credit": lambda loss: 2 - loss}


def mirrored(lr, dimension, noise):
    return recipe(
        task="tests.critical.mirrored:make",
        data_size=4096,
        ema=None,
        options={"dimension": dimension, "noise": noise},
        optimizer={"lr": lr},
        schedule={"length": "2048 samples", "warmup": "0 samples", "shape": "constant"},
    )


@pytest.mark.parametrize("metric", METRICS)
def test_sweep(metric):
    asked = {"batches": [4, 16, 64], "seeds": 1, "limit": 100, "workers": 1, "smoothing": 0.0}
    asked["lrs"] = {4: [5.0], 16: [15.0], 64: [20.0]}
    base = mirrored(5.0, 1, 0.004)
    truth = critical.sweep(base, goals=[0.003, 0.001], metric="loss", **asked)
    found = critical.sweep(base, goals=[METRICS[metric](goal) for goal in (0.003, 0.001)], metric=metric, **asked)
    for mine, wanted in zip(found.goals, truth.goals, strict=True):
        assert mine.missed == wanted.missed == ()
        assert [p.steps for p in mine.points] == pytest.approx([p.steps for p in wanted.points], rel=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_branch(metric):
    """The longest branch is the worst one by far, in either direction."""
    asked = {"start": 256, "span": 1024, "factors": (1, 2, 4, 8, 16), "seeds": 2, "workers": 1}
    base = mirrored(0.15, 4, 0.02)
    truth = critical.branch(base, metric="loss", tolerance=0.002, **asked)
    found = critical.branch(base, metric=metric, tolerance=0.002, **asked)
    assert (found.batch, found.largest) == (truth.batch, False)
    wanted = [METRICS[metric](loss) for loss in truth.losses[0]]
    assert list(found.losses[0]) == pytest.approx(wanted, rel=1e-5)
