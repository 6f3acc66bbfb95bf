"""Two engines, one update: forked gloo processes against virtual nodes, in float64."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.decentralized.jobs import data, flat, real, train, virtual, world

from isobatch.decentralized import METHODS, graphs
from isobatch.decentralized.methods import PmSGDLars, SlowMo

STEPS = 7


def gather(folder, size):
    return torch.stack([load_file(folder / f"{rank}")["w"] for rank in range(size)])


@pytest.mark.parametrize(("size", "graph", "names"), [
    (4, "lazy ring", list(METHODS)), (3, "complete", ["da", "decentlam"]), (2, "lazy ring", ["d2", "decentlam"]),
])  # fmt: skip
def test_real_processes_are_the_virtual_nodes(size, graph, names, tmp_path):
    """One method after another in one world, overlapped or not, in one bucket or in four."""
    topology, (x, y) = graphs.build(graph, size), data(size, STEPS)
    runs = [(name, overlap, limit) for name in names for overlap, limit in ((False, 1 << 25), (True, 100))]

    def ranked(rank):
        for name, overlap, limit in runs:
            net, opt = real(name, topology, overlap=overlap, bucket_bytes=limit)
            assert len(opt.buckets) == (1 if limit > 1000 else 4)
            train(net, opt, x, y, rank)
            save_file({"w": flat(net)}, tmp_path / f"{name}-{limit}-{rank}")
            opt.close()

    world(size, tmp_path, ranked)
    for name, _, limit in runs:
        wanted = virtual(name, topology, x, y).weights
        got = torch.stack([load_file(tmp_path / f"{name}-{limit}-{rank}")["w"] for rank in range(size)])
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13, msg=f"{name} {limit}")


@pytest.mark.parametrize("graph", ["exponential", "one-peer-exponential", "random-matching", "star"])
def test_graphs_that_change_or_are_not_symmetric(graph, tmp_path):
    topology, (x, y) = graphs.build(graph, 4), data(4, STEPS)

    def ranked(rank):
        net, opt = real("decentlam", topology, overlap=True, bucket_bytes=100)
        train(net, opt, x, y, rank)
        save_file({"w": flat(net)}, tmp_path / f"{rank}")
        opt.close()

    world(4, tmp_path, ranked)
    torch.testing.assert_close(gather(tmp_path, 4), virtual("decentlam", topology, x, y).weights, rtol=0, atol=1e-13)


def test_a_node_may_have_several_processes(tmp_path):
    """Nodes of two, one and one rank: the first is one node with the mean gradient of its ranks."""
    topology, (x, y) = graphs.build("lazy ring", 3), data(4, STEPS)
    nodes = [[0, 3], [1], [2]]

    def ranked(rank):
        for name in ("decentlam", "da", "pmsgd"):
            net, opt = real(name, topology, nodes=nodes)
            train(net, opt, x, y, rank)
            save_file(
                {"w": flat(net), "mean": torch.cat([t.reshape(-1) for t in opt.average()])}, tmp_path / f"{name}-{rank}"
            )
            opt.close()

    world(4, tmp_path, ranked)
    for name in ("decentlam", "da", "pmsgd"):
        wanted = uneven(name, topology, x, y)
        for rank, node in enumerate((0, 1, 2, 0)):
            found = load_file(tmp_path / f"{name}-{rank}")
            torch.testing.assert_close(found["w"], wanted[node], rtol=0, atol=1e-13)
            order = load_file(tmp_path / f"{name}-0")["mean"]
            torch.testing.assert_close(found["mean"], order, rtol=0, atol=0)


def uneven(name, topology, x, y):
    """Virtual nodes whose first one sees the samples of ranks 0 and 3; the others see theirs twice."""
    parts = [[0, 3], [1, 1], [2, 2]]
    joined = [torch.stack([torch.cat([t[:, a], t[:, b]], 1) for a, b in parts], 1) for t in (x, y)]
    return virtual(name, topology, *joined).weights


def test_slowmo_and_lars_with_options_of_their_own(tmp_path):
    topology, (x, y) = graphs.ring(3), data(3, STEPS)
    methods = [SlowMo(0.7, period=3, slow_beta=0.6, slow_lr=0.8), PmSGDLars(0.7, trust=0.02)]

    def ranked(rank):
        for place, method in enumerate(methods):
            net, opt = real(method, topology)
            train(net, opt, x, y, rank)
            save_file({"w": flat(net)}, tmp_path / f"{place}-{rank}")
            opt.close()

    world(3, tmp_path, ranked)
    for place, method in enumerate(methods):
        got = torch.stack([load_file(tmp_path / f"{place}-{rank}")["w"] for rank in range(3)])
        torch.testing.assert_close(got, virtual(method, topology, x, y).weights, rtol=0, atol=1e-13)
