r"""An exact Gaussian process over the losses of a run, in the few dimensions that its kernel has.

    k(x, x') = s*exp(-(x-x')^2/(2*l^2)) = s*phi(x).phi(x'),   phi_k(u) = exp(-u^2/(2*l^2)) * (u/l)^k / sqrt(k!)

On [-1/2, 1/2] with l = 0.2 the terms beyond k = 31 add less than 1e-12, so that n losses cost one 32 x 32
eigenvalue problem instead of an n x n Cholesky factor.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from isobatch.curves import Look

Array = NDArray[np.float64]

LENGTHSCALE, TERMS, PLACES = 0.2, 32, 500
FIT_POINTS, LOOK_POINTS, DRAWS, ITERATIONS = 100, 500, 5, 100
RATE, LEAST_NOISE, JITTER = 0.01, 1e-4, 1e-4
SMALL, LARGE = 0.1, 20.0
"""Sizes of losses between which the constants above are those of cross-entropies, as published."""
_ROOTS = [math.sqrt(term) for term in range(TERMS)]


def features(x: Array) -> Array:
    """Return phi(x), whose products are the kernel for s = 1.

    Args:
        x: places in [0, 1], shape (n,).

    Returns:
        Shape (n, 32).

    Example:
        >>> one = features(np.array([0.1, 0.4]))
        >>> bool(abs(one[0] @ one[1] - np.exp(-(0.3**2) / 0.08)) < 1e-12)
        True
    """
    u = (np.asarray(x, dtype=float) - 0.5) / LENGTHSCALE
    found = np.empty((TERMS, len(u)))  # a term in a row: cumprod along rows of 32 takes ten times as long
    np.exp(-(u**2) / 2, out=found[0])
    for term in range(1, TERMS):
        np.multiply(found[term - 1], u / _ROOTS[term], out=found[term])
    return found.T


class LossEvidence:
    """The marginal likelihood of losses, as a function of mean, scale and noise.

    Args:
        x: places in [0, 1].
        y: losses there.
        phi: features of the places, where they are known.
    """

    def __init__(self, x: Array, y: Array, phi: Array | None = None):
        phi = features(x) if phi is None else phi
        self.centre = float(y.mean())  # all sums are of losses about it, so that a small difference stays exact
        y = y - self.centre
        self.gram, self.sums, self.moments = phi.T @ phi, phi.sum(0), y @ phi
        self.count, self.total, self.square = len(y), float(y.sum()), float(y @ y)

    @cached_property
    def _turned(self) -> tuple[Array, Array, Array]:
        """Eigenvalues of phi'phi, and phi'1 and phi'y along its eigenvectors."""
        values, vectors = np.linalg.eigh(self.gram)
        return values.clip(min=0), self.sums @ vectors, self.moments @ vectors

    def negative(self, mean: float, scale: float, noise: float) -> float:
        """Return minus the log evidence per loss, without its constant.

        Args:
            mean: c.
            scale: s.
            noise: sigma^2.

        Returns:
            (r'K^-1 r + log|K|)/(2n), K = s*phi.phi' + sigma^2, r = y - c.
        """
        values, ones, along = self._turned
        n, c, d = self.count, mean - self.centre, scale * values + noise
        b = along - c * ones
        square = self.square - 2 * c * self.total + n * c**2
        fit = (square - scale * float(b @ (b / d))) / noise
        return (fit + float(np.log(d).sum()) + (n - TERMS) * math.log(noise)) / (2 * n)

    def slope(self, mean: float, scale: float, noise: float) -> tuple[float, float, float]:
        """Return the derivatives of `negative` by mean, scale and noise.

        Args:
            mean: c.
            scale: s.
            noise: sigma^2.

        Returns:
            One number each.
        """
        return self._slope(mean, scale, noise)

    @cached_property
    def _slope(self) -> Callable[[float, float, float], tuple[float, float, float]]:
        """The function behind slope(), with all that stays the same looked up once."""
        (values, ones, along), n, centre = self._turned, self.count, self.centre
        total, square = self.total, self.square
        products = np.stack([along**2, along * ones, ones**2, values, np.ones(TERMS)], 1)
        parts, sums = np.empty((2, TERMS)), np.empty((2, 5))
        part, part2 = parts
        multiply, add, reciprocal, dot, rest, twice = np.multiply, np.add, np.reciprocal, np.dot, n - TERMS, 2 * n

        def slope(mean: float, scale: float, noise: float) -> tuple[float, float, float]:
            c = mean - centre
            multiply(values, scale, part)
            add(part, noise, part)
            reciprocal(part, part)
            multiply(part, part, part2)
            # with b = along - c * ones, every sum below is one of products with part or its square
            (first, cross, last, weights, count), (first2, cross2, last2, _, _) = dot(parts, products, sums).tolist()
            near = first + c * (c * last - 2 * cross)
            own = first2 + c * (c * last2 - 2 * cross2)
            by_mean = -2 * (total - n * c - scale * (cross - c * last)) / noise
            # scale * value * part = 1 - noise * part, so that the square's sum with values needs no products of its own
            length = (square - 2 * c * total + n * c * c - scale * (near + noise * own)) / (noise * noise)
            return by_mean / twice, (weights - own) / twice, (count + rest / noise - length) / twice

        return slope

    def posterior(self, mean: float, scale: float, noise: float) -> tuple[Array, Array]:
        """Return mean and covariance of the weights on phi.

        Args:
            mean: c.
            scale: s.
            noise: sigma^2.

        Returns:
            Shapes (32,) and (32, 32).
        """
        inverse = np.linalg.inv(scale * self.gram + noise * np.eye(TERMS))
        weights = scale * (inverse @ (self.moments - (mean - self.centre) * self.sums))
        return weights, scale * noise * inverse


@final
class LossRegression:
    """AutoWU's Gaussian process: fitted a little at each look, and asked whether the loss has turned.

    At each look: mean set to that of the losses; 100 Adam steps on the evidence of at most 100 random losses; then,
    five times, the posterior given at most 500 random losses at 500 places. The draws depend on the number of the look
    alone, so every rank and every resumed run makes the same ones.

    The published noise starts at 1e-3 and moves slowly: where losses scatter more, the first looks are sure of a turn
    that is none. So unless `published`, a look takes the noise to be at least that between neighbouring losses, and
    losses that are all below 0.1, or mostly above 20, are brought to these sizes first: the published constants see no
    turn in squared errors of 0.001, and a sure one in sums of hundreds that only fall.

    Args:
        published: leave the noise to the fit alone, and losses as they are.

    Example:
        >>> x = np.linspace(0, 1, 200, endpoint=False)
        >>> look = LossRegression().look(x, (x - 0.5) ** 2 * 8)
        >>> min(look.chances) > 0.95, all(abs(place - 0.5) < 0.05 for place in look.places)
        (True, True)

    References:
        arXiv 2107.05855 (Kim et al.), and its official code.
    """

    def __init__(self, *, published: bool = False):
        self.published, self.looks = published, 0
        self.mean, self.raw = 0.0, [0.0, _raw(1e-3 - LEAST_NOISE)]
        self._first, self._second, self._steps = [0.0] * 3, [0.0] * 3, 0
        self._places = np.linspace(0, 1, PLACES)
        self._features = features(self._places)

    @property
    def scale(self) -> float:
        """The kernel's s."""
        return _softplus(self.raw[0])

    @property
    def noise(self) -> float:
        """The variance of one loss."""
        return LEAST_NOISE + _softplus(self.raw[1])

    def look(self, x: Sequence[float] | Array, y: Sequence[float] | Array) -> Look:
        """Fit, and say how likely it is that the loss was lower before.

        Args:
            x: places of the losses, shares of the samples so far.
            y: finite losses; fewer than two say nothing.

        Returns:
            One chance and one place for each draw.
        """
        self.looks += 1
        places, losses = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        if len(losses) < 2:
            return Look((0.0,) * DRAWS, (1.0,) * DRAWS)
        losses = losses if self.published else losses / _unit(losses)
        self.mean = float(losses.mean())
        draws = 1 if len(losses) <= LOOK_POINTS else DRAWS  # up to there every draw is all of them
        phi = features(places) if len(losses) <= DRAWS * LOOK_POINTS else None
        fitted = self._evidence(places, losses, phi, FIT_POINTS, 0)
        self._fit(fitted)
        noise = self.noise if self.published else max(self.noise, scatter(losses))
        drawn: Iterable[LossEvidence] = [fitted]
        if len(losses) > FIT_POINTS:
            drawn = (self._evidence(places, losses, phi, LOOK_POINTS, draw) for draw in range(1, draws + 1))
        found = [self._judge(evidence, noise) for evidence in drawn] * (DRAWS // draws)
        return Look(tuple(chance for chance, _ in found), tuple(place for _, place in found))

    def state_dict(self) -> dict[str, Any]:
        """Return hyperparameters, Adam's state and the number of looks, as plain values."""
        lists = {"raw": list(self.raw), "first": list(self._first), "second": list(self._second)}
        return {"looks": self.looks, "mean": self.mean, "steps": self._steps, **lists}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what `state_dict` gave.
        """
        self.looks, self.mean, self._steps = state["looks"], state["mean"], state["steps"]
        self.raw = list(state["raw"])
        self._first, self._second = list(state["first"]), list(state["second"])

    def _judge(self, evidence: LossEvidence, noise: float) -> tuple[float, float]:
        weights, covariance = evidence.posterior(self.mean, self.scale, noise)
        expected = self._features @ weights
        return chance(expected, self._features, covariance), float(self._places[int(expected.argmin())])

    def _evidence(self, places: Array, losses: Array, phi: Array | None, most: int, draw: int) -> LossEvidence:
        """Return the evidence of at most so many losses; phi holds the features of all places, where they are few."""
        if len(losses) <= most:
            return LossEvidence(places, losses, phi)
        chosen = np.sort(np.random.default_rng([self.looks, draw]).choice(len(losses), most, replace=False))
        return LossEvidence(places[chosen], losses[chosen], None if phi is None else phi[chosen])

    def _fit(self, evidence: LossEvidence) -> None:
        """Take 100 steps of Adam on mean, scale and noise, written out: three numbers are too few for arrays."""
        mean, (scale, noise) = self.mean, self.raw
        (a, b, c), (aa, bb, cc) = self._first, self._second
        slope, exp, log1p, sqrt = evidence._slope, math.exp, math.log1p, math.sqrt
        for step in range(self._steps + 1, self._steps + ITERATIONS + 1):
            x, y = exp(-abs(scale)), exp(-abs(noise))
            by_mean, by_scale, by_noise = slope(
                mean, max(scale, 0.0) + log1p(x), LEAST_NOISE + max(noise, 0.0) + log1p(y)
            )
            by_scale *= (1 if scale > 0 else x) / (1 + x)
            by_noise *= (1 if noise > 0 else y) / (1 + y)
            far, near = RATE / (1 - 0.9**step), 1 - 0.999**step
            a, aa = a + 0.1 * (by_mean - a), aa + 0.001 * (by_mean * by_mean - aa)
            b, bb = b + 0.1 * (by_scale - b), bb + 0.001 * (by_scale * by_scale - bb)
            c, cc = c + 0.1 * (by_noise - c), cc + 0.001 * (by_noise * by_noise - cc)
            mean -= far * a / (sqrt(aa / near) + 1e-8)
            scale -= far * b / (sqrt(bb / near) + 1e-8)
            noise -= far * c / (sqrt(cc / near) + 1e-8)
        self._steps += ITERATIONS
        self.mean, self.raw, self._first, self._second = mean, [scale, noise], [a, b, c], [aa, bb, cc]


def chance(expected: Array, phi: Array, covariance: Array) -> float:
    """Return the largest chance over the earlier places that the function is lower there than at the last one.

    Args:
        expected: posterior mean at each place.
        phi: features of the places.
        covariance: of the weights.

    Returns:
        max_i P(f_i < f_last), each on its own.
    """
    apart = phi[:-1] - phi[-1]
    spread = np.sqrt(np.einsum("ij,ij->i", apart @ covariance, apart).clip(min=0) + JITTER)
    furthest = float(((expected[-1] - expected[:-1]) / spread).max())
    return 0.5 * math.erfc(-furthest / math.sqrt(2))


def scatter(losses: Array) -> float:
    """Return the variance of one loss about its neighbours, from the median of their distances.

    Args:
        losses: in order, at least two.

    Returns:
        sigma^2; an explosion at the end hardly moves it.

    Example:
        >>> noisy = np.random.default_rng(0).normal(0, 2, 1000) + np.linspace(0, 50, 1000)
        >>> round(scatter(noisy), 1)  # 4 in the limit
        3.7
    """
    return float(np.median(np.abs(np.diff(losses))) / 0.9539) ** 2


def _unit(losses: Array) -> float:
    """What losses are divided by; 1 for those of the usual sizes, and for those that are all 0."""
    size = np.abs(losses)
    largest, typical = float(size.max()), float(np.median(size))
    if typical > LARGE:
        return typical / LARGE
    return largest / SMALL if 0 < largest < SMALL else 1.0


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _raw(value: float) -> float:
    return value + math.log(-math.expm1(-value))
