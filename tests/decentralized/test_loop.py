"""In a user's loop: resume, another number of nodes, averages, the sample clock, metrics, accumulation, schedulers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.decentralized.jobs import data, flat, loss, model, real, train, virtual, world

from isobatch import InputError, ModelEMA
from isobatch.checkpoint import Checkpoints, load_model, load_optimizer, optimizer_state
from isobatch.decentralized import VirtualNodes, graphs, mean_state, node_state

RING = graphs.build("lazy ring", 3)
STATEFUL = ["decentlam", "d2", "slowmo"]


def save(store, net, opt, seen):
    store.save({"model": net.state_dict(), "optimizer": optimizer_state(opt, net)}, seen=seen)


def restore(state, net, opt):
    load_model(net, state["model"])
    load_optimizer(opt, net, state["optimizer"])


def test_a_resumed_run_is_the_run_bit_for_bit_and_another_number_of_nodes_goes_on_from_the_mean(tmp_path):
    x, y = data(4, 9)

    def first(rank):
        for name in STATEFUL:
            net, opt = real(name, RING, overlap=True)
            train(net, opt, x[:5], y[:5], rank)
            with Checkpoints(tmp_path / name) as store:
                save(store, net, opt, seen=5)
            train(net, opt, x, y, rank, first=5)
            save_file({"w": flat(net)}, tmp_path / f"{name}-whole-{rank}")
            opt.close()

    def again(rank):
        for name in STATEFUL:
            net, opt = real(name, RING, net=model(seed=7))
            with Checkpoints(tmp_path / name) as store:
                step = store.latest()
            restore(node_state(step.path, rank, 3), net, opt)
            assert opt.steps == 5
            train(net, opt, x, y, rank, first=5)
            save_file({"w": flat(net)}, tmp_path / f"{name}-again-{rank}")
            opt.close()

    def elsewhere(rank):
        """Four nodes on another graph: all of them begin at the mean of the three."""
        for name in STATEFUL:
            net, opt = real(name, graphs.build("lazy star", 4), net=model(seed=7))
            step = Checkpoints(tmp_path / name).latest()
            restore(node_state(step.path, rank, 4), net, opt)
            save_file({"w": flat(net)}, tmp_path / f"{name}-mean-{rank}")
            train(net, opt, x, y, rank, first=5)
            assert torch.isfinite(flat(net)).all()
            opt.close()
        net, opt = real("qg", graphs.ring(4))
        restore(node_state(Checkpoints(tmp_path / "decentlam").latest().path, rank, 4), net, opt)
        with pytest.raises(InputError, match="of method 'decentlam', this run uses 'qg'"):
            train(net, opt, x[:1], y[:1], rank)

    world(3, tmp_path, first)
    world(3, tmp_path, again)
    world(4, tmp_path, elsewhere)
    for name in STATEFUL:
        for rank in range(3):
            whole, resumed = (load_file(tmp_path / f"{name}-{part}-{rank}")["w"] for part in ("whole", "again"))
            torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
        wanted = virtual(name, RING, x[:5, :3], y[:5, :3]).average()
        for rank in range(4):
            torch.testing.assert_close(load_file(tmp_path / f"{name}-mean-{rank}")["w"], wanted, rtol=0, atol=1e-13)


def test_averages_metrics_and_the_clock(tmp_path):
    """The average of the nodes' averages is the average of the averaged run; bytes are one exchange a neighbour."""
    x, y = data(3, 6)
    batch = x.shape[2] * 3  # the global batch is the sum over nodes

    def ranked(rank):
        net, opt = real("decentlam", RING, bucket_bytes=100)
        ema = ModelEMA(net, half_life=40)
        for count in range(len(x)):
            train(net, opt, x[: count + 1], y[: count + 1], rank, first=count)
            ema.update(samples=batch)
        numbers = sum(p.numel() for p in net.parameters())
        mail = opt.neighbourhood.mail
        assert mail.bytes_sent == len(x) * 2 * numbers * 8
        before, own = flat(net), opt.metrics()
        with opt.averaged():
            mean = flat(net)
        torch.testing.assert_close(flat(net), before, rtol=0, atol=0)
        smooth = torch.cat([value.reshape(-1) for value in ema.average().values()])
        save_file({"mean": mean, "ema": smooth, "w": before}, tmp_path / f"{rank}")
        bias = opt.bias([torch.ones_like(p) for p in opt.parameters()])
        (tmp_path / f"{rank}.json").write_text(json.dumps({**own, "bias": bias}))
        opt.close()

    world(3, tmp_path, ranked)
    nodes = VirtualNodes(model(), loss, RING, lr=0.05, momentum=0.8, weight_decay=0.01)
    shadow = torch.nn.Module()
    shadow.w = torch.nn.Parameter(nodes.average().clone())
    ema = ModelEMA(shadow, half_life=40)
    for count in range(len(x)):
        nodes.step((x[count], y[count]), lr=0.05 / (1 + count))
        shadow.w.data.copy_(nodes.average())
        ema.update(samples=batch)
    found = [load_file(tmp_path / f"{rank}") for rank in range(3)]
    torch.testing.assert_close(torch.stack([f["w"] for f in found]), nodes.weights, rtol=0, atol=1e-13)
    torch.testing.assert_close(found[0]["mean"], nodes.average(), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.stack([f["ema"] for f in found]).mean(0), ema.average()["w"], rtol=0, atol=1e-13)
    metrics = json.loads((tmp_path / "0.json").read_text())
    assert metrics["consensus"] == pytest.approx(nodes.consensus_distance(), rel=1e-9)
    assert metrics["bias"] == pytest.approx(nodes.bias(torch.ones(nodes.layout.size)), rel=1e-9)
    assert metrics["messages"] == 6 * 2 * 4
    assert [metrics[name] for name in ("late", "lost", "stale", "nonfinite", "skipped")] == [0] * 5


def test_accumulation_schedulers_and_groups(tmp_path):
    """Two halves of a batch are the batch; the schedule moves the rate; a group of its own keeps its decay."""
    x, y = data(2, 6)
    ring = graphs.build("lazy ring", 2)

    def ranked(rank):
        for overlap in (False, True):
            net = model()
            weights, biases = [[p for p in net.parameters() if (p.ndim > 1) == wide] for wide in (True, False)]
            groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.02}]
            from isobatch.decentralized import Decentralized

            opt = Decentralized(torch.optim.SGD(groups, lr=0.05, momentum=0.8), ring, overlap=overlap)
            scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
            for count in range(len(x)):
                opt.zero_grad()
                with opt.accumulate():
                    (loss(net, (x[count, rank, :3], y[count, rank, :3])) / 2).backward()
                (loss(net, (x[count, rank, 3:], y[count, rank, 3:])) / 2).backward()
                opt.step()
                scheduler.step()
            save_file({"w": flat(net)}, tmp_path / f"{overlap}-{rank}")
            opt.close()

    world(2, tmp_path, ranked)
    wanted = grouped(x, y)
    for overlap in (False, True):
        got = torch.stack([load_file(tmp_path / f"{overlap}-{rank}")["w"] for rank in range(2)])
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def grouped(x, y):
    """DecentLaM by hand on two nodes with W = [[3/4, 1/4], [1/4, 3/4]]."""
    nodes = VirtualNodes(model(), loss, graphs.build("lazy ring", 2), lr=0.05)
    wide = torch.cat([torch.full((p.numel(),), float(p.ndim > 1)) for p in model().parameters()]).double()
    w, m = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64), torch.zeros_like(nodes.weights)
    for count in range(len(x)):
        gamma = (0.05 * wide + 0.02 * (1 - wide)) * 0.5 ** (count // 2)
        g = nodes.gradient((x[count], y[count]))[0] + 0.1 * wide * nodes.weights
        m = 0.8 * m + (nodes.weights - w @ (nodes.weights - gamma * g)) / gamma
        nodes.weights = nodes.weights - gamma * m
    return nodes.weights


def test_replicas_are_runs_of_their_own():
    topology, (x, y) = graphs.build("lazy ring", 4), data(8, 5)
    both = VirtualNodes([model(0), model(1)], loss, topology, lr=0.05)
    for count in range(5):
        both.step((x[count], y[count]))
    for replica in range(2):
        one = VirtualNodes(model(replica), loss, topology, lr=0.05)
        for count in range(5):
            one.step((x[count, 4 * replica : 4 * replica + 4], y[count, 4 * replica : 4 * replica + 4]))
        torch.testing.assert_close(both.average(replica), one.average(), rtol=0, atol=1e-14)
        assert both.consensus_distance(replica) == pytest.approx(one.consensus_distance(), rel=1e-10)
        with both.applied(2, replica) as net:
            torch.testing.assert_close(flat(net), one.weights[2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_dtype(dtype):
    x, y = data(4, 3)
    nodes = VirtualNodes(model().to(dtype), loss, graphs.ring(4), lr=0.05)
    nodes.step((x[0].to(dtype), y[0]))
    assert nodes.weights.dtype == dtype
    assert torch.isfinite(nodes.weights).all()


def test_lars_is_that_of_a_kept_library():
    from pytorch_optimizer import LARS

    x, y = data(1, 12)
    net = model()
    wide, rest = [[p for p in net.parameters() if (p.ndim > 1) == w] for w in (True, False)]
    groups = [{"params": wide}, {"params": rest, "weight_decay": 0.0}]
    peer = LARS(groups, lr=0.5, momentum=0.9, weight_decay=0.01, trust_coefficient=1e-2)
    nodes = VirtualNodes(model(), loss, graphs.complete(1), named_lars(), lr=0.5, weight_decay=0.01)
    for count in range(len(x)):
        peer.zero_grad()
        loss(net, (x[count, 0], y[count, 0])).backward()
        peer.step()
        nodes.step((x[count], y[count]))
    torch.testing.assert_close(nodes.average(), flat(net), rtol=1e-6, atol=1e-8)


def named_lars():
    from isobatch.decentralized.methods import PmSGDLars

    return PmSGDLars(0.9, trust=1e-2)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="batch norm"):
        VirtualNodes(torch.nn.BatchNorm1d(3), loss, graphs.ring(4), lr=0.1)
    with pytest.raises(InputError, match="lr=0"):
        VirtualNodes(model(), loss, graphs.ring(4), lr=0.0).step(tuple(part[0] for part in data(4, 1)))
    with pytest.raises(InputError, match="lr=-1"):
        VirtualNodes(model(), loss, graphs.ring(4), lr=-1)
    with pytest.raises(InputError, match="different names"):
        mean_state([{"a": 1}, {"b": 1}])
    with pytest.raises(InputError, match="shapes"):
        mean_state([torch.ones(2), torch.ones(3)])
    with pytest.raises(InputError, match="lengths"):
        mean_state([[1], [1, 2]])
