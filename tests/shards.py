"""A small model, its data and its ways of lying over ranks, for tests in worlds of gloo processes."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = 8
WAYS = {"fsdp": 2, "hsdp": 4, "tensor": 2, "both": 4}  # and how many ranks each takes


def net(dtype=torch.float64):
    """Odd sizes, so that parts are uneven and some ranks hold nothing of the last layer."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 34), nn.Tanh(), nn.Linear(34, 17), nn.LayerNorm(17), nn.Linear(17, 1)]
    return nn.Sequential(*layers).to(dtype)


def rows(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator, dtype=dtype)
    return x, x.sum(1, keepdim=True) + torch.randn(count, 1, generator=generator, dtype=dtype) / 2


def mean_loss(model, x, y):
    return (model(x) - y).square().mean()


def spread(model, way, size):
    """Shard a model in place; returns how many data-parallel ranks there are, and which of them this one is."""
    if way == "hsdp":
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copy", "shard"))
        split, ranks = mesh, size
    elif way == "fsdp":
        mesh = split = init_device_mesh("cpu", (size,), mesh_dim_names=("data",))
        ranks = size
    else:
        mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        split, ranks = (mesh["data"], size // 2) if way == "both" else (None, 1)
    if split is not None:
        for layer in (model[0], model[2]) if way != "both" else ():
            fully_shard(layer, mesh=split)
        fully_shard(model, mesh=split)
    rank = torch.distributed.get_rank()
    return ranks, rank // 2 if way in ("tensor", "both") else rank


def whole(tensor):
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def apart(one, other):
    """Largest difference between two sets of tensors by name."""
    assert one.keys() == other.keys()
    return max(float((whole(one[name]) - whole(other[name])).abs().max()) for name in one)


class Largest(TorchDispatchMode):
    """The largest storage that an operation makes."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            plain = isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor) and not tensor.is_meta
            if plain and func._schema.name.split("::")[1].split(".")[0] not in ("detach", "view", "as_strided"):
                self.found = max(self.found, tensor.untyped_storage().nbytes())
        return made
