"""Random numbers held at their mean, so that what is left can be compared."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_MEANS = {"rand": 0.5, "randn": 0.0, "rand_like": 0.5, "randn_like": 0.0}
_FILLS = {"normal_": 0.0, "exponential_": 1.0, "cauchy_": 0.0, "random_": 0, "geometric_": 1}


class Quiet(TorchDispatchMode):
    """Every random operation of torch gives its mean: a dropout mask keeps all, noise is zero, an order is sorted.

    Args:
        silent: replace the numbers; otherwise only count the operations.
    """

    def __init__(self, silent: bool = True):
        super().__init__()
        self.silent = silent
        self.count = 0
        self.coarsest = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Answer one operation.

        Args:
            func: the operation.
            types: of its tensors.
            args: its arguments.
            kwargs: more of them.

        Returns:
            Its result, or the mean of what it draws.
        """
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            result = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel() > 1:
                self.coarsest = max(self.coarsest, torch.finfo(result.dtype).eps)
            return result
        self.count += 1
        name = func.overloadpacket.__name__
        mean = _mean(name, args, {k: v for k, v in kwargs.items() if k != "generator"}) if self.silent else None
        return func(*args, **kwargs) if mean is None else mean


def _mean(name: str, args: Any, kwargs: Any) -> Any:
    """Return what an operation gives on average, None where that has no meaning."""
    if name in ("rand", "randn"):
        return torch.full(args[0], _MEANS[name], **(_with(kwargs, torch.get_default_dtype())))
    if name in ("rand_like", "randn_like"):
        return torch.full_like(args[0], _MEANS[name], **{k: v for k, v in kwargs.items() if v is not None})
    if name == "randperm":
        return torch.arange(args[0], **(_with(kwargs, torch.int64)))
    if name == "bernoulli_":
        return args[0].copy_(args[1]) if isinstance(args[1], torch.Tensor) else args[0].fill_(args[1])
    if name == "bernoulli":
        return args[0].clone() if len(args) == 1 else torch.full_like(args[0], args[1])
    if name == "native_dropout":
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    if name == "uniform_":
        low, high = (*args[1:], *(0.0, 1.0)[len(args) - 1 :])
        return args[0].fill_((low + high) / 2)
    if name == "normal_" and len(args) > 1:
        return args[0].fill_(args[1])
    return args[0].fill_(_FILLS[name]) if name in _FILLS else None


def _with(kwargs: Any, dtype: torch.dtype) -> Any:
    """Keyword arguments of a factory, with a dtype where they hold none."""
    return {"dtype": dtype} | {key: one for key, one in kwargs.items() if one is not None}
