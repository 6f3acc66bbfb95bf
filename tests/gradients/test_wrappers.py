"""One bare optimizer, one process group of a model: whatever wraps them."""

import numpy as np
import pytest
import torch
from tests.gloo import world
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isobatch.errors import InputError
from isobatch.gradients import ALONE, bare_optimizer, canonical, process_group_of, unwrap, world_size


def compiled(model):
    return torch.compile(model, backend="eager")


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


class Passing(torch.optim.Optimizer):
    """Has neither groups nor state of its own, as accelerate's wrapper."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state


class Forwarding(torch.optim.Optimizer):
    """Passes every attribute on, as Lightning's wrapper."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


class Sharing(torch.optim.Optimizer):
    """Shares the dictionary of the optimizer, and keeps it beside."""

    def __init__(self, optimizer):
        self.__dict__ = optimizer.__dict__.copy()
        self.optimizer = optimizer


class Lookahead(torch.optim.Optimizer):
    """Shares the groups but steps by itself, with a state of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups


@pytest.mark.parametrize(
    ("wrap", "through"),
    [
        (lambda o: o, True),
        (Passing, True),
        (Forwarding, True),
        (Sharing, True),
        (lambda o: Passing(Forwarding(o)), True),
        (lambda o: Forwarding(Passing(Sharing(o))), True),
        (Lookahead, False),
        (lambda o: Passing(Lookahead(o)), False),
    ],
)
def test_the_optimizer_that_steps(wrap, through):
    inner = sgd()
    found = bare_optimizer(wrap(inner))
    assert (found is inner) is through
    assert through or type(found) is Lookahead


@pytest.mark.parametrize("thing", [None, nn.Linear(1, 1), "sgd", [sgd()], object(), 3, {}, Passing])
def test_what_is_no_optimizer_is_refused(thing):
    with pytest.raises(InputError, match="give the one that steps"):
        bare_optimizer(thing)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        DataParallel,
        compiled,
        lambda m: compiled(DataParallel(m)),
        lambda m: DataParallel(compiled(m)),
        lambda m: DataParallel(DataParallel(m)),
    ],
)
def test_the_model_inside(wrap):
    inner = nn.Sequential(nn.Linear(1, 1))
    assert unwrap(wrap(inner)) is inner
    assert process_group_of(wrap(inner)) is None


def test_names_without_what_wrappers_add():
    net = nn.Sequential(compiled(nn.Linear(1, 1)))
    assert [canonical(name) for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]


def test_groups_of_one_process():
    assert world_size() == 1
    assert process_group_of(nn.Linear(1, 1), ALONE) is None
    with pytest.raises(InputError, match="process_group='world'"):
        process_group_of(nn.Linear(1, 1), "world")


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def test_the_ranks_of_a_model(tmp_path):
    def action(rank):
        pair, all_ = dist.new_group([0, 1]), dist.group.WORLD
        solo = [dist.new_group([r]) for r in range(2)][rank]
        net = nn.Sequential(nn.Linear(2, 1))
        cases = {
            "nobody": (net, None, all_),
            "no guess": (net, False, None),
            "parameters": (net.parameters(), None, all_),
        }
        found = {name: process_group_of(m, guess=g is None) is right for name, (m, g, right) in cases.items()}
        ddp = DistributedDataParallel(net, process_group=pair)
        wrapped = {
            "ddp": ddp,
            "inner": net,
            "inside": net[0],
            "compile": compiled(ddp),
            "holder": Holder(ddp),
            "compiled inner": compiled(net),
            "parameters": list(net.parameters()),
        }
        found |= {name: process_group_of(m, guess=False) is pair for name, m in wrapped.items()}
        found["another"] = process_group_of(nn.Linear(1, 1), guess=False) is None
        found["given"] = process_group_of(ddp, all_) is all_ and process_group_of(ddp, solo) is None
        found["alone"] = process_group_of(ddp, ALONE) is None
        outside = DistributedDataParallel(compiled(nn.Linear(2, 1)), process_group=pair)
        found["ddp of compile"] = process_group_of(unwrap(outside), guess=False) is pair
        np.save(tmp_path / f"{rank}.npy", sorted(name for name, right in found.items() if not right))

    world(2, tmp_path, action)
    assert [list(np.load(tmp_path / f"{rank}.npy")) for rank in range(2)] == [[], []]


def test_shards_see_each_other_and_their_copies_do_not(tmp_path):
    def action(rank):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        def group(shape):
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copy", "shard")[-len(shape) :])
            model = nn.Linear(8, 2)
            fully_shard(model, mesh=mesh)
            given = [process_group_of(source) for source in (model, model.parameters())]
            assert given[0] is given[1] is process_group_of(model, dist.group.WORLD)
            return mesh, given[0]

        assert group((4,))[1] is None
        mesh, found = group((2, 2))
        assert dist.get_process_group_ranks(found) == dist.get_process_group_ranks(mesh.get_group("copy"))

    world(4, tmp_path, action)
