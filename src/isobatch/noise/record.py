r"""One measured step: what its chunks added to `.grad`, and the moments that follow, all on the device.

A chunk of n_j of n samples adds c_j to the gradient of its rank; after averaging over W ranks the gradient is
gbar = sum c_j / W, so that g_j = c_j n/(n_j W). Chunks declare n_j, or count alike: then a unit stands for n_j.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.gradients import PassNorms, RescaleCheck, local, own_gradient
from isobatch.noise.columns import Columns
from isobatch.noise.geometry import Geometry, gaussian_root


@dataclass
class Entry:
    """Chunks that were seen together.

    Args:
        units: n_j of each, or 1 each where none were declared.
        blocks: parameters, and the norms of their c_j, shape (parameters, chunks).
    """

    units: list[float]
    blocks: list[tuple[list[Tensor], Tensor]] = field(default_factory=list)


class Found(NamedTuple):
    """Moments of one step by column, on the device.

    Args:
        values: (trace, |G|^2), shape (columns, 2), float64; zeros where they do not count.
        counts: 1 where the step counts, 0 where something was not finite or no gradient of this step; a scalar.
        changed: 1 where everything was finite, but the gradient no multiple of what the chunks added; a scalar.
        factor: what that multiple was; a scalar.
    """

    values: Tensor
    counts: Tensor
    changed: Tensor = torch.zeros((), dtype=torch.float64)
    factor: Tensor = torch.ones((), dtype=torch.float64)


@final
class Record:
    """Collects the chunks of one step.

    Args:
        columns: which parameters count towards what.
        geometry: how norms are taken.
        covered: parameters that are looked at.
        trusted: 1 or 0 by covered parameter, where a check has found some of them unfit; None trusts all.
        norms: of the gradients at the end of their passes; None where they are not comparable.
    """

    def __init__(
        self,
        columns: Columns,
        geometry: Geometry,
        covered: Sequence[Tensor],
        trusted: dict[Tensor, Tensor] | None = None,
        norms: PassNorms | None = None,
    ):
        self.columns = columns
        self.geometry = geometry
        self.covered = list(covered)
        self.trusted = trusted
        self.entries: list[Entry] = []
        self.check = RescaleCheck(self.covered)
        self.norms = norms
        self.total_units = 0.0
        self._weights: dict[Tensor, Tensor | None] = {}
        self._coordinates: dict[Tensor, Tensor] = {}

    def add(self, entry: Entry, gradients: Mapping[Tensor, Sequence[Tensor]]) -> None:
        """Take the gradients of an entry's chunks, a few launches for all of them.

        Args:
            entry: one chunk, or one of each rank whose gradients are seen here.
            gradients: c_j of each chunk, of the shape that this rank holds of the parameter.
        """
        weighted = {p: [self.weighted(p, gradient) for gradient in some] for p, some in gradients.items()}
        norms = self.geometry.norms([gradient for some in weighted.values() for gradient in some])
        entry.blocks.append((list(weighted), norms.view(len(weighted), len(entry.units))))
        if self.geometry.by_coordinate:
            for parameter, some in weighted.items():
                for gradient, unit in zip(some, entry.units, strict=True):
                    self.add_square(parameter, gradient, unit)

    def weighted(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return a gradient in the geometry's own coordinates.

        Args:
            parameter: whose it is.
            gradient: of its shape, or with rows in front.

        Returns:
            The gradient, divided by sqrt(v) + eps where the geometry is Adam's.
        """
        if parameter not in self._weights:
            self._weights[parameter] = self.geometry.weight(parameter)
        weight = self._weights[parameter]
        return gradient if weight is None else gradient * weight

    def add_square(self, parameter: Tensor, gradient: Tensor, unit: float) -> None:
        """Add c_j^2/unit, coordinate by coordinate.

        Args:
            parameter: whose gradient it is.
            gradient: c_j, weighted.
            unit: of the chunk.
        """
        wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
        known = self._coordinates.get(parameter)
        if known is None:
            self._coordinates[parameter] = wide.square().div_(unit)
        else:
            known.addcmul_(wide, wide, value=1 / unit)

    @property
    def freedom(self) -> float:
        """Chunks that were seen, less their share of the step: 0 where one chunk is the whole step."""
        return self._chunks - (self._seen / self.total_units if self.total_units else 0)

    @torch.no_grad()
    def finish(self, samples: float, group: dist.ProcessGroup | None) -> Found | None:
        """Return the step's moments; None when there is nothing to compare.

        Args:
            samples: n, of all ranks.
            group: the ranks; None for one process.

        Returns:
            Moments by column, the same on every rank.
        """
        ranks = 1 if group is None else group.size()
        if ranks == 1 and self.freedom < 1e-9:
            return None
        device = local(self.covered[0]).device
        over, plain = self._sums(device)
        squares = sum(unit * unit for entry in self.entries for unit in entry.units)
        numbers = send([float(self._chunks), self._seen, squares, self.total_units], device)
        sums = torch.cat([over, plain, numbers, self.check.sums(device)])
        if group is not None:
            dist.all_reduce(sums, group=group)
            self._all_reduce_coordinates(group)
        return self._moments(sums, samples, ranks)

    def agree(self, everything: Sequence[Tensor], group: dist.ProcessGroup, *, abstain: bool) -> dict[Tensor, Tensor]:
        """Cover what every rank with samples covers and trusts.

        Args:
            everything: parameters whose rows are looked at, the same on all ranks.
            group: the ranks.
            abstain: whether this one had no samples.

        Returns:
            1 or 0 by parameter, as `trusted`; nothing is covered where all are 0.
        """
        mine, own = torch.ones(len(everything), dtype=torch.float64, device=everything[0].device), set(self.covered)
        if not abstain:
            trust = self.trusted or {}
            mine = torch.stack([trust.get(p, mine[0]) if p in own else 0 * mine[0] for p in everything])
        dist.all_reduce(mine, op=dist.ReduceOp.MIN, group=group)
        self.trusted = dict(zip(everything, mine, strict=True))
        self.covered = list(everything) if float(mine.max()) > 0 else []
        return self.trusted

    def factor(self, summed: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the gradients were multiplied by since their passes, and whether that explains them.

        Args:
            summed: from `check.sums`, averaged over ranks.

        Returns:
            The factor and a boolean scalar.
        """
        factor, honest = self.check.factor(summed, self.columns.shards)
        if self.norms is not None:
            honest = honest & self.norms.explained(self.covered, factor)
        return factor, honest

    def _sums(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return sum |c_j|^2/unit_j and sum |c_j|^2 by column."""
        over = torch.zeros(len(self.columns), dtype=torch.float64, device=device)
        plain = torch.zeros_like(over)
        entries = [entry for entry in self.entries if entry.blocks]
        lengths = [self._lengths(entry) for entry in entries]
        if lengths and self.columns.shards:  # of one gradient each rank has seen its own part
            together = self.columns.shards.total(torch.cat(lengths, dim=1))
            lengths = together.split([part.shape[1] for part in lengths], dim=1)
        for entry, part in zip(entries, lengths, strict=True):
            squares = self.geometry.squared(part)
            plain += squares.sum(1)
            alike = len(set(entry.units)) == 1
            over += (squares / (entry.units[0] if alike else send(entry.units, device))).sum(1)
        return over, plain

    def _lengths(self, entry: Entry) -> Tensor:
        """Return what adds up to the lengths of an entry's chunks, by column."""
        found = [p for parameters, _ in entry.blocks for p in parameters]
        norms = torch.cat([block for _, block in entry.blocks]).double() * self._trust(found, 2)
        additive = self.geometry.additive(norms)
        if self.columns.shards:
            additive = additive * self.columns.shards.shares(found, norms.device)[:, None]
        return self.columns.add_up(found, additive)

    def _moments(self, sums: Tensor, samples: float, ranks: int) -> Found:
        width = len(self.columns)
        over, plain, numbers, summed = sums.split([width, width, 4, len(sums) - 2 * width - 4])
        chunks, seen, unit_squares, total = numbers
        factor, honest = self.factor(summed / ranks)
        found = {p: own_gradient(p) for p in self.covered}
        gradients = {p: self.weighted(p, gradient) for p, gradient in found.items() if gradient is not None}
        mean = self._mean_square(gradients, sums.device)
        rescaled = (factor / ranks) ** 2
        freedom = chunks - seen / total
        spread = (over * total**2 * rescaled - seen * mean) / freedom
        pairs = (mean - plain * rescaled) / (1 - unit_squares / total**2)
        signal = torch.where(seen < total * (1 - 1e-9), mean - spread / total, pairs)
        if self.geometry.by_coordinate:
            spread = self._sigma_squared(gradients, seen, freedom, total**2 * rescaled)
        values = torch.stack([spread * (samples / total), signal], dim=1)
        sound = torch.isfinite(values).all()
        counts = (sound & honest).double()
        values = torch.where(counts > 0, values, torch.zeros_like(values))
        return Found(values, counts, (sound & ~honest).double(), factor)

    def square(self, gradients: dict[Tensor, Tensor]) -> Tensor:
        """Return the squared length of a gradient of the whole model, in the geometry, of what is trusted.

        Args:
            gradients: by covered parameter.

        Returns:
            A scalar, float64.
        """
        weighted = {p: self.weighted(p, gradient) for p, gradient in gradients.items()}
        return self._mean_square(weighted, local(self.covered[0]).device)[0]

    def _mean_square(self, gradients: dict[Tensor, Tensor], device: torch.device) -> Tensor:
        """Return |gbar|^2 by column."""
        if not gradients:
            return torch.zeros(len(self.columns), dtype=torch.float64, device=device)
        found = list(gradients)
        norms = self.geometry.norms(list(gradients.values())) * self._trust(found, 1)
        return self.geometry.squared(self._added_up(found, self.geometry.additive(norms)))

    def _added_up(self, parameters: list[Tensor], lengths: Tensor) -> Tensor:
        """Return lengths by column, over the ranks that hold parts of the parameters."""
        shards = self.columns.shards
        if shards:
            lengths = lengths * shards.shares(parameters, lengths.device)
        return shards.total(self.columns.add_up(parameters, lengths))

    def _sigma_squared(self, gradients: dict[Tensor, Tensor], seen: Tensor, freedom: Tensor, scale: Tensor) -> Tensor:
        """Return |sigma|_1^2 by column: summed roots of sample variances, less their Gaussian bias."""
        roots = []
        for parameter, gradient in gradients.items():
            squares = self._coordinates.get(parameter, torch.zeros_like(gradient))
            variance = (squares * scale - seen * gradient.square()) / freedom
            roots.append(variance.clamp_min_(0).sqrt_().sum().double())
        found = list(gradients)
        summed = self._added_up(found, torch.stack(roots) * self._trust(found, 1))
        return (summed / gaussian_root(freedom)).square()

    def _trust(self, parameters: list[Tensor], dims: int) -> Tensor | float:
        if self.trusted is None:
            return 1.0
        trust = torch.stack([self.trusted[p] for p in parameters])
        return trust[:, None] if dims == 2 else trust

    def _all_reduce_coordinates(self, group: dist.ProcessGroup) -> None:
        if self.geometry.by_coordinate:
            for parameter in self.covered:
                square = self._coordinates.setdefault(parameter, torch.zeros_like(local(parameter)))
                dist.all_reduce(square, group=group)

    @property
    def _chunks(self) -> int:
        return sum(len(entry.units) for entry in self.entries)

    @property
    def _seen(self) -> float:
        return sum(sum(entry.units) for entry in self.entries)


def send(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers on a device, without making the host wait for it.

    Args:
        numbers: any.
        device: where to.

    Returns:
        float64.
    """
    sent = torch.tensor(numbers, dtype=torch.float64)
    return sent.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sent.to(device)
