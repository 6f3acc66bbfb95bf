"""Averages by torch.compile: every number is read and written once, where plain PyTorch takes several passes.

Only where it was measured to pay: compensated averages, and several averages of the same weights. A kernel of our own
takes the same way: tried against plain PyTorch first, and left where it fails.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from isobatch.errors import warn

LEAST = 4096  # elements from which a tensor of its own is worth a call into compiled code
KERNEL_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)
TRIAL = 64  # elements of the tensors that the compiler is tried on
# By default it leaves out the rounding of what it reads again, so that nothing would seem to have been lost.
OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}


def blended(
    averages: Sequence[Tensor],
    rests: Sequence[Tensor],
    previous: Tensor | None,
    weights: Tensor,
    shares: Tensor,
) -> None:
    """Move averages of one tensor: average <- lerp(average, weights, share); compensated ones are average + rest.

    With previous weights, first towards them and then towards the present ones, which become the previous. The shares
    are a tensor, so that one graph serves however they change, and nothing is read back on the host.

    Args:
        averages: K of shape [n]; overwritten.
        rests: what rounding lost, K of shape [n]; overwritten. Empty for averages that are not compensated.
        previous: [n]; overwritten.
        weights: [n].
        shares: [2, K] of the dtype to compute in: towards the previous and towards the present weights.

    Example:
        >>> average, rest = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
        >>> blended([average], [rest], None, torch.zeros(1), torch.tensor([[0.0], [2.0**-10]]))
        >>> float(average), float(rest)
        (1.0, -0.0009765625)
    """
    now = weights.to(shares.dtype)
    for k, average in enumerate(averages):
        value = average.to(shares.dtype)
        if rests:
            value = value + rests[k].to(shares.dtype)
        if previous is not None:
            value = torch.lerp(value, previous.to(shares.dtype), shares[0, k])
        value = torch.lerp(value, now, shares[1, k])
        kept = value.to(average.dtype)
        average.copy_(kept)
        if rests:
            rests[k].copy_(value - kept.to(shares.dtype))
    if previous is not None:
        previous.copy_(weights)


class _CannotCompile(Exception):
    """A compiler failed."""


@final
@dataclass(frozen=True)
class Piece:
    """K averages of one tensor and their companions, as compiled code takes them, and whose versions that moves.

    Args:
        given: averages, what rounding lost, previous weights, weights: what blended() takes.
        written: the tensors that are overwritten.

    Example:
        >>> Piece(([torch.zeros(2)], [torch.zeros(2)], None, torch.ones(2)), []).given[3]
        tensor([1., 1.])
    """

    given: tuple[list[Tensor], list[Tensor], Tensor | None, Tensor]
    written: list[Tensor]


@final
class Compiled:
    """Compiled moves of the tensors of one update; what it does not move is left to plain PyTorch.

    Args:
        work: dtype to compute in.
        kernel: of our own, with blended()'s arguments; None: blended() by torch.compile, on a CPU.
        device: of averages and weights.

    Example:
        >>> Compiled(torch.float32).suits(torch.zeros(2))
        False
    """

    def __init__(
        self,
        work: torch.dtype,
        kernel: Callable[..., Any] | None = None,
        device: torch.device | str = "cpu",
    ):
        self._work, self._kernel, self._device = work, kernel, device
        self._function: Callable[..., Any] | None = None
        self._failed = False

    def suits(self, weights: Tensor) -> bool:
        """Whether a tensor is worth compiled code: in one piece, real, on its device, and of at least LEAST elements.

        Args:
            weights: as an update is bound to them.

        Returns:
            False where the plain path takes it.
        """
        large = weights.dim() == 1 and weights.numel() >= LEAST
        if self._kernel is not None:
            return large and weights.dtype in KERNEL_WEIGHTS
        return large and weights.device.type == "cpu" and weights.is_floating_point()

    def piece(self, average: Tensor, rest: Tensor | None, previous: Tensor | None, weights: Tensor) -> Piece:
        """Bind the averages of one tensor.

        Args:
            average: [K, n].
            rest: [K, n], for compensated averages.
            previous: [n], for a first-order hold.
            weights: [n].

        Returns:
            What move() takes.
        """
        # `data` is the same memory as a view of nothing: a graph would be compiled anew for every kind of base
        before = None if previous is None else previous.data
        rests = [] if rest is None else [r.data for r in rest]
        given = [a.data for a in average], rests, before, weights.data
        return Piece(given, [t for t in (average, rest, previous) if t is not None])

    def shares(self, before: Sequence[float], after: Sequence[float]) -> Tensor:
        """Return the weights of one update as the tensor that move() takes.

        Args:
            before: towards the previous weights, one per horizon.
            after: towards the present weights.

        Returns:
            Of shape [2, K].
        """
        return torch.tensor([before, after], dtype=self._work, device=self._device)

    def move(self, piece: Piece, shares: Tensor) -> bool:
        """Move the averages of one tensor, or leave them as they are.

        Args:
            piece: the averages.
            shares: of shares().

        Returns:
            Whether they were moved; a compiler that fails is told of once, and nothing was written.
        """
        if self._failed:
            return False
        try:
            with torch.no_grad():
                if self._function is None:
                    self._function = _tried(piece, self._work, self._kernel)
                self._function(*piece.given, shares)
        except Exception as error:
            # what Dynamo raises, as for too many recompilations, comes before anything is run
            if not isinstance(error, _CannotCompile) and type(error).__module__ != "torch._dynamo.exc":
                raise
            self._failed = True
            warn(f"averages are not compiled, but updated by plain PyTorch as without compiled=True: {error}")
            return False
        # Compiled code writes past the versions that tell teachers what has moved.
        for tensor in piece.written:
            torch.autograd.graph.increment_version(tensor)
        return True


def _tried(piece: Piece, work: torch.dtype, kernel: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return the kernel or the compiled function once it gave, on a few elements, what the plain one gives."""
    averages, compensated, previous, weights = piece.given
    width = averages[0].dtype
    ramp = torch.linspace(0.3, 1.7, TRIAL, dtype=torch.float64, device=weights.device)
    rows = len(averages)

    def given() -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor]:
        kept = [(ramp * (k + 1)).to(width) for k in range(rows)]
        if kernel is not None:
            kept = list(torch.stack(kept))  # a kernel takes the rows of one tensor; a graph would be bound to them
        rests = [(ramp.flip(0) * torch.finfo(width).eps / 8).to(width) for _ in compensated]
        before = None if previous is None else (ramp.square()).to(previous.dtype)
        return kept, rests, before, ramp.sin().to(weights.dtype)

    shares = torch.full((2, rows), 0.01, dtype=work, device=weights.device)
    plain, fast = given(), given()
    blended(*plain, shares)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own imports
            compiled = kernel or torch.compile(blended, fullgraph=True, dynamic=True, options=OPTIONS)
            function: Callable[..., Any] = compiled
            function(*fast, shares)
    except Exception as error:  # of Dynamo, Inductor, a C++ compiler or the system: all mean the same here
        text = " ".join(str(error).split())
        raise _CannotCompile(f"{type(error).__name__}: {text[:300]}") from error
    unit = torch.finfo(width).eps
    slack = 8 * unit**2 * rows if compensated else 2 * unit * rows
    for mine, theirs in zip((*fast[0], *fast[1]), (*plain[0], *plain[1]), strict=True):
        if not torch.allclose(mine.double(), theirs.double(), rtol=0, atol=slack):
            raise _CannotCompile("what the compiled code rounds differs from what plain PyTorch rounds")
    return function
