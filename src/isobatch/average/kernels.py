"""One update as a few multi-tensor calls: average <- keep * average + before * previous + after * weights.

The tensors of a model are bound once, so that an update walks no tree. Pieces that stay in cache between the operations
on them are moved together, so that memory is read once however many averages, dtypes or roundings are involved. A
result is computed wide and rounded to the average's dtype at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from isobatch.average.clock import Hold
from isobatch.average.layout import NARROW, Key, RoundingInForce, Stacks, alias, dense, rows, span
from isobatch.errors import InputError
from isobatch.gradients import Compiled, Piece, local, triton_for

CACHED = 1 << 20  # elements per block and thread on a CPU: 4 MiB of float32
STAGED = 1 << 26  # elements per block on an accelerator, where it bounds working memory only


@final
@dataclass(frozen=True)
class Item:
    """Averages [K, n] of weights [n], and the companions of the same elements."""

    average: Tensor
    weights: Tensor
    compensation: Tensor | None
    previous: Tensor | None

    def cut(self, size: int) -> Iterator["Item"]:
        """Yield pieces of at most `size` elements; a tensor without a one-dimensional alias stays whole.

        Args:
            size: elements.

        Yields:
            The pieces in order.
        """
        if self.weights.dim() != 1 or self.weights.numel() <= size:
            yield self
            return
        for start in range(0, self.weights.numel(), size):
            part = slice(start, start + size)
            yield Item(
                self.average[:, part],
                self.weights[part],
                None if self.compensation is None else self.compensation[:, part],
                None if self.previous is None else self.previous[part],
            )


def gather(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut items and put the pieces into groups of about `size` elements.

    Args:
        items: whole tensors.
        size: elements that stay in cache together.

    Returns:
        Groups in order.
    """
    found: list[list[Item]] = []
    filled = size
    for item in items:
        for piece in item.cut(size):
            if not found or filled + piece.weights.numel() > size:
                found.append([])
                filled = 0
            found[-1].append(piece)
            filled += piece.weights.numel()
    return found


@final
class Scratch:
    """Working memory that all blocks of a pass share, one after another.

    Args:
        elements: of the largest block.
    """

    def __init__(self, elements: int):
        self._elements = elements
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def like(self, role: str, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return views of the shapes of `tensors` into the buffer of one role.

        Args:
            role: what the memory holds; roles do not overlap.
            tensors: whose shapes and device to take.
            dtype: of the views.

        Returns:
            The views, in order.
        """
        key = (role, dtype, tensors[0].device)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self._elements, dtype=dtype, device=tensors[0].device)
        pieces = self._buffers[key][: sum(t.numel() for t in tensors)].split([t.numel() for t in tensors])
        return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]


@final
class Shares:
    """Weights of one update, as numbers and as columns [K, 1] made once per dtype and device.

    Args:
        holds: weights of the update, one per horizon.
    """

    def __init__(self, holds: Sequence[Hold]):
        self.whole = [h.before + h.after for h in holds]
        self.after = [h.after for h in holds]
        self.before = [h.before / (1 - h.after) if h.after < 1 else 0.0 for h in holds]
        self._columns: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def column(self, shares: list[float], like: Tensor) -> Tensor:
        """Return whole, after or before as a column in the dtype and on the device of a tensor.

        Args:
            shares: one of the three lists.
            like: whose dtype and device to take.

        Returns:
            Of shape [K, 1].
        """
        key = (id(shares), like.dtype, like.device)
        if key not in self._columns:
            self._columns[key] = torch.tensor(shares, dtype=like.dtype, device=like.device).view(-1, 1)
        return self._columns[key]


@final
class Block:
    """Pieces of one dtype pair on one device, moved in a few multi-tensor operations.

    Args:
        items: the pieces.
        rounding: how a result is rounded to the average's dtype.
        generator: of stochastic rounding.
        scratch: shared working memory.
    """

    def __init__(
        self,
        items: Sequence[Item],
        rounding: RoundingInForce,
        generator: torch.Generator | None,
        scratch: Scratch,
    ):
        self._rounding, self._generator = rounding, generator
        self._single = items[0].average.shape[0] == 1
        self._averages = [i.average[0] if self._single else i.average for i in items]
        self._weights = [i.weights for i in items]
        rests = [i.compensation for i in items if i.compensation is not None]
        self._rests = [r[0] for r in rests] if self._single else rests
        self._previous = [i.previous for i in items if i.previous is not None]
        kept, given = self._averages[0].dtype, self._weights[0].dtype
        work = work_dtype(kept, given, rounding)
        self._wide = scratch.like("average", self._averages, work) if work != kept else []
        self._staged = scratch.like("weights", self._weights, work) if work != given else []
        differs = self._previous and self._previous[0].dtype != work
        self._before = scratch.like("previous", self._previous, work) if differs else []
        self._lost = scratch.like("lost", self._rests, work) if self._rests and self._wide else []

    def move(self, shares: Shares) -> None:
        """Move the averages of this block.

        Args:
            shares: weights of the update.
        """
        sources = _cast(self._weights, self._staged)
        targets = _cast(self._averages, self._wide)
        if self._rests:
            # one operation on two dtypes is slower than a cast before it
            torch._foreach_add_(targets, _cast(self._rests, self._lost))
        if not self._previous:
            self._lerp(targets, sources, shares, shares.whole)
        else:
            previous = _cast(self._previous, self._before)
            self._lerp(targets, previous, shares, shares.before)
            self._lerp(targets, sources, shares, shares.after)
            torch._foreach_copy_(self._previous, self._weights)
        if self._wide:
            self._round()

    def _lerp(self, targets: list[Tensor], sources: list[Tensor], shares: Shares, chosen: list[float]) -> None:
        if not any(chosen):
            return
        if self._single:
            torch._foreach_lerp_(targets, sources, chosen[0])
            return
        column = shares.column(chosen, targets[0])
        torch._foreach_lerp_(
            targets, sources, [column if s.dim() == 1 else column.view(-1, *[1] * s.dim()) for s in sources]
        )

    def _round(self) -> None:
        if self._rounding == "nearest":
            torch._foreach_copy_(self._averages, self._wide)
        elif self._rounding == "stochastic":
            for target, value in zip(self._averages, self._wide, strict=True):
                stochastic_(target, value, self._generator)
        else:
            for target, rest, value in zip(self._averages, self._rests, self._wide, strict=True):
                compensated_(target, rest, value)


def _cast(tensors: list[Tensor], scratch: list[Tensor]) -> list[Tensor]:
    if not scratch:
        return tensors
    torch._foreach_copy_(scratch, tensors)
    return scratch


@final
class Update:
    """One update of every average of a model.

    Args:
        live: the model's tensors by name; aliases of their storage are bound.
        averages: stacks of the averages.
        rounding: how results are rounded to the average's dtype.
        compensation: what rounding lost, for compensated averages.
        previous: weights of the last update, for a first-order hold.
        generators: of stochastic rounding, by device.
        compiled: compile what torch.compile makes faster: compensated and several averages of large tensors; "triton"
            moves averages of float32 without companions by a kernel.
    """

    def __init__(
        self,
        live: dict[str, Tensor],
        averages: Stacks,
        rounding: RoundingInForce,
        *,
        compensation: Stacks | None = None,
        previous: Stacks | None = None,
        generators: dict[torch.device, torch.Generator] | None = None,
        compiled: bool | Literal["triton"] = False,
    ):
        self._reads: list[tuple[list[Tensor], Tensor]] = []
        self.items: list[Item] = []
        self.collected: list[Tensor] = []
        self._blocks: list[Block] = []
        self._compiled: list[tuple[Compiled, list[tuple[Piece, list[Block]]]]] = []
        for key, names in averages.groups.items():
            items = list(self._items(live, key, names, averages, (compensation, previous)))
            self.items += items
            generator = (generators or {}).get(key[2])
            parts = _parts(items, rounding)
            scratch = Scratch(max((sum(i.average.numel() for i in part) for part in parts), default=0))
            code = _code(compiled, key, rounding, held=previous is not None)
            pieces: list[tuple[Piece, list[Block]]] = []
            plain: list[Item] = []
            for item in items:
                if code is None or not code.suits(item.weights):
                    plain.append(item)
                    continue
                piece = code.piece(item.average, item.compensation, item.previous, item.weights)
                own = [Block(part, rounding, generator, scratch) for part in _parts([item], rounding)]
                pieces.append((piece, own))
            if code is not None:
                self._compiled.append((code, pieces))
            self._blocks += [Block(part, rounding, generator, scratch) for part in _parts(plain, rounding)]

    def read(self) -> None:
        """Collect small weights into their buffers; call it once before move()."""
        for tensors, into in self._reads:
            torch.cat(tensors, out=into)

    def move(self, holds: Sequence[Hold]) -> None:
        """Move every average.

        Args:
            holds: weights of the update, one per horizon.
        """
        shares = Shares(holds)
        for block in self._blocks:
            block.move(shares)
        for code, pieces in self._compiled:
            held = bool(pieces) and pieces[0][0].given[2] is not None
            chosen = (shares.before, shares.after) if held else (shares.before, shares.whole)
            table = code.shares(*chosen)
            moves = any(chosen[0]) or any(chosen[1])
            for piece, blocks in pieces:
                if not (moves and code.move(piece, table)):
                    for block in blocks:
                        block.move(shares)

    def _items(
        self,
        live: dict[str, Tensor],
        key: Key,
        names: Sequence[str],
        averages: Stacks,
        companions: tuple[Stacks | None, Stacks | None],
    ) -> Iterator[Item]:
        pool, members = averages.pools.get(key, (None, []))
        if pool is not None and pool.numel():
            rest, previous = (None if c is None else c.pools[key][0] for c in companions)
            weights = self._pooled(live, members, pool)
            self.collected.append(weights)
            yield Item(pool, weights, rest, None if previous is None else previous[0])
        for name in names:
            tensor, average = live[name], averages.tensors[name]
            if name in members or tensor.numel() == 0:
                continue
            flat = dense(tensor)
            average = rows(average) if flat else average
            rest, previous = (
                None if c is None else rows(c.tensors[name]) if flat else c.tensors[name] for c in companions
            )
            weights = alias(tensor) if flat else tensor.detach()
            yield Item(average, weights, rest, None if previous is None else previous[0])

    def _pooled(self, live: dict[str, Tensor], members: Sequence[str], pool: Tensor) -> Tensor:
        direct = span(live, members)
        if direct is not None and direct[1] == members:
            return direct[0]
        into = torch.empty(pool.shape[1], dtype=live[members[0]].dtype, device=pool.device)
        self._reads.append(([alias(live[name]) for name in members], into))
        return into


def _code(compiled: bool | str, key: Key, rounding: RoundingInForce, *, held: bool) -> Compiled | None:
    work = work_dtype(key[0], key[1], rounding)
    if compiled != "triton":
        return Compiled(work) if compiled else None
    kernel = triton_for(key[2]) if key[0] == torch.float32 and rounding == "nearest" and not held else None
    return None if kernel is None else Compiled(work, kernel, key[2])


def _parts(items: list[Item], rounding: RoundingInForce) -> list[list[Item]]:
    if not items:
        return []
    first = items[0]
    kept, given = first.average.dtype, first.weights.dtype
    once = first.average.shape[0] == 1 and first.previous is None
    if once and work_dtype(kept, given, rounding) == kept == given:
        return [items]
    device = first.average.device
    return gather(items, CACHED * torch.get_num_threads() if device.type == "cpu" else STAGED)


def work_dtype(average: torch.dtype, weights: torch.dtype, rounding: RoundingInForce) -> torch.dtype:
    """Return the dtype in which an update is computed.

    Args:
        average: dtype of the average.
        weights: dtype of the model's tensor.
        rounding: how the result is rounded to the average's dtype.

    Returns:
        The average's own dtype where it is wide enough, otherwise the next wider one.

    Example:
        >>> work_dtype(torch.bfloat16, torch.bfloat16, "stochastic")
        torch.float32
    """
    if rounding == "compensated":
        wider = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        return wider.get(average, torch.float32 if average in NARROW else average)
    return torch.float32 if average in NARROW else average


def refuse_beyond(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse finite values of which float16 makes infinities.

    Args:
        name: of the tensor.
        tensor: what an average is to hold.
        dtype: in which it is held.

    Raises:
        InputError: values beyond 65,504 for a float16.

    Example:
        >>> refuse_beyond("weight", torch.tensor([7e4]), torch.bfloat16)
    """
    inner = local(tensor).detach()
    if dtype != torch.float16 or inner.dtype == dtype or not inner.numel():
        return
    most = float(inner.abs().nan_to_num(0, 0, 0).amax())  # what is not finite is refused, or kept, elsewhere
    if most > torch.finfo(dtype).max:
        raise InputError(
            f"{name!r} holds {most:.3g}, beyond the 65504 of an average in float16; hold it in torch.bfloat16 or "
            "torch.float32"
        )


def stochastic_(target: Tensor, value: Tensor, generator: torch.Generator | None) -> None:
    """Round value to one of target's two neighbouring numbers, so that the expectation is value.

    Of the neighbours a <= value <= b it takes b with probability (value - a) / (b - a).

    Args:
        target: bfloat16 or float16, any shape; overwritten.
        value: float32, same shape.
        generator: source of the random numbers, on target's device.

    Example:
        >>> target = torch.zeros(4, dtype=torch.bfloat16)
        >>> stochastic_(target, torch.full((4,), 0.5), None)
        >>> target.tolist()
        [0.5, 0.5, 0.5, 0.5]

    References:
        arXiv 2010.06192 (stochastic rounding for training in bfloat16).
    """
    near = value.to(target.dtype)
    back = near.to(value.dtype)
    error = value - back
    bits = near.view(torch.int16)
    # Floats are sign and magnitude: one more in the bits is one step away from zero, whatever the sign.
    step = torch.where((error > 0) == (back > 0), 1, -1).to(torch.int16)
    across = torch.where(error > 0, 1, -32767).to(torch.int16)
    other = torch.where(back == 0, across, bits + step).view(target.dtype)
    gap = (other.to(value.dtype) - back).abs_()
    chance = torch.rand(value.shape, generator=generator, dtype=value.dtype, device=value.device)
    target.copy_(torch.where((error != 0) & (chance * gap < error.abs()), other, near))


def compensated_(target: Tensor, rest: Tensor, value: Tensor) -> None:
    """Write value as target + rest, each in target's dtype.

    Args:
        target: the average; overwritten.
        rest: what rounding to target lost; overwritten.
        value: wider than target, same shape; its contents are used up.

    Example:
        >>> target, rest = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
        >>> compensated_(target, rest, torch.tensor([1.0009765625]))
        >>> target.item(), rest.item()
        (1.0, 0.0009765625)
    """
    target.copy_(value)
    rest.copy_(value.sub_(target.to(value.dtype)))  # one operation on two dtypes is slower than a cast before it
