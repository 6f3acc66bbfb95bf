"""The quadratic part: Adam on one noisy coordinate, many replicas, against the predicted drift error."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from isobatch import rules
from isobatch.plan import Recipe, Settings, scaled
from isobatch.tasks.quadratic import simulate

BATCH, STEPS, LR = 4, 3200, 1e-5


def sweep(shares: list[float], kappas: list[float], replicas: int) -> list[dict[str, Any]]:
    """Measure each rule's error in drift on a coordinate whose gradient is 1 with noise share f.

    The coordinate has no curvature worth the name (theta stays near 1 while the learning rate is small), so the mean
    displacement measures the drift per sample exactly as the square root's theory speaks of it.

    Args:
        shares: noise shares f at the reference batch.
        kappas: batch ratios.
        replicas: independent runs per point.

    Returns:
        One row a (share, kappa): predicted square-root error and measured error of each rule.
    """
    found = []
    for share in shares:
        noise = BATCH * share / (1 - share)
        base = _recipe("auto", None)
        drift = _drift(scaled(base, BATCH), noise, replicas)
        for kappa in kappas:
            row = {"share": share, "kappa": kappa, "predicted": rules.drift_error(kappa, share)}
            for name, kind in (("square root", "sqrt"), ("linear", "linear"), ("noise-aware", "noise-aware")):
                settings = scaled(_recipe(kind, share), BATCH * kappa)
                row[name] = _drift(settings, noise, replicas) / drift - 1
            invariant = scaled(base.at(round(BATCH * kappa), optimizer="invariant").recipe, BATCH * kappa)
            row["invariant"] = _drift(invariant, noise, replicas, reference=BATCH) / drift - 1
            found.append(row)
    return found


def _recipe(kind: str, share: float | None) -> Recipe:
    optimizer = {"name": "adam", "lr": LR, "betas": [0.9, 0.999]}
    chosen = {"lr": kind, "noise_share": share, "floors": [0.0, 0.0]}
    return Recipe.parse({"batch": {"size": BATCH}, "optimizer": optimizer, "rules": chosen})


def _drift(settings: Settings, noise: float, replicas: int, reference: int | None = None) -> float:
    m = v = np.zeros(replicas)
    products = [1.0, 1.0]
    square_of = (lambda gradient: gradient**2) if reference is None else _reference_square(settings, noise, reference)

    def step(theta: np.ndarray, gradient: np.ndarray, _: int) -> np.ndarray:
        nonlocal m, v
        products[0] *= settings.betas[0]
        products[1] *= settings.betas[1]
        m = settings.betas[0] * m + (1 - settings.betas[0]) * gradient
        v = settings.betas[1] * v + (1 - settings.betas[1]) * square_of(gradient)
        return theta - settings.lr * (m / (1 - products[0])) / (np.sqrt(v / (1 - products[1])) + settings.eps)

    theta, _ = simulate(step, settings, noise, BATCH * STEPS, replicas=replicas, seed=0)
    return float(1 - theta.mean())


def _reference_square(settings: Settings, noise: float, reference: int) -> Callable[[np.ndarray], np.ndarray]:
    """Square of reference-size chunks, drawn given the batch's mean: exact for Gaussian noise."""
    rng, chunks = np.random.default_rng(1), round(settings.batch / reference)
    window: deque[np.ndarray] = deque(maxlen=max(1, round(reference / settings.batch)))

    def square(gradient: np.ndarray) -> np.ndarray:
        if chunks > 1:
            return gradient**2 + noise / reference * rng.chisquare(chunks - 1, len(gradient)) / chunks
        window.append(gradient)
        return np.mean(window, axis=0) ** 2

    return square
