"""Whoever changes some gradients and spares others is found out, wherever nobody looks coordinate by coordinate."""

import contextlib

import pytest
import torch
from tests.gloo import world
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch.errors import InputError
from isobatch.gradients import PassNorms, Tap, Watch
from isobatch.noise import NoiseScale
from isobatch.optimizers import InvariantAdamW


def build(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 64), nn.Tanh()]
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 1)).to(dtype)


def unseen(optimizer):
    """The gradients of all parameters that nobody looks at."""
    chosen = {id(p) for check in optimizer.chunks.checks for p in check.chosen}
    return [p.grad for group in optimizer.param_groups for p in group["params"] if id(p) not in chosen]


def each_by_itself(optimizer):
    for gradient in unseen(optimizer):
        gradient.mul_(min(1.0, 1e-3 / float(gradient.norm())))


def one_twice(optimizer):
    unseen(optimizer)[-1].mul_(2)


def one_scaled_a_little(optimizer):
    unseen(optimizer)[0].mul_(0.98)


def rows_masked(optimizer):
    unseen(optimizer)[3][:16] = 0


def one_dropped(optimizer):
    unseen(optimizer)[5].zero_()


def one_centralised(optimizer):
    gradient = unseen(optimizer)[2]
    gradient.sub_(gradient.mean(-1, keepdim=True))


def noise_on_one(optimizer):
    gradient = unseen(optimizer)[1]
    gradient.add_(torch.randn_like(gradient) * gradient.abs().mean() * 3)


def largest_clipped(optimizer):
    for gradient in unseen(optimizer):
        gradient.clamp_(-float(gradient.abs().mean()), float(gradient.abs().mean()))


def data_scaled(optimizer):
    """As old code does, which no version counter sees."""
    for gradient in unseen(optimizer)[:2]:
        gradient.data.mul_(0.5)


def replaced(optimizer):
    chosen = {id(p) for check in optimizer.chunks.checks for p in check.chosen}
    for p in optimizer.param_groups[0]["params"]:
        if id(p) not in chosen:
            p.grad = p.grad * 0.3


def all_and_one_more(optimizer):
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1e-2)
    one_twice(optimizer)


CHANGES = [
    each_by_itself,
    one_twice,
    one_scaled_a_little,
    rows_masked,
    one_dropped,
    one_centralised,
    noise_on_one,
    largest_clipped,
    data_scaled,
    replaced,
    all_and_one_more,
]


def data(step, dtype):
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def passes(net, x, parts=4, declare=contextlib.nullcontext):
    for part in x.chunk(parts):
        with declare(len(part)) if declare is not contextlib.nullcontext else declare():
            ((net(part).squeeze(1) - part.sum(1)).square().mean() / parts).backward()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_invariant_optimizer_refuses_and_nothing_changes(change, dtype):
    net = build(dtype)
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
    for step in range(2):
        optimizer.zero_grad()
        passes(net, data(step, dtype), declare=optimizer.chunk)
        optimizer.step()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.zero_grad()
    passes(net, data(2, dtype), declare=optimizer.chunk)
    change(optimizer)
    with pytest.raises(InputError, match="more than one factor"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parts", [1, 4])
def test_a_noise_scale_leaves_the_measurement_out(change, parts):
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=16)
    noise = NoiseScale(net, every=1)
    for step in range(3):
        optimizer.zero_grad()
        passes(net, data(step, torch.float32), parts)
        change(optimizer)
        noise.update(samples=16)
    found = noise.estimate()
    assert (found.measurements, found.excluded) == (0, 3)
    assert "more than one factor" in found.sentence
    for step in range(3):
        optimizer.zero_grad()
        passes(net, data(step, torch.float32), parts)
        nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
        noise.update(samples=16)
    assert noise.estimate().measurements == 3


def fewer(optimizer):
    """What changes no square: gradients that are gone, or turned."""
    optimizer.param_groups[0]["params"][4].grad = None
    unseen(optimizer)[7].neg_()


def rescaled(optimizer):
    torch._foreach_mul_([p.grad for p in optimizer.param_groups[0]["params"]], 0.37)


def rounded(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = (p.grad * (1 + 1e-5)).to(torch.float32).to(p.grad.dtype)


@pytest.mark.parametrize("change", [fewer, rescaled, rounded])
@pytest.mark.parametrize("passes_of_steps", [[4, 4, 2, 4], [2, 4, 8, 2], [4, 2, 2, 4]])
def test_no_false_alarm(change, passes_of_steps):
    net = build()
    optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4)
    for step, parts in enumerate(passes_of_steps):
        optimizer.zero_grad()
        passes(net, data(step, torch.float32), parts, optimizer.chunk)
        change(optimizer)
        optimizer.step()


WAYS = {
    "ddp": {},
    "buckets": {"gradient_as_bucket_view": True},
    "static": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
    "hand": None,
}


def test_ranks_are_averaged_first(tmp_path):
    """Sums over ranks come in callbacks after the pass: they are no change."""

    def action(rank):
        for way, options in WAYS.items():
            net = build()
            ddp = net if options is None else DistributedDataParallel(net, **options)
            group = dist.group.WORLD if options is None else None
            optimizer = InvariantAdamW(net.parameters(), 1e-3, reference_batch=4, process_group=group)
            noise = NoiseScale(ddp, every=1, process_group=group)
            for step in range(5):
                optimizer.zero_grad()
                for i, part in enumerate(data(2 * step + rank, torch.float32).chunk(4)):
                    quiet = contextlib.nullcontext() if i == 3 or options is None or way == "static" else ddp.no_sync()
                    with quiet, optimizer.chunk(len(part)):
                        ((ddp(part).squeeze(1) - part.sum(1)).square().mean() / 4).backward()
                if options is None:
                    for p in net.parameters():
                        dist.all_reduce(p.grad)
                        p.grad /= 2
                nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
                noise.update(samples=32)
                if step == 4 and options is not None:
                    one_twice(optimizer)
                    with pytest.raises(InputError, match="more than one factor"):
                        optimizer.step()
                else:
                    optimizer.step()
            assert (noise.estimate().measurements, noise.estimate().excluded) == (5, 0), way

    world(2, tmp_path, action)


class Arrivals:
    """Tells norms of every pass."""

    def __init__(self, norms):
        self.norms = norms

    def receive(self, parameter, gradients, reading=None):
        self.norms.arrive()


@pytest.mark.parametrize(("expected", "passes", "taken"), [(0, 3, 3), (3, 3, 1), (2, 3, 2), (3, 2, 0), (1, 1, 1)])
def test_norms_are_taken_at_the_end_of_the_last_pass_that_is_expected(monkeypatch, expected, passes, taken):
    net, times = nn.Linear(2, 1), []
    norms = PassNorms(net.parameters(), expected=expected)
    watch = Watch(told := Arrivals(norms), Tap())
    watch.add(net.parameters())
    with monkeypatch.context() as patched:
        plain = torch._foreach_norm
        patched.setattr(torch, "_foreach_norm", lambda *args: times.append(1) or plain(*args))
        for _ in range(passes):
            net(torch.ones(1, 2)).sum().backward()
    assert (len(times), norms.passes) == (taken, passes)
    net.weight.grad.mul_(2)
    assert bool(norms.explained(list(net.parameters()), torch.ones(()))) == (taken == 0)
    assert told.norms is norms


def test_a_noise_scale_takes_norms_once_a_step_from_its_second_measurement_on(monkeypatch):
    net, times = build(), []
    noise = NoiseScale(net, every=1, capture="chunks")
    end = PassNorms._end
    monkeypatch.setattr(PassNorms, "_end", lambda self, left: times.append(left) or end(self, left))
    for step in range(3):
        net.zero_grad()
        passes(net, data(step, torch.float32))
        noise.update(samples=16)
    of_steps, of_pairs = 4 + 1 + 1, 1 + 1  # the first step does not know how many passes it will have
    assert times.count(0) == of_steps + of_pairs
