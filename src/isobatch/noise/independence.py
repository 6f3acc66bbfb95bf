r"""Are the samples of a step independent? Gradients of two steps in a row are compared with the spread inside a step.

With independent samples two steps of n and n' samples differ by the noise alone, as far as the weights between them
stood still: E|gbar - gbar'|^2 = tr(Sigma) (1/n + 1/n') + |G - G'|^2. Samples that depend on their neighbours (documents
in order, video, rollouts) spread less inside a step than between steps, so that

    Phi = |gbar - gbar'|^2 / (tr(Sigma) (1/n + 1/n'))

is above 1 by what is wrongly taken for the true gradient. Moving weights add eta tr(H Sigma)/tr(Sigma) to 1, which is
well below 1 where training is stable. A dependence that outlasts many steps looks like a true gradient: it is not seen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.gradients import PassNorms, Reading, Tap, Watch, local, own_gradient
from isobatch.noise.columns import Columns
from isobatch.noise.geometry import Geometry
from isobatch.noise.pace import Stopwatch
from isobatch.noise.record import Found, Record, send
from isobatch.noise.statistic import block_spread, ratio_interval

FIRST, LATER, KEPT = 16, 8, 64
FEWEST = 6
DEPENDENT, UNCLEAR, SHARE = 1.4, 4.0, 0.1


class Independence(NamedTuple):
    """What the pairs of steps say.

    Args:
        ratio: Phi; NaN without pairs.
        low: lower end of its 95% interval.
        high: upper end.
        dependent: whether samples of a step depend on each other.
        known: whether it is settled, or does not matter.
    """

    ratio: float
    low: float
    high: float
    dependent: bool
    known: bool


@final
class PairedStep:
    """The step after a measured one, compared with it: one copy of the gradient, for one step.

    Args:
        columns: of the model.
        geometry: how lengths are taken.
        group: the ranks.
        tap: of the model's parameters.
        before: the measured step's gradient.
        facts: its tr(Sigma), |G|^2, factor, whether it counts, on the device.
        samples: of it.
        trusted: as for `Record`.
        watch: times what the step costs.
        by_hand: whether ranks are averaged by hand.
        expected: backward passes of a step, 0 where that is not known yet.
    """

    def __init__(
        self,
        columns: Columns,
        geometry: Geometry,
        group: dist.ProcessGroup | None,
        tap: Tap,
        before: dict[Tensor, Tensor],
        facts: Tensor,
        samples: float,
        trusted: dict[Tensor, Tensor] | None,
        watch: Stopwatch,
        *,
        by_hand: bool,
        expected: int = 0,
    ):
        self.before, self.facts, self.samples, self.group = before, facts, samples, group
        self.watch = watch
        norms = None if by_hand or columns.shards else PassNorms(before, expected=expected, watch=watch)
        self.record = Record(columns, geometry, list(before), trusted, norms)
        self._watch = Watch(self, tap)
        self._watch.add(self.record.check.chosen)

    def receive(self, parameter: Tensor, gradients: Sequence[Tensor], reading: Reading | None = None) -> None:
        """Take what one backward pass adds to a parameter's `.grad`.

        Args:
            parameter: one of the few that are looked at.
            gradients: what is about to be added; of each rank of a shard group where FSDP2 reduces.
            reading: not used.
        """
        if self.record.norms is not None:
            self.record.norms.arrive()
        with self.watch, torch.no_grad():
            for gradient in gradients:
                if gradient.layout is torch.strided:
                    self.record.check.add(parameter, gradient)

    def remove(self) -> None:
        """Take the hooks away."""
        self._watch.remove()

    @torch.no_grad()
    def finish(self, samples: float) -> Tensor | None:
        """Return half the squared difference of the two gradients, what noise explains of it, |G|^2, and 1 if sound.

        The difference is written into the copy of the first, so it can be asked for once.

        Args:
            samples: of the second step.

        Returns:
            Four numbers on the device; None where a gradient is gone.
        """
        self.remove()
        now = {p: gradient for p in self.before if (gradient := own_gradient(p)) is not None}
        missing = float(len(now) < len(self.before) or not now)
        if missing and self.group is None:
            return None
        sums = torch.cat([self.record.check.sums(self.facts.device), send([missing], self.facts.device)])
        if self.group is not None:
            dist.all_reduce(sums, group=self.group)
            sums /= self.group.size()
            if float(sums[-1]) > 0:
                return torch.zeros(4, dtype=torch.float64, device=self.facts.device)
        factor, honest = self.record.factor(sums[:-1])
        trace, signal, before, counts = self.facts
        apart = {p: self.before[p].addcmul_(gradient, before / factor, value=-1) for p, gradient in now.items()}
        half = self.record.square(apart) / before**2 / 2
        if self.record.geometry.by_coordinate:
            half = half * (math.pi / 2)  # of a normal variable, (E|x|)^2 = 2/pi E x^2
        noise = trace / before**2 * (1 / self.samples + 1 / samples) / 2
        row = torch.stack([half, noise, signal / before**2, honest & (counts > 0)])
        return torch.where(torch.isfinite(row).all() & (row[3] > 0), row, torch.zeros_like(row))


def copied(
    covered: Sequence[Tensor], *, all_of_them: bool, into: Mapping[Tensor, Tensor] | None = None
) -> dict[Tensor, Tensor]:
    """Return copies of gradients.

    Args:
        covered: parameters.
        all_of_them: whether those without a gradient count with zeros, as where other ranks have one.
        into: copies that nobody needs any more, to be written over: large memory that is new costs more than the copy.

    Returns:
        By parameter.
    """
    found = {p: _copy(g.detach(), (into or {}).get(p)) for p in covered if (g := own_gradient(p)) is not None}
    return {p: found[p] if p in found else torch.zeros_like(local(p)) for p in covered if all_of_them or p in found}


def facts_of(found: Found) -> Tensor:
    """Return what `PairedStep` needs of a measurement.

    Args:
        found: its moments.

    Returns:
        tr(Sigma), |G|^2, factor, and 1 where it counts; float64.
    """
    return torch.stack([found.values[0, 0], found.values[0, 1], found.factor, found.counts]).double()


def judge_pairs(rows: Sequence[Tensor]) -> Independence:
    """Return what pairs of steps say about the independence of samples.

    Args:
        rows: from `PairedStep.finish`.

    Returns:
        Known and independent where the interval of Phi stays below 4 or the excess is less than a tenth of |G|^2;
        dependent where it lies above 1.4 and the excess is more.

    Example:
        >>> judge_pairs([torch.tensor([3.0 + 0.1 * i, 1.0, 0.5, 1.0]) for i in range(8)]).dependent
        True
    """
    table = torch.stack(list(rows)).double().cpu().numpy() if rows else torch.zeros(0, 4).numpy()
    table = table[table[:, 3] > 0]
    if len(table) < FEWEST:
        return Independence(math.nan, 0.0, math.inf, False, False)
    half, noise, signal = (float(x) for x in table[:, :3].mean(0))
    if noise <= 0:
        return Independence(math.nan, 0.0, math.inf, False, half <= 0)
    spread = block_spread(table[:, :2], table[:, 3])
    low, high = ratio_interval(half, noise, spread)
    share = SHARE * max(signal, 0.0)
    dependent = low > DEPENDENT and half - noise > share
    clear = high <= UNCLEAR or (high - 1) * noise <= share
    return Independence(half / noise, low, high, dependent, clear and not dependent)


def _copy(gradient: Tensor, into: Tensor | None) -> Tensor:
    same = into is not None and (into.shape, into.dtype) == (gradient.shape, gradient.dtype)
    return into.copy_(gradient) if into is not None and same else gradient.clone()
