import copy

import pytest
import torch
from tests.optimizer_rows import ROWS

from isobatch.errors import InputError
from isobatch.optimizers import bind, build, prepare_settings, write_prepared, write_settings

TRAINED = [row for row in ROWS if row.trained]


def two_groups(*shape):
    shape = shape or (2,)
    return [
        {"params": [torch.nn.Parameter(torch.ones(shape))]},
        {"params": [torch.nn.Parameter(torch.ones(shape))], "lr": 0.01, "weight_decay": 0.0},
    ]


def test_every_row_builds_steps_and_takes_its_own_settings():
    values = {"lr": 0.3, "betas": (0.5, 0.6), "momentum": 0.7, "weight_decay": 0.2, "eps": 1e-4}
    for row in TRAINED:
        name = row.name
        groups = two_groups(2, 2) if row.matrices else two_groups()
        optimizer = build(name, groups, lr=0.1, weight_decay=0.1, reference_batch=4)
        moments = ["betas" if moment == "alpha" else moment for moment in row.moments]
        keys = ["lr", "weight_decay", *moments, *(["eps"] if row.eps else [])]
        write_settings(optimizer, **{key: values[key] for key in keys})
        first, second = optimizer.param_groups
        assert first["lr"] == pytest.approx(0.3)
        assert second["lr"] == pytest.approx(0.03)
        assert first["weight_decay"] == pytest.approx(0.2)
        assert second["weight_decay"] == 0
        assert type(optimizer).__name__.lower().removeprefix("invariant") == name.removeprefix("invariant-")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_build_is_the_stock_optimizer(name):
    stock = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-3, weight_decay=0.1, momentum=0.5),
    }[name]
    momentum = {"sgd": 0.9, "rmsprop": 0.5}.get(name, 0.0)
    mine, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours = build(
        name,
        [mine],
        lr=0.1,
        momentum=momentum,
        nesterov=name == "sgd",
        betas=(0.8, 0.9),
        eps=1e-3,
        weight_decay=0.1,
    )
    other = stock([theirs])
    for value in (1.0, -2.0, 0.5):
        mine.grad = torch.full((3,), value)
        theirs.grad = torch.full((3,), value)
        ours.step()
        other.step()
    assert torch.allclose(mine, theirs, rtol=1e-6, atol=0)


def test_ratios_survive_a_schedule_through_zero_and_the_state_dict():
    optimizer = build("adamw", two_groups(), lr=0.1, weight_decay=0.1)
    write_settings(optimizer, lr=0.0, weight_decay=0.0)
    state = copy.deepcopy(optimizer.state_dict())
    again = build("adamw", two_groups(), lr=0.5, weight_decay=0.5)
    again.load_state_dict(state)
    write_settings(again, lr=1.0, weight_decay=1.0)
    assert [group["lr"] for group in again.param_groups] == pytest.approx([1.0, 0.1])
    assert [group["weight_decay"] for group in again.param_groups] == [1.0, 0.0]


def test_bind_takes_the_optimizers_defaults_and_never_twice():
    optimizer = torch.optim.SGD(two_groups(), lr=0.1, weight_decay=0.1)
    bind(optimizer)
    write_settings(optimizer, lr=0.2)
    bind(optimizer)
    assert [group["lr_ratio"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize(
    ("group", "base", "message"),
    [
        ({}, {"lr": float("nan")}, "base lr=nan must be finite"),
        ({}, {"lr": -0.1}, "base lr=-0.1 must be in"),
        ({}, {"lr": float("inf")}, "base lr=inf"),
        ({}, {"lr": "fast"}, "base lr='fast' must be a number"),
        ({}, {"weight_decay": -1.0}, "base weight_decay=-1 must be in"),
        ({"lr_ratio": -1.0}, {}, "lr_ratio of group 1=-1 must be in"),
        ({"weight_decay_ratio": "none"}, {}, "weight_decay_ratio of group 1='none' must be a number"),
    ],
)
def test_bases_and_ratios_out_of_range_are_not_bound(group, base, message):
    groups = two_groups()
    groups[1] |= group
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
    with pytest.raises(InputError, match=message):
        bind(optimizer, **base)
    assert "lr_ratio" not in optimizer.param_groups[0]


def test_a_groups_own_ratio_wins_over_a_base_of_zero():
    groups = two_groups()
    groups[1]["weight_decay_ratio"] = 0.0
    optimizer = build("sgd", groups, lr=0.1)
    write_settings(optimizer, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_a_tensor_lr_is_filled_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rate, foreach=False)
    bind(optimizer)
    write_settings(optimizer, lr=0.4)
    assert float(rate) == pytest.approx(0.4)


def test_nothing_is_written_when_one_group_refuses():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    bind(optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.raises(InputError, match="group 1 was never bound"):
        write_settings(optimizer, lr=0.4)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adamx"}, "'adamx' is not known; choose one of sgd, adam"),
        ({"coupled": True}, "'adamw' has decoupled weight decay, not L2; L2 decay: sgd, adam"),
        ({"lr": 0.0}, "lr=0 must be in"),
        ({"lr": float("nan")}, "must be finite"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1 never takes in"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\]=-0.1 must be in"),
        ({"betas": 0.9}, "betas=0.9 must be two decays"),
        ({"params": []}, "cannot be built.*empty parameter list"),
        ({"params": torch.nn.Parameter(torch.ones(2))}, "params=Parameter must be several parameters"),
        ({"params": [torch.ones(1, requires_grad=True) * 2]}, "non-leaf.*give leaf tensors"),
        ({"params": ["weight"]}, "cannot be built"),
        ({"name": "lamb", "params": []}, "'lamb' cannot be built"),
        ({"name": "sgd", "params": []}, "'sgd' cannot be built"),
        ({"momentum": 0.9}, "momentum=0.9 has no meaning for optimizer='adamw'"),
        ({"nesterov": True}, "nesterov=True needs"),
        ({"weight_decay": -1.0}, "weight_decay=-1 must be in"),
    ],
)
def test_build_refuses(change, message):
    arguments = {"name": "adamw", "params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1, **change}
    with pytest.raises(InputError, match=message):
        build(**arguments)


def test_settings_prepared_for_other_groups_are_not_half_written():
    optimizer = build("sgd", [torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.5)
    rows = prepare_settings(optimizer, {"momentum": 0.9})
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_ratio": 1.0})
    with pytest.raises(InputError, match=r"settings of 1 parameter groups for an optimizer of 2.*again"):
        write_prepared(optimizer, rows, lr=0.2)
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.1, 0.5)] * 2


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), (0.9, 1.0)])
def test_betas_that_are_not_two_decays_are_not_written(name, betas):
    optimizer = build(name, [torch.nn.Parameter(torch.ones(1))], lr=0.1)
    before = dict(optimizer.param_groups[0])
    with pytest.raises(InputError, match="betas"):
        write_settings(optimizer, betas=betas)
    assert optimizer.param_groups[0] == before


def test_decay_beside_a_base_of_zero_is_refused():
    group = {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.1}
    with pytest.raises(InputError, match=r"group 0 has weight_decay=0\.1 beside a base of 0"):
        build("sgd", [group], lr=0.1)


@pytest.mark.parametrize("setting", [{"betas": (0.5, 0.5)}, {"eps": 1e-3}])
def test_a_setting_that_the_optimizer_lacks_is_refused(setting):
    optimizer = build("sgd", [torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(InputError, match="SGD has no"):
        write_settings(optimizer, **setting)


def test_adam_takes_one_pass_over_all_state_where_torch_has_one():
    real, complex_ = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    late = torch.nn.Parameter(torch.ones(2))
    for name in ("adam", "adamw"):
        for params in ([real, late], [("a", real), ("b", late)], [{"params": [real]}, {"params": late}]):
            optimizer = build(name, iter(params), lr=0.1)
            assert all(group["fused"] for group in optimizer.param_groups)
            for _ in range(2):  # one parameter has no gradient yet
                real.grad, late.grad = torch.ones(2), None
                optimizer.step()
            late.grad = torch.ones(2)
            optimizer.step()
            assert [float(optimizer.state[p]["step"]) for p in (real, late)] == [3, 1]
        optimizer = build(name, [real, complex_], lr=0.1)
        assert optimizer.param_groups[0]["foreach"]
        complex_.grad = torch.ones(2, dtype=torch.complex64)
        optimizer.step()
        assert not torch.equal(complex_, torch.ones_like(complex_))


@pytest.mark.parametrize("shape", [(3,), (), (2, 3, 3, 3)])
def test_muon_refuses_what_is_no_matrix(shape):
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(shape))]
    for given in (params, [{"params": params}]):
        with pytest.raises(InputError, match=r"orthogonalises matrices.* shape \(.*a group with an optimizer of their"):
            build("muon", given, lr=0.1)


def test_muon_is_torchs_own():
    torch.manual_seed(0)
    start = torch.randn(3, 2)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = build("muon", [mine], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.2)
    other = torch.optim.Muon([theirs], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.2)
    for _ in range(3):
        gradient = torch.randn(3, 2)
        mine.grad, theirs.grad = gradient, gradient.clone()
        ours.step()
        other.step()
    assert torch.equal(mine, theirs)
