"""Each bad input: what is said, and that nothing changed."""

import pytest
import torch
from torch import nn

from isobatch.errors import InputError
from isobatch.optimizers import InvariantAdamW, InvariantRMSprop, build, layer_squares, split_backward


def one(reference=4, micro_batch=4, **extra):
    parameter = nn.Parameter(torch.ones(2))
    return parameter, InvariantAdamW([parameter], 0.1, reference_batch=reference, micro_batch=micro_batch, **extra)


def test_one_chunk_of_more_than_the_reference_needs_a_split():
    parameter, optimizer = one()
    with optimizer.chunk(16):
        parameter.sum().backward()
    with pytest.raises(InputError, match=r"4 reference batches came as 1 chunk.*split_backward"):
        optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]
    assert not optimizer.state[parameter]


def test_one_chunk_is_enough_where_the_variance_is_kept():
    parameter, optimizer = one(variance_every=4)
    for _ in range(12):
        optimizer.zero_grad()
        split_backward(optimizer, lambda x: (parameter * x).sum(1).mean(), torch.randn(16, 2))
        optimizer.step()
    assert not optimizer.needs_chunks
    optimizer.zero_grad()
    with optimizer.chunk(16):
        parameter.sum().backward()
    optimizer.step()


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_step_of_unknown_samples(by_hand):
    parameter, optimizer = one(micro_batch=None)
    if by_hand:
        parameter.grad = torch.ones(2)
    else:
        parameter.sum().backward()
    with pytest.raises(InputError, match="the samples of this step are not known"):
        optimizer.step()
    assert not optimizer.state[parameter]
    optimizer.zero_grad()
    with optimizer.chunk(4):
        parameter.sum().backward()
    optimizer.step()


def by_hand(parameter):
    parameter.grad = torch.ones(2)


def by_autograd(parameter):
    (parameter.grad,) = torch.autograd.grad(parameter.sum(), [parameter])


def by_functorch(parameter):
    parameter.grad = torch.func.grad(torch.sum)(parameter.detach())


@pytest.mark.parametrize("bring", [by_hand, by_autograd, by_functorch])
def test_gradients_that_no_backward_brought(bring):
    parameter, optimizer = one()
    bring(parameter)
    with pytest.raises(InputError, match="no backward pass was seen"):
        optimizer.step()
    assert not optimizer.state[parameter]
    with optimizer.chunk(optimizer.reference_batch):
        bring(parameter)
    optimizer.step()
    assert torch.allclose(optimizer.state[parameter]["exp_avg_sq"], torch.full((2,), 1e-3))


def test_the_gradients_of_a_step_are_not_stepped_on_twice():
    model = nn.Linear(2, 1)
    optimizer = InvariantAdamW(model.parameters(), reference_batch=4, micro_batch=4)
    model(torch.randn(4, 2)).mean().backward()
    optimizer.step()
    with pytest.raises(InputError, match="of a step before"):
        optimizer.step()


def summed(y):
    (y[:, 0].mean() / 2).backward(retain_graph=True)
    (y[:, 1].mean() / 2).backward()


def repeated(y):
    loss = y.mean() / 2
    loss.backward(retain_graph=True)
    loss.backward()


def mixed(y):
    torch.autograd.backward([y[:, 0].mean()], retain_graph=True)
    y[:, 1].mean().backward()


@pytest.mark.parametrize("several", [summed, repeated, mixed])
def test_several_backward_passes_through_one_call_are_not_several_chunks(several):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = InvariantAdamW(model.parameters(), reference_batch=2, micro_batch=2)
    for _ in range(2):
        several(model(torch.randn(2, 3)))
    with pytest.raises(InputError, match="two backward passes went through one call"):
        optimizer.step()
    assert not optimizer.state
    optimizer.zero_grad()
    x = torch.randn(2, 3, requires_grad=True)
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), [x], create_graph=True)  # a penalty's first pass reaches no parameter
    (y.mean() + slope.square().sum()).backward()
    optimizer.step()


def test_a_reference_that_no_run_fills():
    parameter, optimizer = one(reference=1_000_000)
    with optimizer.chunk(8):
        parameter.sum().backward()
    with pytest.raises(InputError, match="reference_batch=1000000 takes 125000 steps of 8 samples"):
        optimizer.step()
    assert not optimizer.state[parameter]


def test_a_sparse_gradient():
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = InvariantAdamW(table.parameters(), reference_batch=4)
    with pytest.raises(InputError, match="sparse=False"):
        table(torch.tensor([1, 2])).sum().backward()
    assert not optimizer.state


def test_two_passes_in_one_chunk():
    parameter, optimizer = one()
    with optimizer.chunk(4):
        parameter.sum().backward()
        with pytest.raises(InputError, match="two backward passes in one chunk"):
            parameter.sum().backward()


def test_declared_and_undeclared_passes_do_not_mix():
    parameter, optimizer = one()
    with optimizer.chunk(4):
        parameter.sum().backward()
    with pytest.raises(InputError, match="declare every pass"):
        parameter.sum().backward()
    optimizer.discard()
    parameter.sum().backward()
    with pytest.raises(InputError, match="after 1 backward passes outside any chunk"), optimizer.chunk(4):
        pass
    optimizer.discard()
    with pytest.raises(InputError, match="inside another chunk"), optimizer.chunk(4), optimizer.chunk(4):
        pass


def test_gradients_cleared_behind_its_back():
    parameter, optimizer = one()
    parameter.sum().backward()
    assert optimizer.chunks.count == 1
    parameter.grad = None
    with pytest.raises(InputError, match=r"use optimizer\.zero_grad"):
        parameter.sum().backward()


def test_a_model_moved_after_the_optimizer_was_built():
    model = nn.Linear(2, 1)
    optimizer = InvariantAdamW(model.parameters(), reference_batch=4)
    model.to(torch.float64)
    x = torch.ones(16, 2, dtype=torch.float64)
    for part in x.split(4):
        with optimizer.chunk(4):
            model(part).sum().backward()
    with pytest.raises(InputError, match="was not watched"):
        optimizer.step()


def test_a_chunk_of_nothing_is_not_counted():
    parameter, optimizer = one()
    for samples in (4, 0, 4):
        with optimizer.chunk(samples):
            (parameter * samples).sum().backward()
    assert (optimizer.chunks.count, optimizer.chunks.samples) == (2, 8)
    optimizer.step()


def test_a_step_of_nothing():
    parameter, optimizer = one()
    with optimizer.chunk(0):
        (parameter * 0).sum().backward()
    with pytest.raises(InputError, match=r"0 samples.*discard"):
        optimizer.step()
    optimizer.discard()
    assert parameter.grad is None


@pytest.mark.parametrize("samples", [-1, float("nan"), float("inf"), True, "8"])
def test_samples_that_are_no_count(samples):
    _, optimizer = one()
    with pytest.raises(InputError, match="samples="), optimizer.chunk(samples):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_batch": 0}, "reference_batch=0 must be at least 1"),
        ({"reference_batch": 2.5}, "reference_batch=2.5 must be a whole number"),
        ({"micro_batch": 0}, "micro_batch=0 must be at least 1"),
        ({"noise": "layer"}, "noise='layer' must be one of coordinate, factored"),
        ({"variance_every": 0}, "variance_every=0"),
        ({"lr": -1.0}, "lr=-1 must be in"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1 never"),
        ({"betas": 0.9}, r"betas=0.9 must be two decays in \[0, 1\)"),
        ({"betas": (0.9,)}, "must be two decays"),
        ({"betas": (0.9, 0.99, 0.999)}, "must be two decays"),
        ({"lr": torch.tensor(0.1)}, r"give lr\.item\(\)"),
        ({"eps": float("nan")}, "eps=nan must be finite"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        InvariantAdamW([nn.Parameter(torch.ones(1))], **{"reference_batch": 4, **change})


GROUPS = {
    "rising": ({"lr": -0.1}, "lr of a parameter group=-0.1 must be in"),
    "a word": ({"lr": "fast"}, "lr of a parameter group"),
    "a tensor": ({"lr": torch.tensor(0.1)}, "lr of a parameter group"),
    "eps": ({"eps": float("nan")}, "eps of a parameter group"),
    "decay": ({"weight_decay": -1.0}, "weight_decay of a parameter group"),
    "beta of 1": ({"betas": (0.9, 1.0)}, r"betas of a parameter group\[1\]=1 never takes in"),
    "one beta": ({"betas": 0.9}, "must be two decays"),
    "maximize": ({"maximize": True}, "has no such form; negate the loss"),
    "amsgrad": ({"amsgrad": True}, "amsgrad=True of a parameter group"),
    "reference": ({"reference_batch": 7}, "reference_batch=7 of a parameter group, 4 of the optimizer"),
    "noise": ({"noise": "row"}, "noise='row' of a parameter group"),
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_options_of_a_group_that_are_out_of_range_or_would_be_passed_over(name, later):
    change, message = GROUPS[name]
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    group = {"params": [second], **change}
    if not later:
        with pytest.raises(InputError, match=message):
            InvariantAdamW([{"params": [first]}, group], 0.1, reference_batch=4)
        return
    optimizer = InvariantAdamW([first], 0.1, reference_batch=4, micro_batch=4)
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    with optimizer.chunk(4):
        (first * second).sum().backward()
    optimizer.step()
    assert second.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("form", ["alpha", "momentum"])
def test_options_of_a_group_of_rmsprop(form):
    with pytest.raises(InputError, match=f"{form} of a parameter group=1 never"):
        InvariantRMSprop([{"params": [nn.Parameter(torch.ones(2))], form: 1.0}], reference_batch=4)


def test_options_that_say_nothing_new_are_taken():
    parameter = nn.Parameter(torch.ones(2))
    group = {"params": [parameter], "maximize": False, "fused": None, "name": "all", "reference_batch": 4, "lr": 0.0}
    optimizer = InvariantAdamW([group], 0.1, reference_batch=4, micro_batch=4)
    for rate in (0.0, torch.tensor(0.1)):  # as a scheduler of tensors may write it
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        with optimizer.chunk(4):
            parameter.sum().backward()
        optimizer.step()
        assert parameter.tolist() == pytest.approx([1 - 1.01 * 0.1 * bool(rate)] * 2, rel=0.06)


@pytest.mark.parametrize("window", [1, 8])
def test_weights_without_gradient_stay_where_eps_is_nothing_in_float16(window):
    """torch's own AdamW makes NaN of them; the others go as in float64."""
    steps = [([0.5, 0.0, 0.25], [1.0, 0.0]), ([-0.25, 0.0, 0.25], [0.5, 0.0])]
    found = []
    for dtypes in ((torch.float16, torch.bfloat16), (torch.float16, torch.float32), (torch.float64, torch.float64)):
        weights = [nn.Parameter(torch.ones(n, dtype=dtype)) for n, dtype in zip((3, 2), dtypes, strict=True)]
        optimizer = InvariantAdamW(weights, 0.1, weight_decay=0.0, reference_batch=window)
        for gradients in steps:
            optimizer.zero_grad()
            with optimizer.chunk(1):
                sum(
                    (w * torch.tensor(g, dtype=w.dtype)).sum() for w, g in zip(weights, gradients, strict=True)
                ).backward()
            optimizer.step()
        found.append(torch.cat([w.detach().double() for w in weights]))
    for narrow in found[:2]:
        torch.testing.assert_close(narrow, found[2], atol=8e-3, rtol=0)
        assert narrow[[1, 4]].tolist() == [1.0, 1.0]


def test_complex_parameters_and_a_missing_reference():
    with pytest.raises(InputError, match="complex"):
        InvariantRMSprop([nn.Parameter(torch.ones(1, dtype=torch.complex64))], reference_batch=4)
    with pytest.raises(InputError, match="reference_batch=None"):
        build("invariant_adamw", [nn.Parameter(torch.ones(1))], lr=0.1)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.factor


def shared():
    first = nn.Linear(3, 3)
    second = nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), Scale()), "layer '1' is a Scale, not one of Linear"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "layer '1' is a BatchNorm1d"),
        (shared(), "layers '0' and '1' share a parameter"),
        (twice(), "layer '0' is used twice"),
        (
            nn.Sequential(nn.Flatten(0, 0), nn.Unflatten(0, (4, 4)), nn.Linear(3, 3)),
            "without the batch of 16 on axis 0",
        ),
    ],
)
def test_layers_that_cannot_be_seen_through(model, message):
    optimizer = InvariantAdamW(model.parameters(), reference_batch=4)
    with pytest.raises(InputError, match=message), layer_squares(model, optimizer, batch=16):
        model(torch.randn(16, 3)).sum().backward()


@pytest.mark.parametrize("per_row", [0, -1.0, float("nan"), float("inf"), "1"])
def test_rows_that_hold_no_samples(per_row):
    model = nn.Linear(3, 1)
    optimizer = InvariantAdamW(model.parameters(), reference_batch=4)
    with pytest.raises(InputError, match="per_row"), layer_squares(model, optimizer, batch=8, per_row=per_row):
        pass


@pytest.mark.parametrize("tensors", [(), (torch.ones(3), torch.ones(4)), (torch.ones(0),)])
def test_a_batch_that_cannot_be_split(tensors):
    parameter, optimizer = one()
    with pytest.raises(InputError, match="rows; give"):
        split_backward(optimizer, lambda *x: parameter.sum(), *tensors)


def test_an_auxiliary_gradient_is_not_a_chunk():
    parameter, optimizer = one()
    torch.autograd.grad(parameter.sum(), parameter)
    assert optimizer.chunks.count == 0


def test_unused_parameters_and_a_late_thaw():
    used, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = InvariantAdamW([used, late], 0.1, reference_batch=1, micro_batch=1, variance_every=3)
    for step in range(12):
        if step == 6:
            late.requires_grad_(True)
            optimizer.zero_grad()
            optimizer.step()  # with no gradients: does nothing but watch what is new
        optimizer.zero_grad()
        loss = (used + late) if step != 8 else used
        for scale in (1.0, 2.0):
            with optimizer.chunk(1):
                (loss * scale).sum().backward()
        optimizer.step()
        assert torch.isfinite(used).all()
    assert late.tolist() != [1.0, 1.0]


def scaled_step(optimizer, scale, unscale=False, clip=None):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))  # GradScaler makes its scale with the first loss
    if unscale:
        scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    scaler.step(optimizer)


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_loss_scale_and_a_clip_reach_the_squares_too(unscale, clip):
    outcomes = []
    for scale in (1.0, 1024.0):
        parameter, optimizer = one(reference=4)
        for value in (1.0, 3.0):
            with optimizer.chunk(4):
                (parameter * value * scale / 2).sum().backward()
        if scale == 1:
            if clip is not None:
                nn.utils.clip_grad_norm_([parameter], clip if unscale else clip / 1024)
            optimizer.step()
        else:
            scaled_step(optimizer, scale, unscale, clip)
        outcomes.append(optimizer.state[parameter]["exp_avg_sq"])
    assert torch.allclose(*outcomes, rtol=1e-5)


def test_an_overflow_skips():
    parameter, optimizer = one()
    (parameter * float("inf")).sum().backward()
    scaled_step(optimizer, 1024.0)
    assert parameter.tolist() == [1.0, 1.0]
    assert not optimizer.state[parameter]
    optimizer.zero_grad()
    assert optimizer.chunks.count == 0
