"""Random operations of torch held at their mean, so that parts differ by nothing but the parts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EPS = 2.0**-52
_FACTORY = ("dtype", "layout", "device", "pin_memory", "memory_format")


class Quiet(TorchDispatchMode):
    """Every random operation of torch gives its mean: a dropout mask keeps all, noise is zero, an order is sorted.

    Args:
        silent: replace the numbers; otherwise only count the operations.
    """

    def __init__(self, silent: bool = True):
        super().__init__()
        self.silent = silent
        self.count = 0
        self.loose: set[str] = set()
        self.coarsest = EPS

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
            if isinstance(result, Tensor) and result.is_floating_point() and result.numel() > 1:
                self.coarsest = max(self.coarsest, torch.finfo(result.dtype).eps)
            return result
        self.count += 1
        name = func.overloadpacket.__name__
        mean = _MEANS.get(name)
        if mean is None:
            self.loose.add(name)
        if mean is None or not self.silent:
            return func(*args, **kwargs)
        return mean(_named(func, args, kwargs))


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, with the defaults that a call leaves out."""
    wanted = func._schema.arguments
    given = {one.name: one.default_value for one in wanted if one.has_default_value() and one.name not in _FACTORY}
    return given | dict(zip((one.name for one in wanted), args, strict=False)) | kwargs


def _made(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of a factory, with a dtype where they hold none."""
    return {"dtype": dtype} | {key: given[key] for key in _FACTORY if given.get(key) is not None}


def _full(given: dict[str, Any], value: float) -> Tensor:
    if "self" in given:
        return torch.full_like(given["self"], value, **_made(given, given["self"].dtype))
    dtype = torch.int64 if isinstance(value, int) else torch.get_default_dtype()
    return torch.full(given["size"], value, **_made(given, dtype))


def _between(given: dict[str, Any]) -> int:
    """The middle of the whole numbers of randint and random_, the lowest where no end is given."""
    low = int(given.get("low", given.get("from", 0)) or 0)
    high = given.get("high", given.get("to"))
    return low if high is None else low + max(int(high) - low - 1, 0) // 2


def _normal(given: dict[str, Any]) -> Tensor:
    mean, like = given["mean"], given.get("std")
    if isinstance(mean, Tensor):
        return mean + torch.zeros_like(like) if isinstance(like, Tensor) else mean.clone()
    return torch.full_like(like, mean) if isinstance(like, Tensor) else _full(given, float(mean))


def _multinomial(given: dict[str, Any]) -> Tensor:
    weights, count = given["self"], given["num_samples"]
    if given["replacement"]:
        return weights.argmax(-1, keepdim=True).expand(*weights.shape[:-1], count).clone()
    return weights.topk(count, -1)[1]


def _bernoulli(given: dict[str, Any]) -> Tensor:
    chance = given.get("p", given["self"])
    return (chance + torch.zeros_like(given["self"])) if isinstance(chance, Tensor) else _full(given, chance)


def _filled(value: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Tensor]:
    def fill(given: dict[str, Any]) -> Tensor:
        mean = value(given)
        return given["self"].copy_(mean) if isinstance(mean, Tensor) else given["self"].fill_(mean)

    return fill


_MEANS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rand": lambda given: _full(given, 0.5),
    "rand_like": lambda given: _full(given, 0.5),
    "randn": lambda given: _full(given, 0.0),
    "randn_like": lambda given: _full(given, 0.0),
    "randint": lambda given: _full(given, _between(given)),
    "randint_like": lambda given: _full(given, _between(given)),
    "randperm": lambda given: torch.arange(given["n"], **_made(given, torch.int64)),
    "normal": _normal,
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "poisson": lambda given: given["self"].clone(),
    "binomial": lambda given: given["count"] * given["prob"],
    "_standard_gamma": lambda given: given["self"].clone(),
    "_sample_dirichlet": lambda given: given["self"] / given["self"].sum(-1, keepdim=True),
    "native_dropout": lambda given: (given["input"].clone(), torch.ones_like(given["input"], dtype=torch.bool)),
    "bernoulli_": _filled(lambda given: given["p"]),
    "uniform_": _filled(lambda given: (given["from"] + given["to"]) / 2),
    "normal_": _filled(lambda given: given["mean"]),
    "cauchy_": _filled(lambda given: given["median"]),
    "exponential_": _filled(lambda given: 1 / given["lambd"]),
    "geometric_": _filled(lambda given: round(1 / given["p"])),
    "log_normal_": _filled(lambda given: math.exp(given["mean"] + given["std"] ** 2 / 2)),
    "random_": _filled(_between),
}
"""Operation -> its mean from its arguments; the middle of whole numbers, the likeliest of classes."""
