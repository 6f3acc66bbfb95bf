"""Weights on their way into the averages: looked at, and taken in at once or while their copies are under way.

Two host memories take the weights in turn where copies overlap with what the model computes. An update orders the
copies into one of them and returns; in the next one the averages take them in, after the next copies were ordered into
the other. Order and numbers are those of an intake at once, and whoever uses an average first waits for what is under
way.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from isobatch.average.clock import AUTO_SPAN, Hold
from isobatch.average.kernels import Item, Update, gather
from isobatch.average.layout import NARROW, RoundingInForce, Stacks, Storage
from isobatch.errors import InputError, NonFiniteError, warn
from isobatch.gradients import Shards, first_not_finite, may_be_finite
from isobatch.modules import DeviceCopies, Transfer

LEAST = 1 << 14  # elements looked at in every update at least, so models of no more as a whole
TURNS = 64  # updates after which everything was looked at, however large the model


class Side(NamedTuple):
    """What an update reads: pieces of weights, small ones among them, and the whole tensors by name."""

    items: Sequence[Item]
    small: Sequence[Tensor]
    read: Mapping[str, Tensor]


@final
class Turns:
    """Weights and averages, cut into the shares that are looked at in turn.

    Args:
        items: of every tensor of a model that is averaged.
        always: small weights that are looked at before every update: of biases and norms every layer has some.

    Example:
        >>> Turns([Item(torch.zeros(1, 2), torch.ones(2), None, None)], ()).weights(whole=False)
        True
    """

    def __init__(self, items: Sequence[Item], always: Sequence[Tensor]):
        total = sum(item.weights.numel() for item in items)
        size = max(LEAST, ceil(total / TURNS))
        self._turns = gather(items, size)
        self._items, self.now = items, 0
        cheap = max(LEAST, total // 16)
        self._always = [w for w in always if w.numel() <= cheap] if len(self._turns) > 1 else []

    @property
    def count(self) -> int:
        """Updates that a full round takes."""
        return max(1, len(self._turns))

    def weights(self, *, whole: bool) -> bool:
        """Go on to the next share, and say whether the small weights may be finite; where there are none, its weights.

        Args:
            whole: look at all of them.

        Returns:
            False where a sum overflowed or a weight is not finite.
        """
        self.now = (self.now + 1) % self.count
        if whole:
            return may_be_finite(item.weights for item in self._items)
        return may_be_finite(self._always or (item.weights for item in self._due()))

    def averages(self, *, whole: bool = False) -> bool:
        """Whether the averages of the present share may be finite.

        Args:
            whole: look at all of them.

        Returns:
            False where a sum overflowed or an average is not finite.
        """
        return may_be_finite(item.average for item in (self._items if whole else self._due()))

    def _due(self) -> Sequence[Item]:
        return self._turns[self.now] if self._turns else ()


@final
class Lost:
    """Updates that rounding to nearest loses even where average and weights differ by 100%.

    In a narrow dtype they are refused. A wider one loses updates of less than 3e-8 (float32): at the end of a schedule
    that goes to a decay of 1 they come to nothing; once they add up, a warning says so.

    Args:
        dtype: in which the averages are held.

    Example:
        >>> Lost(torch.bfloat16).note([0.1])
    """

    def __init__(self, dtype: torch.dtype):
        self._sum, self._count = 0.0, 0
        self._go_by(dtype)

    def _go_by(self, dtype: torch.dtype) -> None:
        self._dtype, self._floor = dtype, torch.finfo(dtype).eps / 4
        self.above = 1 - self._floor  # the share of the average kept from which an update may be lost

    def held(self, dtypes: Iterable[torch.dtype]) -> None:
        """Go by the coarsest of the dtypes that are really held: float32 holds float64 weights in float64.

        Args:
            dtypes: of the averages; none of a model without any.
        """
        found = sorted(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        if found and self._dtype not in NARROW:
            self._go_by(found[-1])

    def note(self, shares: Sequence[float]) -> None:
        """Refuse, or count, an update that is lost.

        Args:
            shares: weights of the new weights, one per average; 0 means that nothing is to move.

        Raises:
            InputError: in a narrow dtype; says the smallest workable weight and the ways out.
        """
        low = min((s for s in shares if s > 0), default=1.0)
        if low >= self._floor:
            return
        if self._dtype in NARROW:
            raise InputError(
                f"an update of weight {low:.3g} is lost in {self._dtype} rounded to nearest, even where average and "
                f"weights differ by 100%; the smallest workable weight is {self._floor:.3g} (decay "
                f'{1 - self._floor:.5g}). Use dtype=torch.float32, rounding="stochastic", or a longer cadence'
            )
        before, self._sum, self._count = self._sum, self._sum + low, self._count + 1
        if before < AUTO_SPAN <= self._sum:
            warn(
                f"{self._count} updates of weight {low:.2g} or so were lost in {self._dtype}, where average and "
                f"weights would have to differ by more than {self._floor * 2 / low:.0%} for one to move anything; "
                'cadence="auto" applies fewer and larger updates, dtype=torch.float64 or '
                'Storage(rounding="compensated") keeps them'
            )


@final
class FiniteCheck:
    """What an average promises about values that are not finite: named before they are used, and undone.

    - Before every update, all small weights are looked at (where there are none, a share of the weights), and a share
      of the averages. What is found is refused by name, and nothing has moved: a loss that became NaN reaches the small
      weights of every layer at once. After a refusal, everything is looked at until it is finite.
    - A single weight elsewhere is named when its share is due, `turns` updates later at most, and before the average
      is lent, copied or stored. Elements that took it in start again at the weights once these are finite, with a
      warning that counts them; the others were never touched by it.

    Args:
        check: True as above, "all" to look at everything before every update, False to look at nothing.
    """

    def __init__(self, check: bool | Literal["all"]):
        self._check, self._stale, self._seen, self._refused = check, 0, 0.0, False
        self._moved = False  # unlike _stale it is the same on every rank, whatever share of the model a rank has

    @property
    def turns(self) -> int:
        """Updates after which everything was looked at."""
        return 1 if self._check == "all" else self._turns.count

    def bind(
        self,
        sides: Sequence[Side],
        live: Mapping[str, Tensor],
        roles: Mapping[str, Stacks],
        shards: Shards,
        still: Collection[str],
    ) -> None:
        """Look at these tensors from now on.

        Args:
            sides: what an update may read, one for each memory that the weights come into.
            live: the model's tensors by name, as this rank holds them.
            roles: the averages and their companions.
            shards: over which ranks agree.
            still: names of tensors that hold infinities by design.
        """
        self._sides = [(Turns(side.items, side.small), side.read) for side in sides]
        self._turns = self._sides[0][0]
        self._live, self._shards, self._still = live, shards, still
        self._stacks = {role: stacks.tensors for role, stacks in roles.items()}

    @contextmanager
    def paused(self) -> Generator[None]:
        """Hand out averages as they are inside the block, for a report that names what is wrong with them.

        Yields:
            None.
        """
        check, self._check = self._check, False
        try:
            yield
        finally:
            self._check = check

    def before_update(self, seen: float, *, whole: bool, side: int = 0) -> None:
        """Refuse weights that are not finite, on this rank or on another; mend averages whose weights are again.

        Args:
            seen: samples so far, for the message.
            whole: look at everything, as where a teacher computes with the average after every update.
            side: from which the update reads.

        Raises:
            NonFiniteError: names the first bad tensor; the update moved nothing.
        """
        if not self._check:
            return
        self._seen, average = seen, self._stacks["average"]
        now = self._turns.now
        self._turns, read = self._sides[side]
        self._turns.now = now  # one round, whichever side is read
        whole = whole or self._refused or self.turns == 1
        fine = self._turns.weights(whole=whole)
        spoilt = None
        if self._stale and not (fine and self._turns.averages(whole=self._refused)):
            spoilt = first_not_finite(average, self._still)
        own = None if fine and spoilt is None else first_not_finite(read, self._still)
        bad = self._shards.first(own, self._live)
        self._refused = bad is not None
        if bad is not None:
            raise NonFiniteError(
                f"{bad!r} is not finite after {seen:g} samples; the average was left as it was{self._took(spoilt)}. "
                "Restore the weights (they may be taken from the average), then go on; what is infinite by design is "
                'left out with Storage(select=...), a buffer with buffers="copy"',
                seen=int(seen),
                parameter=bad,
            )
        if spoilt is not None:
            self._mend(read)
        self._stale += not whole or self._stale > 0
        self._moved = True

    def before_use(self) -> None:
        """Look at all averages that were moved since they were last looked at as a whole; all ranks agree.

        Raises:
            NonFiniteError: an average took in a weight that was not finite, and its weights still are not.
        """
        if not self._check or not (self._moved or self._stale):
            return
        fine = not self._stale or self._turns.averages(whole=True)
        spoilt = None if fine else first_not_finite(self._stacks["average"], self._still)
        lost = spoilt is not None and first_not_finite(self._live, self._still) is not None
        bad = self._shards.first(spoilt if lost else None, self._live)
        if bad is not None:
            raise NonFiniteError(
                f"after {self._seen:g} samples the average must not be used{self._took(bad)}. Restore finite "
                "weights, then go on; or load the averages of a checkpoint",
                seen=int(self._seen),
                parameter=bad,
            )
        if spoilt is not None:
            self._mend(self._live)
        self._stale, self._moved = 0, False

    def _took(self, name: str | None) -> str:
        words = "took in a weight that was not finite within the last"
        again = "updates, and start again at the weights once these are finite"
        return "" if name is None else f"; elements of the average of {name!r} {words} {self._stale} {again}"

    @torch.no_grad()
    def _mend(self, read: Mapping[str, Tensor]) -> None:
        """Start elements that are not finite again at these weights."""
        for name, stack in self._stacks["average"].items():
            bad = ~torch.isfinite(stack)
            count = 0 if name in self._still else int(bad.sum())
            if not count:
                continue
            weights = read[name].detach().to(stack.device)
            stack.copy_(torch.where(bad, weights.to(stack.dtype), stack))
            if "compensation" in self._stacks:
                self._stacks["compensation"][name].masked_fill_(bad, 0)
            if "previous" in self._stacks:
                before = self._stacks["previous"][name]
                before.copy_(torch.where(torch.isfinite(before), before, weights.to(before.dtype)))
            warn(
                f"{count} elements of the average of {name!r} took in a weight that was not finite within the last "
                f"{self._stale} updates; they start again at the present weights, after {self._seen:g} samples"
            )


@final
@dataclass(frozen=True)
class Application:
    """One application of the weights to the averages.

    Args:
        shares: weights of the update, one per average.
        seen: samples so far, for messages.
        whole: look at all weights before they are taken in.
        undo: puts the clock back to before this application, where it is refused.
    """

    shares: Sequence[Hold]
    seen: float
    whole: bool
    undo: Callable[[], None]


@final
class Intake:
    """Takes the weights of a model into its averages.

    Args:
        storage: where the averages lie, and whether copies may overlap with what the model computes.
        check: what is promised about values that are not finite.
    """

    def __init__(self, storage: Storage, check: FiniteCheck):
        self._compiled, self._check = storage.compiled, check
        self.copies = [DeviceCopies(storage.place()) for _ in range(2 if storage.overlap else 1)]
        self._under_way: tuple[int, Transfer, Application] | None = None
        self._side = 0

    def read(self, live: Mapping[str, Tensor], *, spread: bool) -> dict[str, Tensor]:
        """Bind the tensors that come in from now on, and read them.

        Args:
            live: the model's tensors by name, as this rank holds them.
            spread: whether they are parts of a sharded model.

        Returns:
            Where they are read, by name.
        """
        self._reads = [copies.bind(live, spread=spread) for copies in self.copies]
        if any(self._reads[0][name] is tensor for name, tensor in live.items()):
            self._reads = self._reads[:1]  # what is read in place is another one after the next step
        self._side = 0
        return self._reads[0]

    def bind(
        self,
        live: Mapping[str, Tensor],
        roles: Mapping[str, Stacks],
        rounding: RoundingInForce,
        generators: dict[torch.device, torch.Generator],
        shards: Shards,
        still: set[str],
    ) -> None:
        """Move these averages from now on; read() comes first.

        Args:
            live: the model's tensors by name, as this rank holds them.
            roles: the averages and their companions.
            rounding: how results are rounded to the average's dtype.
            generators: of stochastic rounding, by device.
            shards: over which ranks agree.
            still: names of tensors that hold infinities by design; their averages are copies.
        """
        self.updates = [
            Update(
                read,
                roles["average"],
                rounding,
                compensation=roles.get("compensation"),
                previous=roles.get("previous"),
                generators=generators,
                compiled=self._compiled,
            )
            for read in self._reads
        ]
        self._stills = [(name, roles["average"].tensors[name]) for name in still]
        sides = [Side(u.items, u.collected, read) for u, read in zip(self.updates, self._reads, strict=True)]
        self._check.bind(sides, live, roles, shards, still)

    def apply(self, application: Application) -> None:
        """Take in the present weights: now, or while the model computes on.

        Args:
            application: of these weights.

        Raises:
            NonFiniteError: weights that are not finite, of this application or of the one before; both are left out.
        """
        side, transfer = self._side, self.copies[self._side].start()
        if len(self._reads) == 1:
            self._take_in(side, transfer, application)
            return
        try:
            self.finish()
        except NonFiniteError:
            transfer.wait()  # nothing writes into this memory any more when it is next given away
            raise
        self._under_way, self._side = (side, transfer, application), 1 - side

    def finish(self) -> None:
        """Take in what is under way.

        Raises:
            NonFiniteError: weights that are not finite, with the samples of the update that they belong to; the
                averages were not moved and the clock is that of the update before.
        """
        if self._under_way is not None:
            found, self._under_way = self._under_way, None
            self._take_in(*found)

    def _take_in(self, side: int, transfer: Transfer, application: Application) -> None:
        transfer.wait()
        update = self.updates[side]
        update.read()
        try:
            self._check.before_update(application.seen, whole=application.whole, side=side)
        except NonFiniteError:
            application.undo()
            raise
        update.move(application.shares)
        for name, stack in self._stills:
            stack.copy_(self._reads[side][name].detach().expand_as(stack))
