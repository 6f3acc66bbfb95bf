"""Neighbours that are killed, late, silent or send NaN: named, bounded in time, and nobody's weights are spoilt."""

import json
import signal
import time
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.crash import fork, kill_me, wait
from tests.decentralized.jobs import data, flat, real, train, world
from torch import distributed as dist

from isobatch import InputError
from isobatch.decentralized import VirtualNodes, graphs, relative_error
from isobatch.errors import NonFiniteError, PeerError

SIZE = 4
RING = graphs.build("lazy ring", SIZE)


def left_alone(folder, action):
    """Run action(rank) in four ranks of which some die; returns their exit codes."""
    meeting = folder / "meeting"

    def main(rank):
        torch.set_num_threads(1)
        store = dist.FileStore(str(meeting), SIZE)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=30))
        action(rank)

    pids = [fork(lambda rank=rank: main(rank)) for rank in range(SIZE)]
    return [wait(pid) for pid in pids]


def wait_for(*paths):
    """Wait until other ranks have left a mark, however busy the machine is."""
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end
        time.sleep(0.01)


def report(folder, rank, opt, net, **more):
    incidents = [(i.step, i.node, i.kind) for i in opt.incidents]
    (folder / f"{rank}.json").write_text(
        json.dumps({"incidents": incidents, "stale": opt.neighbourhood.mail.stale, **more})
    )
    save_file({"w": flat(net)}, folder / f"{rank}")
    opt.close()


def reports(folder, ranks):
    return {rank: json.loads((folder / f"{rank}.json").read_text()) for rank in ranks}


@pytest.mark.parametrize("method", ["decentlam", "d2"])
def test_survivors_of_a_killed_process_go_on_as_the_smaller_graph(method, tmp_path):
    """Rank 2 of a ring dies after 3 steps; the others equal virtual nodes on the re-normalised matrix from then on."""
    x, y = data(SIZE, 8)

    def ranked(rank):
        net, opt = real(method, RING, on_loss="continue", timeout=5)
        train(net, opt, x[:3], y[:3], rank)
        if rank == 2:
            kill_me()
        began = time.monotonic()
        train(net, opt, x, y, rank, first=3)
        mean = torch.cat([t.reshape(-1) for t in opt.average()])
        report(tmp_path, rank, opt, net, seconds=time.monotonic() - began, mean=mean.tolist())

    assert left_alone(tmp_path, ranked) == [0, 0, -signal.SIGKILL, 0]
    found = reports(tmp_path, (0, 1, 3))
    assert [i for rank in (1, 3) for i in found[rank]["incidents"]] == [[3, 2, "lost"]] * 2
    assert max(part["seconds"] for part in found.values()) < 15
    weights = torch.stack([load_file(tmp_path / f"{rank}")["w"] for rank in (0, 1, 3)])
    for part in found.values():  # node 0 learns of it when the average is taken
        torch.testing.assert_close(torch.tensor(part["mean"], dtype=torch.float64), weights.mean(0), rtol=0, atol=1e-13)
    torch.testing.assert_close(weights, smaller(method, x, y)[[0, 1, 3]], rtol=0, atol=1e-12)


def smaller(method, x, y):
    """Virtual nodes whose third is cut off after step 3."""
    from tests.decentralized.jobs import loss, model

    nodes = VirtualNodes(model(), loss, RING, method, lr=0.05, momentum=0.8, weight_decay=0.01)
    for count in range(len(x)):
        if count == 3:
            nodes._matrices[0] = torch.tensor(RING.at(0).without([2]).dense(), dtype=torch.float64)
        nodes.step((x[count], y[count]), lr=0.05 / (1 + count))
    return nodes.weights


def test_survivors_stop_where_that_is_asked_for(tmp_path):
    """The neighbours raise PeerError at once, their neighbour when they are gone; nobody writes a half step."""
    x, y = data(SIZE, 8)

    def ranked(rank):
        net, opt = real("decentlam", RING, timeout=5)
        train(net, opt, x[:3], y[:3], rank)
        if rank == 2:
            kill_me()
        began, before = time.monotonic(), flat(net)
        with pytest.raises(PeerError) as caught:
            train(net, opt, x, y, rank, first=3)
        text, lost = str(caught.value), caught.value.node
        report(tmp_path, rank, opt, net, seconds=time.monotonic() - began, text=text, lost=lost)
        assert caught.value.step == opt.steps
        if opt.steps == 3:
            torch.testing.assert_close(flat(net), before, rtol=0, atol=0)

    assert left_alone(tmp_path, ranked) == [0, 0, -signal.SIGKILL, 0]
    found = reports(tmp_path, (0, 1, 3))
    assert [found[rank]["lost"] for rank in (1, 3)] == [2, 2]
    assert "node 1 lost node 2 at step 3" in found[1]["text"]
    assert found[0]["lost"] in (1, 3)
    assert max(part["seconds"] for part in found.values()) < 10
    for rank in (0, 1, 3):
        assert torch.isfinite(load_file(tmp_path / f"{rank}")["w"]).all()


def test_a_late_neighbour_is_left_out_for_a_step_and_its_message_is_stale(tmp_path):
    x, y = data(SIZE, 8)

    def ranked(rank):
        net, opt = real("decentlam", RING, timeout=2.0, patience=5, on_loss="continue")
        train(net, opt, x[:3], y[:3], rank)
        if rank == 2:
            wait_for(tmp_path / "1.late", tmp_path / "3.late")
        train(net, opt, x[:4], y[:4], rank, first=3)
        (tmp_path / f"{rank}.late").touch()
        train(net, opt, x, y, rank, first=4)
        (tmp_path / f"{rank}.done").touch()
        wait_for(*(tmp_path / f"{other}.done" for other in range(SIZE)))
        time.sleep(0.5)
        opt.neighbourhood.mail.post(torch.zeros(1), 1 << 30, (), ())  # looks for what has come in since
        report(tmp_path, rank, opt, net)

    world(SIZE, tmp_path, ranked)
    found = reports(tmp_path, range(SIZE))
    assert [3, 2, "late"] in found[1]["incidents"]
    assert [3, 2, "late"] in found[3]["incidents"]
    assert found[1]["stale"] >= 1
    assert found[3]["stale"] >= 1
    assert not [i for part in found.values() for i in part["incidents"] if i[2] == "lost"]
    weights = torch.stack([load_file(tmp_path / f"{rank}")["w"] for rank in range(SIZE)])
    assert torch.isfinite(weights).all()
    assert relative_error(weights, weights.mean(0)) < 0.1


def test_a_silent_neighbour_is_lost_after_its_patience_and_stops_itself_when_it_wakes(tmp_path):
    x, y = data(SIZE, 8)

    def ranked(rank):
        net, opt = real("decentlam", RING, timeout=3.0, patience=1, on_loss="continue")
        train(net, opt, x[:3], y[:3], rank)
        if rank == 2:
            wait_for(tmp_path / "1", tmp_path / "3")
        began = time.monotonic()
        alone = pytest.raises(PeerError, match="no neighbour of node 2 is left") if rank == 2 else nullcontext()
        with alone:
            train(net, opt, x, y, rank, first=3)
        report(tmp_path, rank, opt, net, seconds=time.monotonic() - began)

    world(SIZE, tmp_path, ranked)
    found = reports(tmp_path, range(SIZE))
    for rank in (1, 3):
        assert [i for i in found[rank]["incidents"] if i[1] == 2] == [[3, 2, "late"], [4, 2, "late"], [4, 2, "lost"]]
        assert not [i for i in found[rank]["incidents"] if i[1] != 2]
    assert found[0]["incidents"] == []
    assert found[1]["seconds"] < 12  # two deadlines, and not one for each of the five steps


@pytest.mark.parametrize("overlap", [False, True])
def test_nan_of_a_neighbour_is_left_out_and_named(overlap, tmp_path):
    x, y = data(SIZE, 6)
    x[3, 2] = float("nan")

    def ranked(rank):
        for policy in ("skip", "stop"):
            net, opt = real("decentlam", RING, nonfinite=policy, overlap=overlap, timeout=20)
            train(net, opt, x[:3], y[:3], rank)
            before = flat(net)
            if rank == 2 and policy == "stop":
                with pytest.raises(NonFiniteError, match="step 3: the gradient of node 2"):
                    train(net, opt, x[:4], y[:4], rank, first=3)
                assert opt.steps == 3
            else:
                train(net, opt, x[:4], y[:4], rank, first=3)
            if rank == 2:
                torch.testing.assert_close(flat(net), before, rtol=0, atol=0)
            if policy == "skip":
                train(net, opt, x, y, rank, first=4)
                assert opt.skipped == (rank == 2)
                assert opt.metrics()["nonfinite"] == (rank in (1, 3))
                report(tmp_path, rank, opt, net)

    world(SIZE, tmp_path, ranked)
    found = reports(tmp_path, range(SIZE))
    assert [found[rank]["incidents"] for rank in range(SIZE)] == [[], [[3, 2, "nonfinite"]], [], [[3, 2, "nonfinite"]]]
    weights = torch.stack([load_file(tmp_path / f"{rank}")["w"] for rank in range(SIZE)])
    assert torch.isfinite(weights).all()


def test_bad_input_is_named(tmp_path):
    def ranked(rank):
        for options, message in (
            ({"on_loss": "wait"}, "on_loss='wait'"), ({"timeout": 0}, "timeout=0"), ({"patience": -1}, "patience=-1"),
            ({"nonfinite": "drop"}, "nonfinite='drop'"), ({"nodes": [[0], [0]]}, "must name each rank"),
            ({"nodes": [[0, 1]]}, "the topology has 2 nodes"), ({"method": "adam"}, "method='adam'"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=message):
                real(options.pop("method", "decentlam"), graphs.ring(2), **options)
        with pytest.raises(InputError, match="the topology has 3 nodes"):
            real("decentlam", graphs.ring(3))
        net, opt = real("decentlam", graphs.ring(2), overlap=True)
        x, y = data(2, 1)
        from tests.decentralized.jobs import loss

        loss(net, (x[0, rank], y[0, rank])).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        with pytest.raises(InputError, match="overlap=False"):
            opt.step()

    world(2, tmp_path, ranked)
    net = torch.nn.Linear(2, 1)
    from isobatch.decentralized import Decentralized

    with pytest.raises(InputError, match="no process group"):
        Decentralized(torch.optim.SGD(net.parameters(), lr=0.1), graphs.ring(2))
    with pytest.raises(InputError, match="Adam cannot"):
        Decentralized(torch.optim.Adam(net.parameters()), graphs.ring(2))
    with pytest.raises(InputError, match="nesterov"):
        Decentralized(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True), graphs.ring(2))
