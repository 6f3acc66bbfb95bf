"""Gradients of given chunks at fixed weights, summed by group so that whole groups can be left out afterwards."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from isobatch.noise.columns import Columns
from isobatch.noise.geometry import Geometry, gaussian_root
from isobatch.noise.interval import Array
from isobatch.noise.statistic import Moments, moments


@final
class GroupSums:
    """sum n_j g_j of each group of chunks, and the norms of every chunk, by parameter.

    Memory: one gradient for each group, twice that for the sign geometry.

    Args:
        columns: which parameters count towards what.
        geometry: how norms are taken.
        groups: how many.
    """

    def __init__(self, columns: Columns, geometry: Geometry, groups: int):
        self.columns, self.geometry = columns, geometry
        self.parameters = columns.trainable()
        self.weights = [geometry.weight(p) for p in self.parameters]
        self.groups = groups
        self.sums: list[Tensor] = [torch.zeros(0)] * len(self.parameters)
        self.squares: list[Tensor] = [torch.zeros(0)] * len(self.parameters)
        self.group_of: list[int] = []
        self.counts: list[float] = []
        self.norms: list[Array] = []
        self.lost = 0

    @torch.no_grad()
    def add(self, gradients: tuple[Tensor | None, ...], count: float) -> None:
        """Take one chunk's mean gradient; one that is not finite is counted and left out.

        Args:
            gradients: of the trainable parameters in their order; None where unused.
            count: n_j.
        """
        found = [
            torch.zeros_like(p) if g is None else (g if w is None else g * w)
            for p, g, w in zip(self.parameters, gradients, self.weights, strict=True)
        ]
        norms = self.geometry.norms(found).cpu().numpy()
        if not np.isfinite(norms).all():
            self.lost += 1
            return
        group = len(self.counts) % self.groups
        for i, gradient in enumerate(found):
            wide = gradient.flatten().double()
            if not self.sums[i].numel():
                self.sums[i] = torch.zeros(self.groups, wide.numel(), dtype=gradient.dtype, device=wide.device)
                if self.geometry.by_coordinate:
                    self.squares[i] = torch.zeros_like(self.sums[i])
            self.sums[i][group].add_(wide * count)
            if self.geometry.by_coordinate:
                self.squares[i][group].add_(wide.square() * count)
        self.group_of.append(group)
        self.counts.append(count)
        self.norms.append(norms)

    def moments(self, column: int, without: int | None = None) -> Moments | None:
        """Return the U-statistic of one column.

        Args:
            column: which.
            without: a group to leave out.

        Returns:
            The two estimates; None with fewer than two chunks.
        """
        kept = [j for j, group in enumerate(self.group_of) if group != without]
        if len(kept) < 2:
            return None
        inside = self.columns.members(column, self.parameters)
        counts = [self.counts[j] for j in kept]
        total = sum(counts)
        means = [self._over(self.sums[i], without).div_(total) for i in inside]
        if not inside:
            return Moments(0.0, 0.0)
        mean = float(self._squared(self.geometry.norms(means).cpu().numpy()))
        norms = np.stack([self.norms[j][inside] for j in kept])
        found = moments(self._squared(norms).tolist(), counts, mean)
        if not self.geometry.by_coordinate:
            return found
        freedom = len(kept) - 1
        sigma = 0.0
        for i, average in zip(inside, means, strict=True):
            variance = (self._over(self.squares[i], without) - total * average.square()) / freedom
            sigma += float(variance.clamp_min_(0).sqrt_().double().sum())
        return found._replace(
            trace=(sigma / float(gaussian_root(torch.tensor(float(freedom), dtype=torch.float64)))) ** 2
        )

    def _over(self, sums: Tensor, without: int | None) -> Tensor:
        """Return the sum over all groups but one."""
        everything = sums.sum(0)
        return everything if without is None else everything.sub_(sums[without])

    def _squared(self, norms: Array) -> Array:
        """Return squared norms over parameters (the last axis)."""
        return norms.sum(-1) ** 2 if self.geometry.by_coordinate else (norms**2).sum(-1)
