r"""The variance of a gradient under M views: between samples, and between views of one sample.

    Var(M, B) = sigma_between^2 / B + sigma_views^2 / (M*B)

More samples divide both terms, more views the second one alone; so M stops paying where the first one is left.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.augment.draws import Draws
from isobatch.augment.views import View, inputs_of, viewed
from isobatch.errors import InputError
from isobatch.student import student_t
from isobatch.units import finite, whole


@dataclass(frozen=True)
class ViewVariance:
    """The two terms, each the trace of a covariance of one sample's gradient; unbiased, so either may be negative.

    Args:
        between: sigma_between^2, of the mean over views from sample to sample.
        views: sigma_views^2, from view to view of one sample.
        gradient_squared: |G|^2.
        low: lower end of the interval of `share`.
        high: upper end; both NaN where chunks are too few.

    Example:
        >>> terms = ViewVariance(between=7.0, views=3.0, gradient_squared=1.0)
        >>> terms.at(views=3, batch=2), terms.share
        (4.0, 0.3)
    """

    between: float
    views: float
    gradient_squared: float
    low: float = math.nan
    high: float = math.nan

    @property
    def share(self) -> float:
        """What views can remove: sigma_views^2 / (sigma_between^2 + sigma_views^2), the limit of the saving."""
        total = self.between + self.views
        return self.views / total if total > 0 else math.nan

    def at(self, views: int, batch: float) -> float:
        """Return the variance of the gradient of a batch.

        Args:
            views: M.
            batch: B, samples.

        Returns:
            sigma_between^2/B + sigma_views^2/(M*B).
        """
        return self.between / batch + self.views / (whole("views", views) * finite("batch", batch, 0, open_low=True))

    def pays(self, gain: float = 0.05, most: int = 64) -> int:
        """Return the largest power of two M whose doubling from M/2 still took `gain` of the variance away.

        Doubling the batch instead would take half away at the same cost: where samples are to be had, they pay more.

        Args:
            gain: least relative fall of the variance for twice the rows.
            most: largest M to look at.

        Returns:
            M, 1 where views take nothing away.

        Raises:
            InputError: a gain outside (0, 1).

        Example:
            >>> ViewVariance(between=7.0, views=3.0, gradient_squared=1.0).pays()
            4
        """
        finite("gain", gain, 0, 1, open_low=True, open_high=True)
        views, share = 1, self.share
        if not share > 0:
            return 1
        while 2 * views <= most and (share / (2 * views)) / (1 - share + share / views) >= gain:
            views *= 2
        return views

    def sentence(self, gain: float = 0.05) -> str:
        """Return what the terms say about M.

        Args:
            gain: as in `pays`.

        Returns:
            A sentence.
        """
        span = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        if not self.share > 0:
            return f"views take no measurable variance away (share {self.share:.2f}{span}): M = 1"
        return (
            f"views can take away at most {self.share:.0%}{span} of the gradient's variance; M = {self.pays(gain)} is "
            f"the last doubling that takes {gain:.0%}, and twice the samples would take 50%"
        )


def two_terms(square_rows: float, square_samples: float, square_all: float, samples: int, views: int) -> ViewVariance:
    r"""Return unbiased terms from three sums of squared norms (nested analysis of variance).

    With g_nm the gradient of view m of sample n, g_n its mean over views and g the mean of all:

        sigma_views^2   = (sum_nm |g_nm|^2 - M sum_n |g_n|^2) / (N (M-1))
        sigma_between^2 = (sum_n |g_n|^2 - N |g|^2) / (N-1) - sigma_views^2 / M
        |G|^2           = |g|^2 - sigma_between^2 / N - sigma_views^2 / (N M)

    Args:
        square_rows: sum_nm |g_nm|^2.
        square_samples: sum_n |g_n|^2.
        square_all: |g|^2.
        samples: N, at least 2.
        views: M, at least 2.

    Returns:
        The terms.

    Raises:
        InputError: fewer than two samples or views.

    Example:
        >>> terms = two_terms(square_rows=10.0, square_samples=4.0, square_all=1.0, samples=2, views=2)
        >>> terms.views, terms.between, terms.gradient_squared
        (1.0, 1.5, 0.0)

    References:
        Derived: the expected mean squares of the one-way nested design with random effects.
    """
    n, m = whole("samples", samples, 2), whole("views", views, 2)
    inner = (square_rows - m * square_samples) / (n * (m - 1))
    between = (square_samples - n * square_all) / (n - 1) - inner / m
    return ViewVariance(between, inner, square_all - between / n - inner / (n * m))


def measure_views(
    loss: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    chunks: Iterable[Any],
    view: View,
    *,
    views: int = 4,
    seed: int = 0,
    level: float = 0.95,
) -> ViewVariance:
    """Measure the two terms at the model's present weights.

    Each chunk of b samples goes through the model once a view, every sample with a view of its own; both terms are
    b times those of the chunks. Chunks of one sample serve models without batch norm, with it b is what one device
    sees. Memory: one gradient a chunk. `.grad`, buffers and weights stay as they are; the interval of the share leaves
    out one chunk at a time.

    Args:
        loss: (model, chunk) -> mean loss.
        model: whose trainable parameters are looked at.
        chunks: at least two disjoint random chunks of one size.
        view: as in training.
        views: M of the measurement, at least 2.
        seed: of the views.
        level: coverage of the interval.

    Returns:
        The terms, of one sample.

    Raises:
        InputError: fewer than two chunks or views, or chunks of several sizes.
    """
    m = whole("views", views, 2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    means, squares, sizes = [], [], set()
    for number, chunk in enumerate(chunks):
        size = len(inputs_of(chunk))
        sizes.add(size)
        rows = torch.arange(number * size, (number + 1) * size)
        mean, square = None, 0.0
        for copy in range(m):
            made = viewed(chunk, view, Draws(seed, rows, torch.full_like(rows, copy)))
            grads = torch.autograd.grad(loss(model, made), parameters, allow_unused=True, materialize_grads=True)
            row = torch.cat([grad.flatten() for grad in grads]).double()
            square += float(row @ row)
            mean = row if mean is None else mean + row
        means.append(mean / m if mean is not None else torch.zeros(()))
        squares.append(square)
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
    if len(sizes) > 1:
        raise InputError(f"chunks of {sorted(sizes)} samples must be of one size; drop the odd ones")
    if len(means) < 2:
        raise InputError(f"{len(means)} chunks; give at least two")
    return _terms(torch.stack(means), squares, m, sizes.pop(), level)


def _terms(means: Tensor, squares: Sequence[float], views: int, size: int, level: float) -> ViewVariance:
    """Return the terms of one sample, with a jackknife interval of the share."""
    gram, n = (means @ means.T).numpy(), len(squares)
    inner = np.asarray(squares)
    found = two_terms(float(inner.sum()), float(np.trace(gram)), float(gram.mean()), n, views)
    low = high = math.nan
    if n >= 4:
        # without chunk i: its own square leaves the trace, its row and column leave the sum
        own, rest = np.diag(gram), gram.sum() - 2 * gram.sum(1) + np.diag(gram)
        shares = [
            two_terms(inner.sum() - inner[i], own.sum() - own[i], rest[i] / (n - 1) ** 2, n - 1, views).share
            for i in range(n)
        ]
        spread = math.sqrt((n - 1) * np.var(shares)) * student_t(n - 1, (1 + level) / 2)
        low, high = found.share - spread, found.share + spread
    return ViewVariance(size * found.between, size * found.views, found.gradient_squared, low, high)
