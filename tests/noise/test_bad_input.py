"""Rows 21, 23, 24 and 25 of the fault table, as far as they are the estimator's: each has its stated outcome."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.noise import CoupledSamplesWarning, NoiseScale, measure
from isobatch.noise.half_batches import sum_in_disguise


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def data(step, rows=16):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def loss(net, x, reduce="mean"):
    each = (net(x).squeeze(1) - x.sum(1) - 1).square()
    return each.mean() if reduce == "mean" else each.sum()


def train(net, noise, steps, *, rows=lambda step: 16, micro=4, spoil=None, reduce="mean"):
    for step in range(steps):
        net.zero_grad()
        parts = data(step, rows(step)).split(micro)
        for i, part in enumerate(parts):
            scaled = loss(net, part, reduce) * (len(part) / rows(step) if reduce == "mean" else 1)
            (scaled * math.nan if spoil == (step, i) else scaled).backward()
        noise.update(samples=rows(step))
    return noise.estimate()


def test_one_chunk_a_step_is_undefined_with_the_reason():
    net = build()
    found = train(net, NoiseScale(net, every=1, capture="chunks"), 3, micro=16)
    assert found.verdict == "undefined"
    assert found.value is None
    assert (found.low, found.high) == (0.0, math.inf)
    assert "one chunk" in found.reason
    assert found.reason in found.sentence


def test_one_sample_a_step_is_undefined():
    net = build()
    found = train(net, NoiseScale(net, every=1), 3, rows=lambda step: 1, micro=1)
    assert found.verdict == "undefined"


def test_a_model_whose_rows_cannot_be_told_apart_is_undefined():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 1, dtype=torch.float64))

        def forward(self, x):
            return x @ self.w

    net = Bare()
    found = train(net, NoiseScale(net, every=1), 2, micro=16)
    assert found.verdict == "undefined"
    assert "noise.halves" in found.reason


def test_nothing_measured_yet_and_no_backward_pass():
    net = build()
    noise = NoiseScale(net, every=1)
    assert noise.estimate().verdict == "undefined"
    noise.update(samples=4)
    assert "no backward pass" in noise.estimate().reason


def test_zero_gradients_are_undefined():
    net = build()
    noise = NoiseScale(net, every=1)
    for _ in range(3):
        net.zero_grad()
        (loss(net, data(0)) * 0).backward()
        noise.update(samples=16)
    found = noise.estimate()
    assert found.verdict == "undefined"
    assert "zero" in found.reason
    assert found.measurements == 3


@pytest.mark.parametrize("capture", ["chunks", "rows"])
def test_a_bad_micro_batch_is_excluded_and_the_rest_is_untouched(capture):
    """One NaN never enters: the estimate equals that of the run without the step, and later steps count."""
    options = {"every": 1, "half_life": math.inf, "capture": capture, "rows": 16}
    net = build()
    clean = train(net, NoiseScale(net, **options), 20)
    net = build()
    dirty = train(net, NoiseScale(net, **options), 20, spoil=(7, 2))
    assert dirty.measurements == 19
    assert dirty.excluded == 1
    assert "1 measurement excluded" in dirty.sentence
    assert math.isfinite(dirty.value)
    assert abs(dirty.value / clean.value - 1) < 0.5


def test_only_bad_steps_are_undefined():
    net = build()
    noise = NoiseScale(net, every=1)
    (loss(net, data(0)) * math.inf).backward()
    noise.update(samples=16)
    found = noise.estimate()
    assert found.verdict == "undefined"
    assert found.excluded == 1


def test_element_wise_clipping_is_found_out():
    net = build()
    noise = NoiseScale(net, every=1)
    for part in data(0).split(4):
        (loss(net, part) / 4).backward()
    nn.utils.clip_grad_value_(net.parameters(), 0.01)
    noise.update(samples=16)
    assert noise.estimate().excluded == 1


def test_gradients_left_over_from_another_step_are_found_out():
    net = build()
    loss(net, data(1)).backward()
    noise = NoiseScale(net, every=1)
    for part in data(0).split(4):
        (loss(net, part) / 4).backward()
    noise.update(samples=16)
    assert noise.estimate().excluded == 1


def test_a_skipped_step_leaves_clock_and_averages():
    net = build()
    noise = NoiseScale(net, every=1)
    train(net, noise, 3)
    before, seen = noise.estimate(), noise.seen
    net.zero_grad()
    (loss(net, data(5)) * math.nan).backward()
    noise.discard()
    assert noise.seen == seen
    assert noise.estimate() == before
    found = train(net, noise, 2)
    assert (found.measurements, found.excluded) == (5, 0)


def test_cleared_gradients_without_discard_are_named():
    net = build()
    noise = NoiseScale(net, every=1, capture="chunks")
    loss(net, data(0)).backward()
    net.zero_grad()
    loss(net, data(1)).backward()
    noise.update(samples=16)
    assert "noise.discard()" in noise.estimate().reason


def test_batch_norm_is_warned_of():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()
    with pytest.warns(CoupledSamplesWarning, match="batch norm"):
        noise = NoiseScale(net, every=1)
    assert any("batch norm" in text for text in noise.estimate().caveats)
    with pytest.warns(CoupledSamplesWarning):
        found = measure(loss, net, data(0, 64).split(8))
    assert found.caveats
    assert int(net[1].num_batches_tracked) == 0
    NoiseScale(net.eval())


def test_a_contrastive_loss_is_warned_of():
    def contrastive(net, x):
        z = nn.functional.normalize(net[0](x), dim=1)
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(x)))

    net = build()
    with pytest.warns(CoupledSamplesWarning, match="coupled"):
        found = measure(contrastive, net, data(0, 64).split(8))
    assert any("coupled" in text for text in found.caveats)


def test_a_sum_is_detected_and_named():
    net = build()
    with pytest.raises(InputError, match="sum over samples"):
        measure(lambda m, x: loss(m, x, "sum"), net, data(0, 64).split(8))
    noise = NoiseScale(net)
    with pytest.raises(InputError, match="sum over samples"):
        noise.halves(lambda x, y: (net(x).squeeze(1) - y).square().sum(), data(0), data(1).sum(1))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("rows", [lambda step: 16 if step < 12 else 64, lambda step: 64 if step < 12 else 16])
def test_a_change_of_batch_needs_nothing_and_shows_a_sum(rows, reduce):
    net = build()
    noise = NoiseScale(net, every=1, half_life=math.inf)
    found = train(net, noise, 24, rows=rows, reduce=reduce)
    if reduce == "sum":
        assert found.verdict == "undefined"
        assert "sum over samples" in found.reason
        return
    truth = measure(loss, net, [data(step, 64) for step in range(100, 400)])
    assert found.verdict == "identified"
    assert found.low < truth.value < found.high


def drifting(rng):
    """tr(Sigma) of a mean loss that grows fivefold in a run whose batch was doubled once, early."""
    return np.linspace(1, 5, 112) * rng.lognormal(0, 0.1, 112), np.repeat([64.0, 128.0], [12, 100])


def short_last(rng):
    """Heavy tails, and the last batch of an epoch is a short one."""
    return rng.lognormal(0, 1.5, 40), np.array([64.0] * 39 + [9.0])


def just_doubled(rng):
    return rng.lognormal(0, 1, 40), np.repeat([64.0, 128.0], [38, 2])


def ragged(rng):
    """Every tenth batch is short."""
    return rng.lognormal(0, 0.5, 60), np.where(np.arange(60) % 10 == 9, 9.0, 64.0)


@pytest.mark.parametrize("kind", [drifting, short_last, just_doubled, ragged])
def test_a_mean_is_not_accused_of_being_a_sum_and_a_sum_is_found(kind):
    rng = np.random.default_rng(0)
    runs = [kind(rng) for _ in range(500)]
    accused = sum(bool(sum_in_disguise(*run)) for run in runs)
    assert accused <= 8  # 0.5%, and three standard errors of 500 trials
    if kind in (drifting, ragged):
        assert all(sum_in_disguise(traces * (batches / 64) ** 2, batches) for traces, batches in runs[:50])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_that_read_the_same_samples_are_named(parts, dtype):
    """As ranks without a distributed sampler do; more samples of the kind would never identify anything."""
    net = build().to(dtype)
    noise = NoiseScale(net, every=1, capture="chunks")
    for step in range(14):
        net.zero_grad()
        for _ in range(parts):
            (loss(net, data(step, 4).to(dtype)) / parts).backward()
        noise.update(samples=4 * parts)
    found = noise.estimate()
    assert (found.verdict, found.value) == ("undefined", None)
    assert "one and the same gradient" in found.reason


def test_dropout_and_modes_survive_the_check():
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    net[0].eval()
    state = torch.get_rng_state()
    measure(loss, net, data(0, 32).split(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert (net[0].training, net[1].training) == (False, True)
    assert all(p.grad is None for p in net.parameters())


def test_a_chunk_that_is_not_finite_is_excluded_from_one_shot():
    net = build()
    parts = list(data(0, 64).split(8))
    clean = measure(loss, net, parts[:3] + parts[4:])
    parts[3] = parts[3] * math.nan
    found = measure(loss, net, parts)
    assert found.excluded == 1
    assert found.value == pytest.approx(clean.value, rel=1e-9)
    alone = measure(loss, net, parts[3:5])
    assert alone.verdict == "undefined"


def test_sparse_gradients_are_refused_by_name():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    NoiseScale(net, every=1)
    noise = NoiseScale(net, every=1, capture="chunks")
    with pytest.raises(InputError, match=r"'0.weight' got a sparse"):
        net(torch.tensor([1, 2])).sum().backward()
    del noise


def test_estimates_are_json():
    net = build()
    found = train(net, NoiseScale(net, every=1, groups="layer"), 2)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["verdict"] == "not identified"
    json.dumps(NoiseScale(net).estimate().to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_life": 0}, "half_life=0"),
        ({"half_life": math.nan}, "half_life"),
        ({"every": 0}, "every=0"),
        ({"every": True}, "every=True"),
        ({"budget": 0}, "budget=0"),
        ({"budget": 2}, "budget=2"),
        ({"geometry": "cubic"}, "one of euclidean"),
        ({"geometry": "adam"}, "optimizer="),
        ({"groups": "optimizer"}, "optimizer="),
        ({"groups": "blocks"}, "groups='blocks'"),
        ({"capture": "magic"}, "one of auto"),
        ({"rows": 0}, "rows=0"),
        ({"data_size": 1}, "data_size=1"),
        ({"level": 0}, "level=0"),
        ({"level": 1}, "level=1"),
    ],
)
def test_settings(options, message):
    with pytest.raises(InputError, match=message):
        NoiseScale(build(), **options)


@pytest.mark.parametrize("samples", [0, -4, math.nan, "4", True])
def test_samples(samples):
    with pytest.raises(InputError, match="samples="):
        NoiseScale(build()).update(samples=samples)


def test_nothing_to_train():
    net = build().requires_grad_(False)
    with pytest.raises(InputError, match="unfreeze"):
        NoiseScale(net)
    with pytest.raises(InputError, match="unfreeze"):
        measure(loss, net, data(0).split(4))
    with pytest.raises(InputError, match="no parameters"):
        NoiseScale(nn.Tanh())
