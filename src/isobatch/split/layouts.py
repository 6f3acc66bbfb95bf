"""Running a trainer's updates in one layout: so many parts, from the same state, with what is to be observed."""

import math
import random
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isobatch.errors import InputError, IsobatchError
from isobatch.gradients import canonical, unwrap
from isobatch.split.found import Holdings, holdings
from isobatch.split.observe import Observer, Update
from isobatch.split.sketch import Named, sketches
from isobatch.split.target import Subject, made
from isobatch.tasks.finding import told

EPS = 2.0**-52
_FACTORY = ("dtype", "layout", "device", "pin_memory", "memory_format")


@dataclass(frozen=True)
class Layout:
    """How some updates are made.

    Args:
        batch: samples an update.
        parts: micro-batches an update (on each process).
        first: sample to begin with.
        updates: how many.
        seed: of the random numbers during the updates.
        quiet: hold random numbers at their mean.
        double: in float64.
        nudge: relative change of the weights, for the noise floor; its sign chooses another one.
        turned: take the samples of a batch in the reverse order.
        amplify: factor on the gradients.
        poison: make one sample of the batch infinite.
        twice: take the first half of a batch twice instead of the whole.
        disturb: path of other state to change after the first update.
        counted: count random operations and find the coarsest type that is computed in.
    """

    batch: int
    parts: int = 1
    first: int = 0
    updates: int = 3
    seed: int = 1
    quiet: bool = False
    double: bool = True
    nudge: float = 0.0
    turned: bool = False
    amplify: float = 1.0
    poison: bool = False
    twice: bool = False
    counted: bool = False
    disturb: str = ""

    def but(self, **changes: Any) -> "Layout":
        """Return this layout with some changes.

        Args:
            **changes: fields.

        Returns:
            Another layout.
        """
        return replace(self, **changes)

    def __str__(self) -> str:
        even = self.batch % self.parts == 0
        return f"{self.parts} x {self.batch // self.parts}" if even else f"{self.parts} uneven parts of {self.batch}"


@dataclass
class Record:
    """What was observed in one layout.

    Args:
        layout: how the updates were made.
        updates: what each did.
        start: weights at the start.
        data: a sketch of the first batch.
        failed: why the updates could not be made, empty where they could.
        operations: random operations of torch, where they were counted.
        loose: those of them that cannot be held at their mean.
        coarsest: eps of the coarsest type that was computed in, where it was looked for.
        drift: largest relative distance between the weights of two processes.
    """

    layout: Layout
    updates: list[Update] = field(default_factory=list)
    start: Named = field(default_factory=dict)
    data: Named = field(default_factory=dict)
    failed: str = ""
    operations: int = 0
    loose: list[str] = field(default_factory=list)
    coarsest: float = EPS
    drift: float = 0.0


def run_layout(make: Callable[..., Any], layout: Layout, seed: int = 0) -> Record:
    """Make a trainer and let it make its updates in a layout; random numbers and torch's settings are given back.

    Args:
        make: makes the trainer.
        layout: how.
        seed: under which it is made.

    Returns:
        What was observed; an exception of the update is told in `failed`.

    Raises:
        InputError: make raised, or gave something that cannot be checked.
    """
    with given_back(layout.double), ExitStack() as stack:
        subject = made(make, seed)
        indices = _indices(subject, layout)
        subject.open(indices, layout.parts)
        if layout.double:
            stack.enter_context(_in_double(subject))
        if layout.poison:
            subject.convert(lambda tensor: _poisoned(tensor, indices[0]))
        if layout.nudge:
            _nudge(subject.model, layout.nudge)
        record = Record(layout, start=sketches((canonical(n), p) for n, p in unwrap(subject.model).named_parameters()))
        record.data = _batch_sketch(subject, indices[0])
        _observe(subject, indices, layout, record)
    return record


def _observe(subject: Subject, indices: list[Tensor], layout: Layout, record: Record) -> None:
    _seed(subject, layout.seed)
    quiet = Quiet(layout.quiet) if layout.quiet or layout.counted else None
    observer = Observer(subject, layout.amplify, layout.disturb)
    try:
        with ExitStack() as stack:
            stack.enter_context(observer)
            if quiet is not None:
                stack.enter_context(quiet)
            subject.run(indices, layout.parts, observer)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except InputError:
        raise
    except BaseException as error:
        record.failed = told(error)
    record.updates = observer.updates
    if not record.failed and len(record.updates) != len(indices):
        record.failed = f"{len(record.updates)} of {len(indices)} updates were made"
    if quiet is not None:
        record.operations, record.coarsest, record.loose = quiet.count, quiet.coarsest, sorted(quiet.loose)


@contextmanager
def given_back(double: bool) -> Generator[None]:
    """Restore random generators, torch's default type and determinism afterwards; what is printed goes to stderr.

    Args:
        double: make tensors in float64 meanwhile.

    Yields:
        None.
    """
    import sys

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        if double:
            torch.set_default_dtype(torch.float64)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def _seed(subject: Subject, seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    for generator in _held(subject).generators.values():
        for _ in range(seed - 1):  # one of the trainer's own keeps its place, other seeds move it on
            generator.random()


def _indices(subject: Subject, layout: Layout) -> list[Tensor]:
    rows = subject.rows()
    if rows < layout.batch:
        raise InputError(
            f"{rows} samples are less than a batch of {layout.batch}; give more, or a smaller --batch-size (at least 4)"
        )
    found = [
        (layout.first + torch.arange(u * layout.batch, (u + 1) * layout.batch)) % rows for u in range(layout.updates)
    ]
    if layout.turned:
        found = [one.flip(0) for one in found]
    if layout.twice:  # the first half of each batch, twice
        found = [one[: len(one) // 2].repeat(2) for one in found]
    return found


@contextmanager
def _in_double(subject: Subject) -> Generator[None]:
    """Compute in float64; modules that outlive the trainer, such as a teacher of its file, are given back."""
    beside = list(_held(subject).modules.values())
    parameters = [(parameter, parameter.data) for module in beside for parameter in module.parameters()]
    buffers = [(part._buffers, dict(part._buffers)) for module in beside for part in module.modules()]
    for module in (subject.model, *beside):
        module.double()
    subject.convert(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.grad, parameter.data = None, data
        for held, before in buffers:
            held.update(before)


def _poisoned(tensor: Tensor, rows: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.clone()
    tensor[rows[1]] = float("inf")
    return tensor


def _nudge(model: nn.Module, size: float) -> None:
    generator = torch.Generator().manual_seed(1 if size > 0 else 2)
    with torch.no_grad():
        for parameter in model.parameters():
            sign = torch.rand(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.device) - 0.5
            parameter.mul_(1 + abs(size) * sign.sign().to(parameter.dtype))


def _batch_sketch(subject: Subject, rows: Tensor) -> Named:
    found: list[Tensor] = []
    try:
        from isobatch.gradients import mapped

        mapped(subject.batch(rows), lambda tensor: found.append(tensor) or tensor)
    except (IsobatchError, TypeError, AttributeError, KeyError, IndexError):
        return {}
    return sketches((str(i), tensor) for i, tensor in enumerate(found))


def _held(subject: Subject) -> Holdings:
    return holdings(subject.model, subject.roots(), (subject.samples, subject))


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
