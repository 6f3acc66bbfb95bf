"""Which parameters take part: frozen, unfrozen, added, of odd kinds, wrapped, scaled; in both engines."""

import collections
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.decentralized.jobs import data, flat, loss, model, real, train, world
from tests.gradients.test_wrappers import Forwarding, Passing, Sharing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isobatch import InputError
from isobatch.checkpoint import load_optimizer, optimizer_state
from isobatch.decentralized import Decentralized, VirtualNodes, graphs, mean_state
from isobatch.errors import NonFiniteError

RING = graphs.build("lazy ring", 2)
METHODS = ("decentlam", "d2", "slowmo", "awc", "qg", "da", "dmsgd", "pmsgd", "pmsgd-lars", "dsgd")
# name: (step, which of the two layers need a gradient from then on)
PLANS = {
    "frozen from the start": {0: (False, True)},
    "frozen later": {2: (False, True)},
    "the other one later": {3: (True, False)},
    "unfrozen later": {0: (False, True), 2: (True, True)},
    "frozen and back": {1: (True, False), 3: (True, True)},
    "turn about": {1: (True, False), 2: (False, True), 4: (True, True)},
}


def set_plan(net, plan, count):
    if count in plan:
        for layer, needed in zip((net[0], net[2]), plan[count], strict=True):
            layer.requires_grad_(needed)
        return True
    return False


def sgd(net, method, **options):
    beta = 0.0 if method == "dsgd" else 0.8
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=beta, weight_decay=0.01, **options)


@pytest.mark.parametrize("methods", [METHODS[:3], pytest.param(METHODS[3:], marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_both_engines_freeze_and_train_the_same(name, overlap, methods, tmp_path):
    """Frozen layers stand still to the bit, momentum waits, and the rest is what it would be."""
    plan, (x, y) = PLANS[name], data(2, 6)

    def ranked(rank):
        for method in methods:
            net = model()
            set_plan(net, plan, 0)
            opt = Decentralized(sgd(net, method), RING, method, overlap=overlap, bucket_bytes=100)
            for count in range(6):
                before = {key: value.clone() for key, value in net.named_parameters()}
                if set_plan(net, plan, count) and count:
                    with pytest.raises(InputError, match=r"call rebind\(\)"):
                        opt.step()
                    opt.rebind()
                opt.zero_grad()
                loss(net, (x[count, rank], y[count, rank])).backward()
                opt.step()
                for key, value in net.named_parameters():
                    assert torch.equal(value, before[key]) != value.requires_grad, (method, count, key)
            save_file({"w": flat(net)}, tmp_path / f"{method}-{rank}")
            opt.close()

    world(2, tmp_path, ranked)
    for method in methods:
        net = model()
        beta = 0.0 if method == "dsgd" else 0.8
        nodes = VirtualNodes(net, loss, RING, method, lr=0.05, momentum=beta, weight_decay=0.01)
        for count in range(6):
            set_plan(net, plan, count)
            nodes.step((x[count], y[count]))
        got = torch.stack([load_file(tmp_path / f"{method}-{rank}")["w"] for rank in range(2)])
        torch.testing.assert_close(got, nodes.weights, rtol=0, atol=1e-13, msg=method)


def test_groups_may_be_added_on_either_optimizer(tmp_path):
    x, y = data(2, 6)

    def train(net, opt, rank, first, last):
        for count in range(first, last):
            opt.zero_grad()
            loss(net, (x[count, rank], y[count, rank])).backward()
            opt.step()

    def ranked(rank):
        for inner_too in (False, True):
            net = model()
            inner = torch.optim.SGD(net[2].parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
            opt = Decentralized(inner, RING)
            train(net, opt, rank, 0, 1)
            head, body = net[2].weight.clone(), net[0].weight.clone()
            if inner_too:
                inner.add_param_group({"params": list(net[0].parameters()), "lr": 0.02})
                with pytest.raises(InputError, match="2 parameters were unfrozen or added, and 0 frozen"):
                    opt.step()
                opt.rebind()
            else:
                opt.add_param_group({"params": list(net[0].parameters()), "lr": 0.02})
            assert inner.param_groups is opt.param_groups
            assert (opt.steps, [group["lr"] for group in inner.param_groups]) == (1, [0.05, 0.02])
            momenta = [opt.state[p]["m"].clone() for p in net[2].parameters()]
            assert all(m.abs().max() > 0 for m in momenta)
            train(net, opt, rank, 1, 3)
            assert not torch.equal(net[0].weight, body)
            assert not torch.equal(net[2].weight, head)
            assert len(opt.average()) == 4
            with pytest.raises(InputError, match="one group"):
                opt.add_param_group({"params": list(net[0].parameters())})
            assert len(inner.param_groups) == 2
            kept = optimizer_state(opt, net)
            opt.close()
            other = Decentralized(
                torch.optim.SGD([{"params": net[2].parameters()}, {"params": net[0].parameters()}], 0.1, 0.8), RING
            )
            load_optimizer(other, net, kept)
            assert [group["lr"] for group in other.param_groups] == [0.05, 0.02]
            train(net, other, rank, 3, 4)
            assert other.steps == 4
            other.close()

    world(2, tmp_path, ranked)


def test_ranks_that_freeze_different_layers_are_told_both(tmp_path):
    def ranked(rank):
        net = model()
        opt = Decentralized(sgd(net, "decentlam"), RING)
        net[0].requires_grad_(rank == 0)
        with pytest.raises(InputError, match="do not train the same parameters"):
            opt.rebind()
        net[0].requires_grad_(True)
        opt.rebind()
        for layer in (net[0], net[2]):
            layer.requires_grad_(rank == 0)
        with pytest.raises(InputError, match="no parameter that needs" if rank else "or one of them refused"):
            opt.rebind()
        opt.close()

    world(2, tmp_path, ranked)


def inference():
    with torch.inference_mode():
        return nn.Linear(5, 3).double()


ODD = {
    "complex": lambda: nn.Linear(5, 3, dtype=torch.complex64),
    "complex128": lambda: nn.Linear(5, 3, dtype=torch.complex128),
    "meta": lambda: nn.Linear(5, 3, device="meta"),
    "lazy": lambda: nn.LazyLinear(3),
    "made in inference mode": inference,
    "sparse": lambda: held(torch.eye(3).to_sparse()),
    "8 bits": lambda: held(torch.zeros(3).to(torch.float8_e5m2)),
    "8 bits, the other": lambda: held(torch.zeros(3).to(torch.float8_e4m3fn)),
}


def held(tensor):
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    return module


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", ODD)
def test_parameters_that_cannot_be_exchanged_are_refused_and_may_be_frozen(name, tmp_path):
    def ranked(rank):
        net = ODD[name]()
        with pytest.raises(InputError, match="convert it first, or freeze it"):
            Decentralized(torch.optim.SGD(net.parameters(), lr=0.1), RING, "dsgd")
        odd = () if name in ("lazy", "made in inference mode") else net.parameters()
        both = [*model().parameters(), *(parameter.requires_grad_(False) for parameter in odd)]
        opt = Decentralized(torch.optim.SGD(both, lr=0.1), RING, "dsgd")
        opt.step()
        opt.close()

    world(2, tmp_path, ranked)
    with pytest.raises(InputError, match="convert it first"):
        VirtualNodes(ODD[name](), loss, RING, lr=0.1)


WRAPPERS = {"passing": Passing, "forwarding": Forwarding, "sharing": Sharing, "twice": lambda o: Passing(Passing(o))}


def test_wrappers_go_outside_and_ddp_is_refused(tmp_path):
    def ranked(rank):
        for wrap in WRAPPERS.values():
            inner = sgd(model(), "decentlam")
            with pytest.raises(InputError, match="wrap the other way round"):
                Decentralized(wrap(inner), RING)
        for before in (True, False):
            net = model()
            wrapped = DistributedDataParallel(net) if before else net
            opt = Decentralized(sgd(net, "decentlam"), RING)
            wrapped = wrapped if before else DistributedDataParallel(net)
            weights = flat(net).clone()
            wrapped(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
            with pytest.raises(InputError, match="averaged over ranks already"):
                opt.step()
            assert torch.equal(flat(net), weights)
            opt.close()
            del wrapped
        net = model()
        opt = Decentralized(sgd(net, "decentlam"), RING)
        outside = Passing(opt)
        net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
        outside.optimizer.step()
        assert opt.steps == 1
        opt.close()

    world(2, tmp_path, ranked)


def test_a_scaler_hands_over_its_steps_and_an_overflow_is_one_nodes_own(tmp_path):
    x, y = data(2, 4)

    def ranked(rank):
        results = []
        for scaled in (False, True):
            net = model().float()
            opt = Decentralized(sgd(net, "decentlam"), RING)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000, enabled=scaled)
            for count in range(4):
                opt.zero_grad()
                scaler.scale(loss(net, (x[count, rank].float(), y[count, rank]))).backward()
                if count == 2 and rank == 1 and scaled:
                    net[0].weight.grad[0, 0] = torch.inf
                before = flat(net).clone()
                scaler.step(opt)
                scaler.update()
                skipped = count == 2 and rank == 1 and scaled
                assert torch.equal(flat(net), before) == skipped
            assert (opt.steps, opt.skipped) == (4, int(scaled and rank == 1))
            results.append(flat(net))
            if not scaled:
                opt.close()
                continue
            assert scaler.get_scale() == 2.0 ** (11 if rank == 1 else 12)
            opt.close()
            clipped = model().float()
            again = Decentralized(sgd(clipped, "decentlam"), RING, overlap=True)
            scaler.scale(loss(clipped, (x[0, rank].float(), y[0, rank]))).backward()
            with pytest.raises(InputError, match="overlap=False beside a gradient scaler"):
                scaler.step(again)
            again.close()
        assert torch.isfinite(results[1]).all()

    world(2, tmp_path, ranked)


def test_a_bad_gradient_spoils_no_exact_mean_in_silence(tmp_path):
    """All-reduce takes everybody's gradient: one that is not finite stops all nodes, their weights as they were."""

    def ranked(rank):
        for method in ("pmsgd", "pmsgd-lars"):
            net = model()
            opt = Decentralized(sgd(net, method), RING, method)
            net(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
            if rank == 1:
                net[0].weight.grad[0, 0] = torch.nan
            before = flat(net).clone()
            with pytest.raises(NonFiniteError, match="or the exact mean that it was given"):
                opt.step()
            assert torch.equal(flat(net), before)
            opt.close()

    world(2, tmp_path, ranked)


def test_a_node_without_samples_and_sparse_gradients_take_part(tmp_path):
    """The last batch may be shorter than the world: whoever has nothing still exchanges."""

    def ranked(rank):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)).double()
        opt = Decentralized(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5), graphs.complete(3))
        for samples in ((4, 4, 4), (1, 1, 0), (1, 0, 0), (0, 0, 0)):
            opt.zero_grad()
            if samples[rank]:
                net(torch.arange(2 * samples[rank]).view(-1, 2) % 7).square().mean().backward()
                assert net[0].weight.grad.is_sparse
            opt.step()
        mean = opt.average()
        assert [t.shape for t in mean] == [p.shape for p in net.parameters()]
        assert opt.metrics()["consensus"] < 1
        opt.close()

    world(3, tmp_path, ranked)


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3).double()
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        out = self.linear(x)
        self.seen.add_(out.mean(0))
        return out


UNHELD = {
    "batch norm": (lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double(), "BatchNorm1d"),
    "instance norm that tracks": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), "InstanceNorm"),
    "mixed dtypes": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3).double()), "one dtype"),
    "no parameters": (nn.ReLU, "no parameters"),
    "two architectures": (lambda: [nn.Linear(5, 3), nn.Linear(5, 4)], "one architecture"),
    "two dtypes": (lambda: [nn.Linear(5, 3), nn.Linear(5, 3).double()], "one architecture"),
    "nothing": (list, "holds none"),
}


@pytest.mark.parametrize("name", UNHELD)
def test_models_that_virtual_nodes_cannot_hold_are_refused(name):
    make, words = UNHELD[name]
    with pytest.raises(InputError, match=words):
        VirtualNodes(make(), loss, RING, lr=0.1)


@pytest.mark.parametrize("make", [Writing, lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3).double())])
def test_a_forward_that_writes_is_refused_at_the_step_and_nothing_has_moved(make):
    x, y = data(2, 1)
    nodes = VirtualNodes(make(), loss, RING, lr=0.1)
    before = nodes.weights.clone()
    with pytest.raises(InputError, match="node axis"):
        nodes.step((x[0], y[0]))
    assert torch.equal(nodes.weights, before)


def test_a_model_that_changes_under_virtual_nodes_is_refused():
    (x, y), net = data(2, 2), model()
    nodes = VirtualNodes(net, loss, RING, lr=0.1)
    nodes.step((x[0], y[0]))
    net.append(nn.Linear(3, 3).double())
    with pytest.raises(InputError, match="build VirtualNodes anew"):
        nodes.step((x[1], y[1]))
    for lr in (float("nan"), -1.0, "0.1"):
        with pytest.raises(InputError, match="lr="):
            VirtualNodes(model(), loss, RING, lr=0.1).step((x[0], y[0]), lr=lr)


def test_a_frozen_node_weight_is_its_own_after_training():
    """A layer frozen once the nodes differ keeps each node's value, and the average stays their mean."""
    (x, y), net = data(4, 6), model()
    nodes = VirtualNodes(net, loss, graphs.ring(4), lr=0.1)
    for count in range(3):
        nodes.step((x[count], y[count]))
    net[0].requires_grad_(False)
    size = sum(p.numel() for p in net[0].parameters())
    before = nodes.weights[:, :size].clone()
    assert not torch.equal(before[0], before[1])
    nodes.step((x[3], y[3]))
    assert torch.equal(nodes.weights[:, :size], before)
    torch.testing.assert_close(nodes.average()[:size], before.mean(0))


Pair = collections.namedtuple("Pair", "w step")
MEANS = {
    "complex": ([torch.tensor([1 + 2j]), torch.tensor([3j])], torch.tensor([0.5 + 2.5j])),
    "bfloat16": ([torch.ones(2).bfloat16(), torch.zeros(2).bfloat16()], torch.full((2,), 0.5).bfloat16()),
    "float8": ([torch.ones(2).to(torch.float8_e4m3fn), torch.zeros(2).to(torch.float8_e4m3fn)], None),
    "whole numbers": ([torch.tensor(3), torch.tensor(5)], torch.tensor(3)),
    "flags": ([torch.tensor(True), torch.tensor(False)], torch.tensor(True)),
    "a named pair": ([Pair(torch.ones(1), 3), Pair(torch.zeros(1), 3)], Pair(torch.tensor([0.5]), 3)),
    "a list": ([[torch.ones(1), "a"], [torch.zeros(1), "a"]], [torch.tensor([0.5]), "a"]),
    "nested": ([{"a": (torch.ones(1),)}, {"a": (torch.zeros(1),)}], {"a": (torch.tensor([0.5]),)}),
}


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_state_of_nodes_keeps_kinds(name):
    states, wanted = MEANS[name]
    found = mean_state(states)
    assert type(found) is type(states[0])
    if name == "float8":
        assert (found.dtype, found.float().tolist()) == (torch.float8_e4m3fn, [0.5, 0.5])
    else:
        assert repr(found) == repr(wanted)
    with pytest.raises(InputError, match="holds none"):
        mean_state([])


@pytest.mark.parametrize("overlap", [False, True])
def test_several_optimizers_share_a_group(overlap, tmp_path):
    """Each has messages of its own, whoever steps first, and close() ends at once for all."""
    x, y = data(2, 6)

    def ranked(rank):
        alone = []
        for lr in (0.05, 0.02, 0.01):
            net, opt = real("decentlam", RING, lr=lr, overlap=overlap, timeout=20)
            train(net, opt, x, y, rank, lr=lr)
            alone.append(flat(net))
            opt.close()
        pairs = [real("decentlam", RING, lr=lr, overlap=overlap, timeout=20) for lr in (0.05, 0.02, 0.01)]
        for count in range(6):
            for (net, opt), lr in zip(pairs, (0.05, 0.02, 0.01), strict=True):
                train(net, opt, x[: count + 1], y[: count + 1], rank, lr=lr, first=count)
        for (net, opt), expected in zip(pairs, alone, strict=True):
            torch.testing.assert_close(flat(net), expected, rtol=1e-12, atol=0)
            opt.average()
        began = time.monotonic()
        for _, opt in pairs:
            opt.close()
        assert time.monotonic() - began < 15

    world(2, tmp_path, ranked)


def test_more_optimizers_than_a_group_has_room_for_are_refused(tmp_path):
    def ranked(rank):
        opened = [real("decentlam", graphs.build("complete", 2), timeout=5)[1] for _ in range(16)]
        with pytest.raises(InputError, match="16 decentralized optimizers of one group are open"):
            real("decentlam", graphs.build("complete", 2), timeout=5)
        for opt in opened:
            opt.close()
        real("decentlam", graphs.build("complete", 2), timeout=5)[1].close()

    world(2, tmp_path, ranked)
