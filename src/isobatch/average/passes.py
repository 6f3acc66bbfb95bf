"""The tensors of one model bound once, so that an update is a few multi-tensor calls and no tree walk."""

from cmath import isfinite
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from isobatch.average.blocks import Block, Item, Scratch, Shares, gather
from isobatch.average.layout import Key, Stacks, alias, dense, rows, span
from isobatch.average.rounding import RoundingInForce, work_dtype
from isobatch.average.weights import Hold

CACHED = 1 << 19  # elements per block and thread on a CPU: 2 MiB of float32
STAGED = 1 << 26  # elements per block on an accelerator, where it bounds working memory only


@final
class Pass:
    """One update of every average of a model.

    Args:
        live: the model's tensors by name; aliases of their storage are bound.
        averages: stacks of the averages.
        rounding: how results are rounded to the average's dtype.
        compensation: what rounding lost, for compensated averages.
        previous: weights of the last update, for a first-order hold.
        generators: of stochastic rounding, by device.
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
    ):
        self._reads: list[tuple[list[Tensor], Tensor]] = []
        self._sources: list[Tensor] = []
        self._blocks: list[Block] = []
        for key, names in averages.groups.items():
            items = list(self._items(live, key, names, averages, (compensation, previous)))
            self._sources += [item.weights for item in items]
            generator = (generators or {}).get(key[2])
            parts = _parts(items, rounding)
            scratch = Scratch(max((sum(i.average.numel() for i in part) for part in parts), default=0))
            self._blocks += [Block(part, rounding, generator, scratch) for part in parts]

    def read(self) -> None:
        """Collect small weights into their buffers; call it once before finite() and move()."""
        for tensors, into in self._reads:
            torch.cat(tensors, out=into)

    def finite(self) -> bool:
        """Whether every weight may be finite: no sum of a tensor overflowed or became NaN."""
        sums: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for source in self._sources:
            total = _spread(source) if source.dtype == torch.float16 else source.sum()
            if total.device.type != "cpu":
                sums.setdefault((total.dtype, total.device), []).append(total)
            elif not isfinite(total.item()):
                return False
        return all(bool(torch.isfinite(torch.stack(totals)).all()) for totals in sums.values())

    def move(self, holds: Sequence[Hold]) -> None:
        """Move every average.

        Args:
            holds: weights of the update, one per horizon.
        """
        shares = Shares(holds)
        for block in self._blocks:
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
        if pool is not None:
            rest, previous = (None if c is None else c.pools[key][0] for c in companions)
            yield Item(pool, self._pooled(live, members, pool), rest, None if previous is None else previous[0])
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
        if direct is not None:
            return direct
        into = torch.empty(pool.shape[1], dtype=live[members[0]].dtype, device=pool.device)
        self._reads.append(([alias(live[name]) for name in members], into))
        return into


def _spread(source: Tensor) -> Tensor:
    """Distance of the extremes, because a sum in float16 overflows; a NaN or an infinity stays visible."""
    low, high = source.aminmax()
    return high.float() - low.float()


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
