"""One set of hooks on the gradients of single backward passes, and one way to say what a pass holds.

Whoever looks at chunks (the noise scale, the squares of an invariant optimizer) joins the tap of its parameters. Each
parameter carries one hook, however many look on; a chunk that one of them declares is told to all.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from isobatch.errors import InputError
from isobatch.gradients.reductions import Reading, read_reductions
from isobatch.gradients.shards import in_place, refuse_unspreadable
from isobatch.units import finite

_LEAVES: WeakValueDictionary[int, "Leaf"] = WeakValueDictionary()
_SHORT = {
    dtype for name in dir(torch) if name.startswith("float8") and isinstance(dtype := getattr(torch, name), torch.dtype)
}


class Receiver(Protocol):
    """Takes gradients of backward passes."""

    def receive(self, parameter: Tensor, gradients: Sequence[Tensor], reading: Reading | None) -> None:
        """Take what one backward pass adds to `.grad`: one gradient, or with a reading one of each rank."""
        ...


class Member(Protocol):
    """Is told what a backward pass holds. `opened_by` is who declared the open chunk, None outside."""

    opened_by: object | None

    def begin(self, samples: float, rows: Sequence[float] | None, *, own: bool) -> None:
        """Take note that a chunk is open; `own` where this member declared it."""
        ...

    def end(self, samples: float) -> None:
        """Take note that its backward pass is done."""
        ...


@final
class Leaf:
    """One parameter, the node that accumulates its gradient, and who looks on.

    Args:
        parameter: a leaf tensor; one that is frozen now is seen from its first gradient on.
        tap: who declares its passes.
        reduced: whether its gradients are read in the reductions of FSDP2, because it accumulates none itself.
    """

    __slots__ = ("__weakref__", "_finalizer", "node", "parameter", "receivers", "tap")

    def __init__(self, parameter: Tensor, tap: "Tap", *, reduced: bool = False):
        self.parameter, self.tap, self.node = parameter, tap, None
        self.receivers: tuple[weakref.ref[Receiver], ...] = ()
        if not reduced:
            self._put(_accumulator(parameter))

    def refresh(self) -> None:
        """Put the hook where gradients arrive now: a parameter that was moved or cast has another node."""
        if self.node is None:
            return
        node = _accumulator(self.parameter)
        if node is not self.node:
            self._finalizer()
            self._put(node)

    def _put(self, node: Any) -> None:
        # The node must stay alive, or the engine makes another one without the hook.
        self.node = node
        self._finalizer = weakref.finalize(self, node.register_prehook(_hook(weakref.ref(self))).remove)


@final
class Watch:
    """Shows the gradients of some parameters to a receiver, until it is removed or the receiver dies.

    Under DDP the gradient is this rank's own, before any reduction. Under FSDP2 it is this rank's part of what each
    rank of the shard group adds.

    Args:
        receiver: told of each pass; held weakly.
        tap: who declares the passes of parameters that nobody has watched so far.
    """

    def __init__(self, receiver: Receiver, tap: "Tap"):
        self._receiver, self._tap = weakref.ref(receiver), tap
        self._leaves: dict[int, Leaf] = {}

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Watch more parameters; those that are watched already are left alone.

        Args:
            parameters: leaf tensors of floating type.
        """
        fresh = [parameter for parameter in parameters if id(parameter) not in self._leaves]
        reduced = read_reductions(fresh, _deliver, _wanted)
        for parameter in fresh:
            leaf = _LEAVES.get(id(parameter))
            if leaf is None:
                leaf = _LEAVES[id(parameter)] = Leaf(parameter, self._tap, reduced=id(parameter) in reduced)
            else:
                leaf.refresh()
            leaf.receivers = (*(known for known in leaf.receivers if known() is not None), self._receiver)
            self._leaves[id(parameter)] = leaf

    def remove(self) -> None:
        """Stop watching."""
        for leaf in self._leaves.values():
            leaf.receivers = tuple(known for known in leaf.receivers if known is not self._receiver)
        self._leaves.clear()


@final
class Tap:
    """The backward passes of one loop: what each holds, told to all who look on."""

    def __init__(self) -> None:
        self._members: tuple[weakref.ref[Member], ...] = ()

    @classmethod
    def of(cls, parameters: Iterable[Tensor], mine: "Tap | None" = None) -> "Tap":
        """Return the tap that somebody has put on these parameters, or a new one.

        Args:
            parameters: any.
            mine: what to return in place of a new one.

        Returns:
            The tap of the first that has one.

        Example:
            >>> weight, member = nn.Parameter(torch.zeros(1)), type("Nobody", (), {})()
            >>> tap = Tap.of([weight])
            >>> watch = Watch(member, tap)
            >>> watch.add([weight])
            >>> Tap.of([weight]) is tap
            True
        """
        return next((leaf.tap for p in parameters if (leaf := _LEAVES.get(id(p))) is not None), mine) or cls()

    def join(self, member: Member) -> None:
        """Tell a member of every chunk from now on.

        Args:
            member: held weakly.
        """
        members = [known for known in self._members if known() is not None]
        if not any(known() is member for known in members):
            members.append(weakref.ref(member))
        self._members = tuple(members)

    @contextmanager
    def chunk(self, samples: float, by: Member, rows: Sequence[float] | None = None) -> Generator[None]:
        """Declare that the one backward pass inside is a chunk of so many samples (or tokens).

        Inside a chunk of somebody else's, `by` takes its own count: the two may count in different units.

        Args:
            samples: n, at least 0; a chunk of 0 (everything masked) is not counted.
            by: the member that declares it.
            rows: samples of each row; None for equal ones.

        Yields:
            Nothing.

        Raises:
            InputError: inside another chunk, or rows that do not add up to the samples.
        """
        if by.opened_by is by:
            raise InputError(f"chunk({samples}) inside another chunk; close that one first")
        size = finite("samples", samples, 0)
        if rows is not None and abs(sum(rows) - size) > 1e-6 * max(size, 1):
            raise InputError(f"rows hold {sum(rows):g} samples but the chunk {size:g}; give every row's own count")
        told = [m for known in self._members if (m := known()) is not None and (m is by or m.opened_by is None)]
        for member in told:
            member.begin(size, None if rows is None else [float(n) for n in rows], own=member is by)
            member.opened_by = by
        try:
            yield
            for member in told:
                if member.opened_by is by:
                    member.end(size)
        finally:
            for member in told:
                if member.opened_by is by:
                    member.opened_by = None


def refuse_unwatchable(what: str, parameter: Tensor) -> None:
    """Refuse a parameter whose gradients cannot be seen pass by pass, or have no square.

    Args:
        what: the parameter in words, such as "parameter 'weight'".
        parameter: any.

    Raises:
        InputError: naming it and the way out.

    Example:
        >>> refuse_unwatchable("parameter 'weight'", nn.Parameter(torch.zeros(1)))
    """
    why = None
    if isinstance(parameter, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        why = "has no shape yet (a lazy module); run one forward pass first"
    elif parameter.is_meta:
        why = "is on the meta device and holds nothing; give the model its weights first (to_empty, load)"
    elif parameter.is_complex():
        why = "is complex and has no squares here; give torch.view_as_real of it"
    elif parameter.dtype in _SHORT:
        why = f"is {parameter.dtype}, in which nothing can be added; keep trainable weights in bfloat16 or wider"
    elif parameter.layout != torch.strided:
        why = f"has the layout {parameter.layout}; give a dense tensor"
    elif made_in_inference_mode(parameter):
        why = "was made in inference mode and takes no gradients; make the model outside torch.inference_mode()"
    if why is not None:
        raise InputError(f"{what} {why}")
    refuse_unspreadable(what, parameter)


def made_in_inference_mode(tensor: Tensor) -> bool:
    """Whether a tensor was made in inference mode, also where it was given other data since.

    Args:
        tensor: any.

    Returns:
        True for one that autograd cannot take.

    Example:
        >>> made_in_inference_mode(torch.zeros(1))
        False
    """
    if tensor.is_inference():
        return True
    try:
        return tensor._version < 0
    except RuntimeError:  # cast or moved outside: the data is new, the tensor still counts no versions
        return True


def refuse_sparse(what: str, gradient: Tensor) -> None:
    """Refuse a sparse gradient.

    Args:
        what: its parameter in words.
        gradient: of one pass.

    Raises:
        InputError: a sparse gradient.
    """
    if gradient.layout is not torch.strided:
        raise InputError(
            f"{what} got a sparse gradient, which has no square here; build its nn.Embedding with "
            "sparse=False, or freeze it"
        )


def _accumulator(parameter: Tensor) -> Any:
    """Return the node that accumulates a leaf's gradient; it is the same one before and after the leaf is unfrozen."""
    if parameter.requires_grad:
        return get_gradient_edge(parameter).node
    parameter.requires_grad_(True)
    try:
        return get_gradient_edge(parameter).node
    finally:
        parameter.requires_grad_(False)


def _hook(told: "weakref.ref[Leaf]") -> Callable[[tuple[Tensor, ...]], None]:
    """Return a hook that dies with its leaf, so that nothing is left on the model."""

    def before_accumulation(gradients: tuple[Tensor, ...]) -> None:
        leaf, gradient = told(), gradients[0]
        if leaf is not None and gradient is not None:
            for known in leaf.receivers:
                receiver = known()
                if receiver is not None:
                    receiver.receive(leaf.parameter, (in_place(gradient, leaf.parameter),), None)

    return before_accumulation


def _deliver(parameter: Tensor, gradients: Sequence[Tensor], reading: Reading) -> None:
    """Hand on what each rank adds to this rank's part of a sharded gradient."""
    leaf = _LEAVES.get(id(parameter))
    for known in leaf.receivers if leaf is not None else ():
        receiver = known()
        if receiver is not None:
            receiver.receive(parameter, gradients, reading)


def _wanted(parameter: Tensor) -> bool:
    leaf = _LEAVES.get(id(parameter))
    return leaf is not None and any(known() is not None for known in leaf.receivers)
