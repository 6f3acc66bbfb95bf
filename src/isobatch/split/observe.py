"""Looking on while a trainer makes its updates: hooks on gradients, steps, clipping and forward passes."""

import math
import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from isobatch.errors import InputError
from isobatch.gradients import canonical, unwrap
from isobatch.split.found import holdings
from isobatch.split.sketch import Named, mark, sketch, sketches, whole
from isobatch.split.target import Subject

_CLIPS = ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_")


@dataclass
class Pass:
    """One backward pass.

    Args:
        loss: the value that was differentiated.
        gives: what it contributed to each parameter's gradient.
        holds: the gradients after it.
    """

    loss: float
    gives: Named
    holds: Named


@dataclass
class Update:
    """What one update did.

    Args:
        reported: the loss as the trainer reports it.
        passes: backward passes that reached parameters.
        stepped: gradients that each optimizer step was given.
        unclipped: gradients that clipping was given, the last before each step.
        clips: calls of torch's clipping.
        rates: learning rates at each step.
        before: weights.
        after: weights.
        tensors: group -> path -> sketch, after the update; with buffers of the model.
        earlier: the same before it.
        numbers: group -> path -> value, after the update.
        change: group -> path -> how far the number moved.
        moves: path of a tensor or number -> at how many events it was found changed.
        outside: how often weights changed outside of an optimizer step.
        shrinks: the factor that each such change was, NaN where it was none.
        forwards: forward passes of the model with gradient.
        calls: path of another module -> forward passes.
        drew: random generators that were used.
        sizes: rows of each forward pass.
        rows: a number a row of the model's inputs, in order.
        outputs: module -> a number a row of what it returned, call after call.
        training: module -> forward passes in training mode, and all, with gradient.
        finite: whether weights are finite after it.
        norms: length of the gradient that the last step of each parameter was given, where gradients are amplified.
        dtype: of the loss.
    """

    reported: float | None = None
    passes: list[Pass] = field(default_factory=list)
    stepped: list[Named] = field(default_factory=list)
    unclipped: list[Named] = field(default_factory=list)
    clips: int = 0
    rates: list[list[float]] = field(default_factory=list)
    before: Named = field(default_factory=dict)
    after: Named = field(default_factory=dict)
    tensors: dict[str, Named] = field(default_factory=dict)
    earlier: dict[str, Named] = field(default_factory=dict)
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    change: dict[str, dict[str, float]] = field(default_factory=dict)
    moves: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    shrinks: list[float] = field(default_factory=list)
    forwards: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    drew: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    outputs: dict[str, list[float]] = field(default_factory=dict)
    training: dict[str, list[int]] = field(default_factory=dict)
    finite: bool = True
    norms: dict[str, float] = field(default_factory=dict)
    dtype: str = "float64"


class Observer:
    """Watches the updates of one subject.

    Args:
        subject: the trainer.
        amplify: factor put on every contribution to a gradient.
        disturb: path of other state that is changed after the first update.
    """

    def __init__(self, subject: Subject, amplify: float = 1.0, disturb: str = ""):
        self.disturb = disturb
        self.subject, self.amplify = subject, amplify
        self.bare = unwrap(subject.model)
        self.parameters = {canonical(n): p for n, p in self.bare.named_parameters()}
        self.updates: list[Update] = []
        self.late: dict[str, Any] = {}
        self.now: Update | None = None
        self._gives: Named = {}
        self._depth = 0
        self._marks: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._states: dict[str, Any] = {}
        self._entered: set[int] = set()
        self._stack = ExitStack()

    def watch(self, **roots: Any) -> None:
        """Add what comes into being late, such as a scheduler that a trainer makes in `fit`.

        Args:
            **roots: name -> object.
        """
        self.late |= roots

    def __enter__(self) -> "Observer":
        keep = self._stack.callback
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                keep(parameter.register_hook(lambda g, n=name: self._contribution(n, g)).remove)
        # plain functions: a copy of the model (an average) must not copy this observer with its hooks
        enters = _untraced(lambda m, a, k: self._enters(m, a, k))
        keep(self.bare.register_forward_pre_hook(enters, with_kwargs=True).remove)
        self._names = {id(module): name for name, module in self.bare.named_modules() if name}
        for module in self.bare.modules():
            left = _untraced(lambda m, a, out: self._output(m, out))
            keep(module.register_forward_hook(left).remove)
        keep(register_optimizer_step_pre_hook(self._before_step).remove)
        keep(register_optimizer_step_post_hook(self._after_step).remove)
        self._stack.enter_context(_patched(torch.autograd, "backward", self._backward))
        for name in _CLIPS:
            self._stack.enter_context(_everywhere(name, self._clip))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Note that an update begins."""
        self._flush()
        held = self._held()
        self.now = Update(before=self._weights(), earlier=self._tensors(held))
        self._numbers = held.numbers
        self._states = _states(held.generators)
        for path, module in held.modules.items():
            if id(module) not in self._entered:
                self._entered.add(id(module))
                hook = module.register_forward_pre_hook(_untraced(lambda m, a, p=path: self._called(p)))
                self._stack.callback(hook.remove)
        self._marks = self._marked(held)

    def end(self, reported: Any = None) -> None:
        """Note that an update is over.

        Args:
            reported: the loss that the trainer reports for it, None where it reports none.
        """
        if self.now is None:
            return
        self._close_pass(float("nan"))
        self._event()
        held, now = self._held(), self.now
        now.after, now.tensors, now.numbers = self._weights(), self._tensors(held), held.numbers
        now.change = {group: {path: value - self._numbers.get(group, {}).get(path, 0.0) for path, value in all_.items()}
                      for group, all_ in held.numbers.items()}  # fmt: skip
        now.drew = [name for name, state in _states(held.generators).items() if state != self._states.get(name, state)]
        now.finite = all(bool(torch.isfinite(one).all()) for one in now.after.values())
        if reported is not None:
            now.reported = number(reported)
        self.updates.append(now)
        self.now = None
        if len(self.updates) == 1 and self.disturb in held.tensors.get("other", {}):
            with torch.no_grad():
                held.tensors["other"][self.disturb].mul_(1.5).add_(0.1)

    def report(self, loss: Any) -> None:
        """Note a loss that is reported after the update it belongs to.

        Args:
            loss: a number or a tensor.
        """
        target = self.now or (self.updates[-1] if self.updates else None)
        if target is not None:
            target.reported = number(loss)

    def _flush(self) -> None:
        self._gives, self._depth = {}, 0

    def _held(self) -> Any:
        roots = {**self.subject.roots(), **self.late}
        return holdings(self.subject.model, roots, (self.subject.samples, self.subject, self))

    def _weights(self) -> Named:
        return sketches(self.parameters.items())

    def _tensors(self, held: Any) -> dict[str, Named]:
        found = {group: sketches(tensors.items()) for group, tensors in held.tensors.items()}
        buffers = [(canonical(n), b) for n, b in self.bare.named_buffers()]
        return found | {"buffers": sketches(buffers)}

    def _marked(self, held: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for group in ("average", "average buffers", "other"):
            found |= {path: mark(tensor) for path, tensor in held.tensors.get(group, {}).items()}
        for group in ("scheduler", "scaler", "average"):
            found |= held.numbers.get(group, {})
        found |= {f"buffers:{name}": mark(buffer) for name, buffer in self.bare.named_buffers()}
        return found | {"weights": [mark(p) for p in self.parameters.values()], "rates": held.rates}

    def _event(self, *, stepping: bool = False) -> None:
        """See what changed since the last event."""
        if self.now is None:
            return
        fresh = self._marked(self._held())
        for path, value in fresh.items():
            if path in self._marks and self._marks[path] != value and value == value:
                if path == "weights":
                    if not stepping:
                        self.now.outside += 1
                        self.now.shrinks.append(_factor(self._marks[path], value))
                else:
                    self.now.moves[path] = self.now.moves.get(path, 0) + 1
        self._marks = fresh

    def _contribution(self, name: str, gradient: Tensor) -> Tensor | None:
        gradient = gradient * self.amplify if self.amplify != 1.0 else gradient
        if self.now is not None:
            one = sketch(gradient)
            self._gives[name] = self._gives[name] + one if name in self._gives else one
        return gradient if self.amplify != 1.0 else None

    def _backward(self, real: Callable[..., Any], tensors: Any, *args: Any, **kwargs: Any) -> Any:
        outer, self._depth = self._depth == 0, self._depth + 1
        if outer:
            self._event()
            self._gives = {}
        try:
            result = real(tensors, *args, **kwargs)
        finally:
            self._depth -= 1
        if outer and self.now is not None and self._gives:
            roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self.now.dtype = str(roots[0].dtype).removeprefix("torch.")
            value = sum(float(one.detach().sum()) for one in roots)
            self._close_pass(value)
        return result

    def _close_pass(self, value: float) -> None:
        if self.now is not None and self._gives:
            holds = sketches((n, p.grad) for n, p in self.parameters.items())
            self.now.passes.append(Pass(value, self._gives, holds))
            self._gives = {}

    def _enters(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.now is None or module is not self.bare:
            return
        self._event()
        if torch.is_grad_enabled():
            if self._gives and self._depth == 0:  # taken by torch.autograd.grad
                self._close_pass(float("nan"))
            self.now.forwards += 1
            rows = _row_numbers((*args, *kwargs.values()))
            self.now.sizes.append(len(rows))
            self.now.rows += rows

    def _called(self, path: str) -> None:
        if self.now is not None:
            self.now.calls[path] = self.now.calls.get(path, 0) + 1

    def _output(self, module: nn.Module, out: Any) -> None:
        name = self._names.get(id(module))
        inside = self.now is not None and not self.updates and self._depth == 0
        if name is not None and self.now is not None and inside and torch.is_grad_enabled():
            self.now.outputs.setdefault(name, []).extend(_row_numbers((out,)))
            on, passes = self.now.training.get(name, (0, 0))
            self.now.training[name] = [on + module.training, passes + 1]

    def _ours(self, optimizer: Any) -> bool:
        own = {id(p) for p in self.parameters.values()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See the gradients of a step; those that a closure makes inside it, when the closure is done."""
        if self.now is None or not self._ours(optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._event()
        self._close_pass(float("nan"))
        self.now.rates.append([float(group.get("lr", 0.0)) for group in optimizer.param_groups])
        place = len(self.now.stepped)
        self.now.stepped.append(self._given(optimizer))
        if closure is None:
            return None

        def called() -> Any:
            result = closure()
            if self.now is not None:
                self._close_pass(float("nan"))
                self.now.stepped[place] = self._given(optimizer)
            return result

        return (optimizer, called, *args[2:]), {key: one for key, one in kwargs.items() if key != "closure"}

    def _given(self, optimizer: Any) -> Named:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self.now is not None and self.amplify > 1:  # a sketch has another length
            given = {n: p.grad for n, p in self.parameters.items() if id(p) in held and p.grad is not None}
            self.now.norms |= {n: float(torch.linalg.vector_norm(whole(one).double())) for n, one in given.items()}
        return sketches((n, p.grad) for n, p in self.parameters.items() if id(p) in held)

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        if self._ours(optimizer):
            self._event(stepping=True)

    def _clip(self, real: Callable[..., Any], parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if self.now is not None and torch.is_grad_enabled() is not None:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            self.now.clips += 1
            self.now.unclipped.append(sketches((n, p.grad) for n, p in self.parameters.items()))
        return real(parameters, *args, **kwargs)


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that a compiled model leaves alone; who compiles nothing does not pay for the compiler's import."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _factor(before: list[tuple[float, ...]], after: list[tuple[float, ...]]) -> float:
    """Return c where what changed became c times what it was, NaN where there is no such c."""
    pairs = [
        (a, b) for one, other in zip(before, after, strict=True) for a, b in zip(one, other, strict=True) if a != b
    ]
    ratios = [b / a for a, b in pairs if a]
    if not ratios or len(ratios) < len(pairs) or max(ratios) - min(ratios) > 1e-6 * abs(ratios[0]):
        return math.nan
    return ratios[0]


def number(value: Any) -> float:
    """Return a reported loss as a float.

    Args:
        value: a number, or a tensor, whose mean it is.

    Returns:
        The number.

    Raises:
        InputError: something else.
    """
    if isinstance(value, Tensor):
        return float(value.detach().double().mean())
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"update returned {type(value).__name__}; it must return the loss as a number, or None"
        ) from None


def _row_numbers(nest: Any) -> list[float]:
    """Return one number a row of the first tensor with rows, by which a row is known again."""
    for tensor in _tensors(nest):
        if tensor.ndim and tensor.numel() and len(tensor) < 4096:
            flat = tensor.detach().reshape(len(tensor), -1)
            flat = (torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat).double()
            return (flat @ torch.cos(torch.arange(flat.shape[1], dtype=torch.float64, device=flat.device))).tolist()
    return []


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, dict):
        for one in nest.values():
            yield from _tensors(one)
    elif isinstance(nest, tuple | list):
        for one in nest:
            yield from _tensors(one)


def _states(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of every random generator: those of the libraries, and those that a trainer holds."""
    found: dict[str, Any] = {"torch": bytes(torch.get_rng_state().numpy()), "random": random.getstate()}
    state: Any = np.random.get_state()  # noqa: NPY002
    found["numpy"] = state[1].tobytes(), state[2]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = [bytes(state.cpu().numpy()) for state in torch.cuda.get_rng_state_all()]
    for path, one in generators.items():
        found[path] = one.getstate() if isinstance(one, random.Random) else _numbers_of(one)
    return found


def _numbers_of(generator: Any) -> str:
    state = generator.get_state() if isinstance(generator, np.random.RandomState) else generator.bit_generator.state
    return str(state)


@contextmanager
def _patched(home: Any, name: str, instead: Callable[..., Any]) -> Generator[None]:
    real = getattr(home, name)
    setattr(home, name, lambda *args, **kwargs: instead(real, *args, **kwargs))
    try:
        yield
    finally:
        setattr(home, name, real)


@contextmanager
def _everywhere(name: str, instead: Callable[..., Any]) -> Generator[None]:
    """Replace a function of torch in every module that imported it by name."""
    real = getattr(torch.nn.utils, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        return instead(real, *args, **kwargs)

    inside = sys.modules["torch.nn.utils.clip_grad"]
    loaded = [module for module in list(sys.modules.values()) if module is not inside]
    homes = [module for module in loaded if getattr(module, "__dict__", {}).get(name) is real]
    for module in homes:
        setattr(module, name, called)
    try:
        yield
    finally:
        for module in homes:
            setattr(module, name, real)
