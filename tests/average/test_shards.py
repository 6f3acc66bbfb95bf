"""Averages of sharded models: FSDP2, HSDP, tensor parallel and both; each rank holds its shards and nothing more."""

import contextlib

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.gloo import world
from tests.shards import ROWS, WAYS, Largest, apart, mean_loss, net, rows, spread, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial

from isobatch.average import LAWA, SWA, ModelEMA, MultiEMA, PowerEMA, Storage, SwitchEMA, intake, trainable
from isobatch.errors import InputError, NonFiniteError

H = 300.0
KINDS = {
    "ema": (lambda m: ModelEMA(m, half_life=H), None),
    "hold": (lambda m: MultiEMA(m, half_lives=[50, H], kind="hold"), 50),
    "power": (lambda m: PowerEMA(m, sigma_rels=[0.05, 0.1]), 0.05),
    "swa": (lambda m: SWA(m, start=0), None),
    "lawa": (lambda m: LAWA(m, last=2, every=16), None),
    "pooled": (lambda m: ModelEMA(m, half_life=H, storage=Storage(flat=True)), None),
    "seldom": (lambda m: ModelEMA(m, half_life=H, cadence=2), None),
    "narrow": (lambda m: ModelEMA(m, half_life=H, dtype=torch.bfloat16, storage=Storage(rounding="compensated")), None),
    "chosen": (lambda m: ModelEMA(m, half_life=H, storage=Storage(select=trainable)), None),
    "switch": (lambda m: SwitchEMA(ModelEMA(m, half_life=H), every=10_000), None),
}


def trained(model, averages, ranks, steps, *, mine=None, start=0, optimizer=None):
    """Train in one process on the rows of all ranks, or (mine) on this rank's rows of a sharded model."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(start, start + steps):
        optimizer.zero_grad()
        for rank in range(ranks) if mine is None else [mine]:
            x, y = rows(ROWS, 100 * step + rank)
            (mean_loss(model, x, y) / (ranks if mine is None else 1)).backward()
        optimizer.step()
        for average in averages:
            average.update(samples=ROWS * ranks)
    return optimizer


def every_kind(way, size, before):
    """Train a sharded model and its twin in one process; compare all averages, and all that they hand out."""
    model, twin = net(), net()
    kinds = {name: kind for name, kind in KINDS.items() if not before or name in ("ema", "hold", "pooled")}
    averages = [make(model) for make, _ in kinds.values()] if before else []
    ranks, mine = spread(model, way, size)
    averages = averages or [make(model) for make, _ in kinds.values()]
    others = [make(twin) for make, _ in kinds.values()]
    optimizer = trained(model, averages, ranks, 3, mine=mine)
    with torch.no_grad():
        model(rows(2, 0)[0])  # leaves the root of FSDP2 unsharded
    trained(model, averages, ranks, 2, mine=mine, start=3, optimizer=optimizer)
    trained(twin, others, ranks, 5)
    for name, average, other in zip(kinds, averages, others, strict=True):
        which = kinds[name][1]
        held = average.average(which)
        assert all(type(t) is (DTensor if isinstance(p, DTensor) else torch.Tensor) for t, p in _beside(held, model))
        assert apart(held, other.average(which)) < (1e-12 if name != "narrow" else 1e-3), (way, name)
        here, there = average.report(which), other.report(which)
        assert here.distance == pytest.approx(there.distance, rel=1e-6 if name == "narrow" else 1e-12), (way, name)
        assert here.frozen_share == pytest.approx(there.frozen_share), (way, name)
    lent(model, averages[0], others[0], lambda: trained(model, averages, ranks, 1, mine=mine, start=5))
    return model, averages[0], others[0], ranks, mine


def _beside(held, model):
    named = dict(model.named_parameters())
    return [(held[name], named[name]) for name in held]


def lent(model, average, other, train):
    """applied(), the teacher and the copy compute as one process does, and leave the weights bit for bit."""
    x = rows(5, 7)[0]
    raw = {name: _part(p).clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        wanted, plain = other.average_model()(x), other._engine.buffers.root(x)
        with average.applied(model):
            assert float((model(x) - wanted).abs().max()) < 1e-12
            full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            assert not full or apart(full, other.average()) < 1e-12
        with pytest.raises(RuntimeError), average.applied(model):
            model(rows(5, 7)[0][:, :3])  # of another width, so it fails on its way
        assert float((model(x) - plain).abs().max()) < 1e-12
        teacher, copy = average.teacher(), average.average_model()
        assert float((teacher(x) - wanted).abs().max()) < 1e-12
        assert float((copy(x) - wanted).abs().max()) < 1e-12
    average.report()
    assert all(torch.equal(raw[name], _part(p)) for name, p in model.named_parameters())
    train()
    with torch.no_grad():
        teacher(x)
        assert average.teacher() is teacher
        assert apart(dict(teacher.named_parameters()), average.average()) == 0
        assert apart(dict(copy.named_parameters()), other.average()) < 1e-12
        average.copy_to(copy)
        assert apart(dict(copy.named_parameters()), average.average()) == 0


def _part(tensor):
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()


def one_verdict(model, average, rank):
    """A NaN in the part of one rank is refused by name on all, and nothing has moved."""
    before = {name: _part(t).clone() for name, t in average.average().items()}
    weight = _part(dict(model.named_parameters())["0.weight"])
    kept = weight.clone()
    if rank == 0:
        weight[0, 0] = torch.nan
    for call in (lambda: average.update(samples=8), average.reset):
        with pytest.raises(NonFiniteError, match=r"'0\.weight'"):
            call()
    weight.copy_(kept)
    assert all(torch.equal(before[name], _part(t)) for name, t in average.average().items())
    state = average.state_dict()
    broken = {key: t.clone() if isinstance(t, torch.Tensor) else t for key, t in state["tensors"].items()}
    if rank == 0:
        _part(broken["average/0.weight"])[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        average.load_state_dict({**state, "tensors": broken})
    assert all(torch.equal(before[name], _part(t)) for name, t in average.average().items())


def one_verdict_before_use(size, rank, least):
    """A NaN that one rank's average took in where nobody looked yet is refused on all ranks, then mended on one."""
    model = net()
    spread(model, "fsdp", size)
    average = ModelEMA(model, half_life=H)
    assert (average._engine.buffers.check.turns > 1) == (rank == 0 or least < 100)
    weight = _part(dict(model.named_parameters())["4.weight"])  # all of it on rank 0
    kept = weight.clone()
    average.update(samples=8)
    average.average()
    if rank == 0:
        weight[-1, -1] = torch.nan
    average.update(samples=8)  # that share is not due
    for use in (average.average, average.state_dict, lambda: average.copy_to(model), average.average):
        with pytest.raises(NonFiniteError, match=r"'4\.weight' took in"):
            use()
    weight.copy_(kept)
    with pytest.warns(UserWarning, match="elements of the average") if rank == 0 else contextlib.nullcontext():
        held = average.average()
    assert all(bool(_part(t).isfinite().all()) for t in held.values())


def states(average, other, way):
    """A state in whole tensors goes into shards and back; shards into something else are refused."""
    state = average.state_dict()
    gathered = {**state, "tensors": {key: whole(t) for key, t in state["tensors"].items()}}
    fresh, plain = ModelEMA(average._engine.buffers.root, half_life=H), ModelEMA(net(), half_life=H)
    fresh.load_state_dict(gathered)
    assert apart(fresh.average(), average.average()) == 0
    assert fresh.seen == average.seen
    fresh.load_average({name: torch.ones(t.shape) for name, t in average.average().items()})
    assert all(bool((_part(t) == 1).all()) for t in fresh.average().values())
    plain.load_state_dict(gathered)
    assert apart(plain.average(), average.average()) == 0
    with pytest.raises(InputError, match="full_tensor"):
        plain.load_state_dict(state)
    with pytest.raises(InputError, match="full_tensor"):
        average.copy_to(net())
    with pytest.raises(InputError, match="full_tensor"), average.applied(net()):
        pass


def no_whole_copy(size):
    """Whatever an average does, no tensor is made that is larger than this rank's shard of the largest layer."""
    model = nn.Sequential(nn.Linear(256, 64, bias=False), nn.Linear(64, 4, bias=False)).double()
    for layer in (*model, model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
    with Largest() as largest:
        average = ModelEMA(model, half_life=H)
        average.update(samples=8)
        average.report()
        state = average.state_dict()
        average.load_state_dict(state)
        with average.applied(model):
            pass
        average.teacher()
        average.average_model()
        average.reset()
    whole_layer = 256 * 64 * 8
    assert 0 < largest.found <= whole_layer // size, (largest.found, whole_layer)


def refused(size):
    """Sums that are not added up, and what FSDP1 has flattened, are refused by name."""
    mesh = init_device_mesh("cpu", (size,))
    partial, flat = nn.Linear(2, 1), nn.Linear(2, 1)
    partial.weight = nn.Parameter(DTensor.from_local(torch.ones(1, 2), mesh, [Partial()]))
    flat.weight._fsdp_flattened = True  # torch's own mark
    for model, way in ((partial, "redistribute"), (flat, "fully_shard")):
        with pytest.raises(InputError, match=rf"'weight'.*{way}"):
            ModelEMA(model, half_life=H)


def test_two_ranks(tmp_path):
    def act(rank):
        for way, before in (("fsdp", False), ("fsdp", True), ("tensor", False)):
            model, average, other, *_ = every_kind(way, WAYS[way], before)
            one_verdict(model, average, rank)
            states(average, other, way)
        no_whole_copy(2)
        refused(2)

    world(2, tmp_path, act)


def test_two_ranks_agree_before_an_average_is_used(tmp_path):
    def act(rank):
        for intake.LEAST in (4, 480):  # both look in turn; only the one with the larger part does
            one_verdict_before_use(2, rank, intake.LEAST)

    world(2, tmp_path, act)


def test_four_ranks_and_then_two_at_another_batch(tmp_path):
    folder = str(tmp_path / "state")

    def resumed(model, ranks, steps, mine=None, optimizer=None):
        average = ModelEMA(model, half_life=H)
        state = {"ema": average.state_dict()}
        dcp.load(state, checkpoint_id=folder)
        average.load_state_dict(state["ema"])
        trained(model, [average], ranks, steps, mine=mine, start=20)
        return average

    def four(rank):
        for way in ("hsdp", "both"):
            model, average, other, *_ = every_kind(way, WAYS[way], False)
            one_verdict(model, average, rank)
            states(average, other, way)
        dcp.save({"ema": average.state_dict()}, checkpoint_id=folder)

    def two(rank):
        model = net()
        ranks, mine = spread(model, "fsdp", 2)
        average = resumed(model, ranks, 2, mine)
        assert apart(average.average(), resumed(net(), ranks, 2).average()) < 1e-12
        assert average.seen == 6 * 2 * ROWS + 2 * 2 * ROWS

    world(4, tmp_path, four)
    world(2, tmp_path, two)
