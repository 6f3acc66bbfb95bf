"""What people do around an invariant optimizer: right, or refused; never plain Adam without a word."""

import contextlib

import numpy as np
import pytest
import torch
from tests.gloo import world
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.errors import InputError
from isobatch.noise import NoiseScale
from isobatch.optimizers import (
    InvariantAdam,
    InvariantAdamW,
    InvariantRMSprop,
    invariant,
    layer_squares,
    split_backward,
)

KINDS = [InvariantAdamW, InvariantAdam, InvariantRMSprop]


def build(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)).to(
        dtype
    )


def data(step, rows=16, dtype=torch.float64):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def loss(net, x):
    return (net(x).squeeze(1) - 10 * x.sum(1)).square().mean()


def backward(net, optimizer, x, micro=4, scale=1.0):
    for part in x.split(micro):
        (loss(net, part) * (len(part) / len(x)) * scale).backward()


def second(optimizer):
    return torch.cat([state["exp_avg_sq"].flatten() for state in optimizer.state.values()])


def norms(parameters):
    return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))


def clip_whole(net, optimizer):
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)


def clip_by_hand(net, optimizer):
    factor = 0.1 / norms(net.parameters())
    for p in net.parameters():
        p.grad = p.grad * factor


def clip_foreach(net, optimizer):
    torch._foreach_mul_([p.grad for p in net.parameters()], 0.03)


def clip_inf(net, optimizer):
    nn.utils.clip_grad_norm_(net.parameters(), 0.2, norm_type=float("inf"))


def clip_groups(net, optimizer):
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 0.3)


def clip_one_group(net, optimizer):
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.3)


def clip_in_hook(net, optimizer):
    """As Accelerate and Lightning: in a step pre-hook."""
    handle = optimizer.register_step_pre_hook(lambda *_: clip_whole(net, optimizer))
    optimizer._handle = handle


def unscale(net, optimizer):
    torch._foreach_mul_([p.grad for p in net.parameters()], 1 / 4096)
    clip_whole(net, optimizer)


def none(net, optimizer):
    pass


RESCALES = [none, clip_whole, clip_by_hand, clip_foreach, clip_inf, clip_groups, clip_one_group, clip_in_hook, unscale]


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_factor_a_group_is_read(rescale, kind, groups, dtype):
    """The squares are those of chunks that were rescaled from the start."""
    scale = 4096.0 if rescale is unscale else 1.0
    net = build(dtype)
    parts = [list(net[:3].parameters()), list(net[3:].parameters())] if groups == 2 else [list(net.parameters())]
    optimizer = kind([{"params": part} for part in parts], 1e-3, reference_batch=4, micro_batch=4)
    for step in range(3):
        x = data(step, dtype=dtype)
        optimizer.zero_grad()
        backward(net, optimizer, x, scale=scale)
        plain = [[p.grad.clone() for p in part] for part in parts]
        chunks = []
        for part in x.split(4):
            found = torch.autograd.grad(loss(net, part) * (len(part) / 16) * scale, [p for some in parts for p in some])
            chunks.append(list(found))
        before = {p: s["exp_avg_sq"].clone() for p, s in optimizer.state.items()}
        rescale(net, optimizer)
        if rescale is clip_in_hook:
            optimizer._handle.remove()
            clip_whole(net, optimizer)
        decay = 0.99 if kind is InvariantRMSprop else 0.999
        expected, i = [], 0
        for some, grads in zip(parts, plain, strict=True):
            factor = float(norms(some) / torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])))
            for p in some:
                squares = sum((c[i] * factor).square() for c in chunks) * 4
                expected.append(decay * before.get(p, torch.zeros_like(p)) + (1 - decay) * squares)
                i += 1
        optimizer.step()
        for p, v in zip([p for some in parts for p in some], expected, strict=True):
            torch.testing.assert_close(
                optimizer.state[p]["exp_avg_sq"], v.detach(), rtol=1e-6 if dtype is torch.float64 else 1e-3, atol=0
            )


def clip_values(net, optimizer):
    nn.utils.clip_grad_value_(net.parameters(), 1e-3)


def add_noise(net, optimizer):
    for p in net.parameters():
        p.grad.add_(torch.randn_like(p))


def clip_each(net, optimizer):
    for p in net.parameters():
        p.grad.div_(p.grad.norm())


def centralise(net, optimizer):
    for p in net.parameters():
        p.grad.sub_(p.grad.mean() + 1)


def left_over(net, optimizer):
    backward(net, optimizer, data(77))
    torch._foreach_add_([p.grad for p in net.parameters()], [torch.ones_like(p) for p in net.parameters()])


def signs(net, optimizer):
    for p in net.parameters():
        p.grad.sign_()


def zero_some(net, optimizer):
    for p in net.parameters():
        p.grad[..., 0] = 0


def add_decay(net, optimizer):
    for p in net.parameters():
        p.grad.add_(p.detach(), alpha=5.0)


@pytest.mark.parametrize(
    "change", [clip_values, add_noise, clip_each, centralise, left_over, signs, zero_some, add_decay]
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_no_factor_explains_is_refused_before_anything_changes(change, kind):
    net = build()
    optimizer = kind(net.parameters(), 1e-3, reference_batch=4, micro_batch=4)
    weights = [p.detach().clone() for p in net.parameters()]
    backward(net, optimizer, data(0))
    change(net, optimizer)
    with pytest.raises(InputError, match="more than one factor"):
        optimizer.step()
    assert not any(optimizer.state.values())
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))
    optimizer.zero_grad()
    backward(net, optimizer, data(0))
    optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("sync", ["ddp", "hand", "hand, alone", "group"])
def test_ranks_without_a_group(tmp_path, clip, inner, sync):
    """Found behind DistributedDataParallel, refused where ranks average by hand; never apart."""

    def action(rank):
        net = build()
        params = net.parameters()
        options = {"process_group": dist.group.WORLD} if sync == "group" else {}
        options |= {"process_group": "alone"} if "alone" in sync else {}
        early = InvariantAdamW(params, 1e-3, reference_batch=4, micro_batch=4, **options) if inner else None
        ddp = net if "hand" in sync else DistributedDataParallel(net)
        optimizer = early or InvariantAdamW(net.parameters(), 1e-3, reference_batch=4, micro_batch=4, **options)
        said = ""
        for step in range(3):
            x = data(step)[rank * 8 : rank * 8 + 8]
            optimizer.zero_grad()
            for i, part in enumerate(x.split(4)):
                with contextlib.nullcontext() if "hand" in sync or i else ddp.no_sync():
                    (loss(ddp, part) / 2).backward()
            if "hand" in sync:
                for p in net.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= 2
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            try:
                optimizer.step()
            except InputError as error:
                said = str(error)
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        np.save(tmp_path / f"{rank}.npy", weights.numpy())
        (tmp_path / f"{rank}.txt").write_text(said)

    world(2, tmp_path, action)
    weights = [np.load(tmp_path / f"{rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*weights)
    said = (tmp_path / "0.txt").read_text()
    start = torch.cat([p.detach().flatten() for p in build().parameters()]).numpy()
    if "hand" in sync:
        assert (
            "process_group=torch.distributed.group.WORLD" in said if sync == "hand" else "more than one factor" in said
        )
        np.testing.assert_array_equal(weights[0], start)
        return
    assert said == ""
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4, micro_batch=4)
    for step in range(3):
        optimizer.zero_grad()
        backward(net, optimizer, data(step))
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    truth = torch.cat([p.detach().flatten() for p in net.parameters()]).numpy()
    np.testing.assert_allclose(weights[0], truth, rtol=1e-9)


def test_ranks_that_train_apart_say_so(tmp_path):
    def action(rank):
        torch.manual_seed(rank)
        net = nn.Linear(4, 1)
        optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=4, process_group="alone")
        backward(net, optimizer, data(rank, dtype=torch.float32))
        optimizer.step()
        assert len(optimizer.state) == 2

    world(2, tmp_path, action)


def test_a_rank_without_samples_takes_part(tmp_path):
    def action(rank):
        net = build()
        ddp = DistributedDataParallel(net)
        optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
        for step, shares in enumerate([(8, 8), (8, 0), (4, 0), (0, 16)]):
            x = data(step, sum(shares))
            mine = x[: shares[0]] if rank == 0 else x[shares[0] :]
            optimizer.zero_grad()
            parts = mine.split(4) if len(mine) else [data(99, 4)]
            for i, part in enumerate(parts):
                quiet = contextlib.nullcontext() if i + 1 == len(parts) else ddp.no_sync()
                with quiet, optimizer.chunk(len(part) if len(mine) else 0):
                    (loss(ddp, part) * (len(part) * 2 / len(x) if len(mine) else 0.0)).backward()
            optimizer.step()
        np.save(tmp_path / f"{rank}.npy", torch.cat([p.detach().flatten() for p in net.parameters()]).numpy())

    world(2, tmp_path, action)
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
    for step, rows in enumerate([16, 8, 4, 16]):
        optimizer.zero_grad()
        x = data(step, rows)
        for part in x.split(4):
            with optimizer.chunk(len(part)):
                (loss(net, part) * (len(part) / rows)).backward()
        optimizer.step()
    truth = torch.cat([p.detach().flatten() for p in net.parameters()]).numpy()
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), truth, rtol=1e-9)


def test_a_group_that_is_refused_is_not_added():
    flat = nn.Parameter(torch.ones(2))
    flat._fsdp_flattened = True  # the mark of FSDP1
    for kind in KINDS:
        with pytest.raises(InputError, match="FSDP1"):
            kind([flat], reference_batch=4, micro_batch=4)
    optimizer = InvariantAdamW([nn.Parameter(torch.ones(2))], reference_batch=4)
    with pytest.raises(InputError, match="FSDP1"):
        optimizer.add_param_group({"params": [flat]})
    assert len(optimizer.param_groups) == 1
    net = nn.Linear(2, 1, bias=False)
    net.weight._fsdp_flattened = True
    with pytest.raises(InputError, match="FSDP1"):
        NoiseScale(net)


THAWS = {
    "before zero_grad": 0,
    "after zero_grad": 1,
    "between two micro-batches": 2,
}


@pytest.mark.parametrize("when", THAWS)
@pytest.mark.parametrize("names", [[0], [3], [0, 3], [5]])
@pytest.mark.parametrize("every", [1, 2])
def test_layers_thaw_and_freeze_as_the_run_goes(when, names, every):
    net = build()
    for i in names:
        net[i].requires_grad_(False)
    optimizer = InvariantAdamW(net.parameters(), 1e-2, reference_batch=4, micro_batch=4, variance_every=every)
    for step in range(9):
        if step in (3, 6) and THAWS[when] == 0:
            [net[i].requires_grad_(step == 3) for i in names]
        optimizer.zero_grad()
        if step in (3, 6) and THAWS[when] == 1:
            [net[i].requires_grad_(step == 3) for i in names]
        before = [p.detach().clone() for p in net.parameters()]
        for number, part in enumerate(data(step).split(4)):
            if number == 2 and step in (3, 6) and THAWS[when] == 2:
                [net[i].requires_grad_(step == 3) for i in names]
            (loss(net, part) / 4).backward()
        grads = {p: p.grad for p in net.parameters()}
        optimizer.step()
        for p, old in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, old) == (grads[p] is None)


def test_a_thawed_layer_has_the_squares_of_its_chunks():
    net = build()
    net[0].requires_grad_(False)
    optimizer = InvariantAdamW(net.parameters(), 1e-2, reference_batch=4, micro_batch=4)
    backward(net, optimizer, data(0))
    optimizer.step()
    optimizer.zero_grad()
    net[0].requires_grad_(True)
    backward(net, optimizer, data(1))
    chunks = [torch.autograd.grad(loss(net, part) / 4, net[0].weight)[0] for part in data(1).split(4)]
    optimizer.step()
    torch.testing.assert_close(
        optimizer.state[net[0].weight]["exp_avg_sq"], 1e-3 * 4 * sum(c.square() for c in chunks), rtol=1e-9, atol=0
    )


def test_parameters_added_later_and_groups_clipped_together():
    net = build()
    optimizer = InvariantAdamW(net[3:].parameters(), 1e-3, reference_batch=4, micro_batch=4)
    backward(net, optimizer, data(0))
    optimizer.step()
    optimizer.add_param_group({"params": list(net[:3].parameters())})
    for step in range(1, 4):
        optimizer.zero_grad()
        net.zero_grad()
        backward(net, optimizer, data(step))
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    assert len(optimizer.state) == len(list(net.parameters()))


@pytest.mark.parametrize("route", ["plain", "compiled step", "compiled loss", "compiled model", "optimizer.compile"])
def test_compiled_parts(route):
    import torch._dynamo as dynamo

    dynamo.reset()
    results = []
    for compiled in (False, True):
        net = build()
        optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4, micro_batch=4)
        step, model, value = optimizer.step, net, loss
        if compiled and "step" in route:
            step = torch.compile(optimizer.step, backend="eager")
        if compiled and route == "compiled loss":
            value = torch.compile(loss, backend="eager")
        if compiled and route == "compiled model":
            model = torch.compile(net, backend="eager")
        for i in range(4):
            optimizer.zero_grad()
            for part in data(i).split(4):
                (value(model, part) / 4).backward()
            step()
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_one_pass_larger_than_the_reference_says_how():
    net = build()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4, micro_batch=16)
    loss(net, data(0)).backward()
    with pytest.raises(InputError, match=r"4 reference batches came as 1 chunk.*split_backward"):
        optimizer.step()
    optimizer.zero_grad()
    split_backward(optimizer, lambda x: loss(net, x), data(0))
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.5])
def test_squares_from_layers_follow_a_clip(clip):
    results = []
    for way in ("layers", "split"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        optimizer = InvariantAdamW(net.parameters(), reference_batch=4)
        if way == "layers":
            with layer_squares(net, optimizer, batch=16):
                loss(net, data(0)).backward()
        else:
            split_backward(optimizer, lambda x, net=net: loss(net, x), data(0))
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        results.append(second(optimizer))
    torch.testing.assert_close(*results, rtol=1e-9, atol=0)


@pytest.mark.parametrize("order", ["noise inside", "optimizer inside", "noise alone", "optimizer alone"])
def test_one_chunk_tells_both(order):
    net = build()
    optimizer = InvariantAdamW(net.parameters(), reference_batch=4)
    noise = NoiseScale(net, optimizer, every=1)
    for step in range(3):
        optimizer.zero_grad()
        for part in data(step).split([4, 8, 4]):
            with contextlib.ExitStack() as stack:
                for who in {
                    "noise inside": (optimizer, noise),
                    "optimizer inside": (noise, optimizer),
                    "noise alone": (noise,),
                    "optimizer alone": (optimizer,),
                }[order]:
                    stack.enter_context(who.chunk(len(part)))
                (loss(net, part) * (len(part) / 16)).backward()
        noise.update(samples=16)
        assert (optimizer.chunks.count, optimizer.chunks.samples) == (3, 16)
        optimizer.step()
    assert noise.estimate().measurements == 3
    assert noise.estimate().excluded == 0


@pytest.mark.parametrize("declared", [True, False])
def test_a_rank_with_no_gradients_leaves_nobody_waiting(tmp_path, declared):
    """Refused on every rank where some have none; where all have none, a step is none."""

    def action(rank):
        net = build()
        micro = None if declared else 4
        optimizer = InvariantAdamW(
            net.parameters(), 1e-3, reference_batch=4, micro_batch=micro, process_group=dist.group.WORLD
        )
        optimizer.step()
        assert not optimizer.state
        for step in range(3):
            optimizer.zero_grad()
            if rank == 0 or step != 1:
                with optimizer.chunk(4) if declared else contextlib.nullcontext():
                    loss(net, data(step, 4)).backward()
                with optimizer.chunk(4) if declared else contextlib.nullcontext():
                    loss(net, data(step + 9, 4)).backward()
                for p in net.parameters() if step != 1 else ():
                    dist.all_reduce(p.grad)
                    p.grad /= 2
            if step == 1:
                with pytest.raises(InputError, match=r"1 of 2 ranks have no gradients.*chunk\(0\)"):
                    optimizer.step()
            else:
                optimizer.step()
        np.save(tmp_path / f"{rank}.npy", torch.cat([p.detach().flatten() for p in net.parameters()]).numpy())

    world(2, tmp_path, action)
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))


def test_a_rank_whose_zeros_are_averaged_takes_part(tmp_path):
    def action(rank):
        net = build()
        optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4, process_group=dist.group.WORLD)
        x = data(0, 8)
        for part in x.split(4) if rank == 0 else ():
            with optimizer.chunk(4):
                loss(net, part).backward()
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= 2
        optimizer.step()
        np.save(tmp_path / f"{rank}.npy", second(optimizer).numpy())

    world(2, tmp_path, action)
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
    for part in data(0, 8).split(4):
        with optimizer.chunk(4):
            (loss(net, part) / 2).backward()
    optimizer.step()
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), second(optimizer).numpy(), rtol=1e-9)


def test_whether_ranks_are_averaged_by_hand_is_settled_once_there_are_ranks(monkeypatch):
    """Gradients that ranks average by hand have other norms than their passes left; alone that is a change."""
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
    looked = []
    monkeypatch.setattr(invariant, "process_group_of", lambda *_, **__: looked.append(1))
    work = [(optimizer.param_groups[0], list(net.parameters()))]

    def changed():
        optimizer.zero_grad()
        with optimizer.chunk(16):
            loss(net, data(0)).backward()
        net[0].weight.grad.mul_(0.5)
        return optimizer._all([1.0], work)

    for _ in range(2):
        with pytest.raises(InputError, match="more than one factor"):
            changed()
    optimizer._ranks = object()  # torch.distributed began
    assert changed() == changed() == [1.0]
    assert len(looked) == 1
