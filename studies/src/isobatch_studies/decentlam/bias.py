"""The bias against momentum, learning rate and batch, and the rates, on least squares."""

from typing import Any

import numpy as np

from isobatch.decentralized.graphs import build
from isobatch_studies.decentlam.least_squares import Array, Problem, train

EXACT = ("dsgd", "dmsgd", "awc", "da", "slowmo", "qg", "d2", "decentlam", "pmsgd")
_SMALL = ("dsgd", "dmsgd", "awc", "da", "qg", "decentlam")
_BETA = 0.9


def against_beta(problem: Problem, betas: list[float]) -> dict[str, dict[str, list[list[float]]]]:
    """Return the biases of full-gradient training at every beta.

    Args:
        problem: its instances.
        betas: momenta.

    Returns:
        "lazy ring, gamma 1e-2" and "ring, gamma 1e-3" -> method -> [instance][beta]; DSGD has beta 0 alone.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    settings: list[tuple[str, tuple[str, ...], str, float, int, bool]] = [
        ("lazy ring, gamma 1e-2", EXACT, "lazy ring", 1e-2, 9000, False),
        ("ring, gamma 1e-3", _SMALL, "ring", 1e-3, 24_000, True),
    ]
    for label, names, graph, gamma, steps, solved in settings:
        topology = build(graph, problem.hessian.shape[1])
        found[label] = {}
        for name in names:
            beta = np.array(betas[:1] if name == "dsgd" else betas)
            start = problem.start(len(beta), solved=solved)
            x = train(name, topology, start, lambda x, _: problem.gradient(x), gamma, beta, steps)
            found[label][name] = problem.error(x).tolist()
    return found


def against_batch(problem: Problem, batches: list[int], noise: float) -> dict[str, list[list[float]]]:
    """Return the stationary error at beta 0.9 under gradient noise noise/sqrt(B), mean over 1200 steps after 1200.

    Args:
        problem: its instances.
        batches: samples a node and step.
        noise: standard deviation of one sample's gradient, a coordinate.

    Returns:
        method -> [instance][batch].
    """
    topology, scale = build("lazy ring", problem.hessian.shape[1]), noise / np.sqrt(np.array(batches, dtype=float))
    found = {}
    for name in ("dsgd", "dmsgd", "qg", "decentlam", "pmsgd"):
        rng, errors = np.random.default_rng(1), []

        def noisy(x: Array, _: int, rng: np.random.Generator = rng) -> Array:
            return problem.gradient(x) + scale * rng.normal(size=x.shape)

        def keep(count: int, x: Array, errors: list[Array] = errors) -> None:
            if count > 1200 and count % 5 == 0:
                errors.append(problem.error(x))

        beta = 0.0 if name == "dsgd" else _BETA
        train(name, topology, problem.start(len(batches)), noisy, 1e-2, beta, 2400, keep)
        found[name] = np.mean(errors, axis=0).tolist()
    return found


def rates(problem: Problem, horizons: list[int], noise: float, gammas: list[float]) -> dict[str, Any]:
    """Return what is fitted for the rates: errors at horizons T, and biases at learning rates.

    Strongly convex: |x - x*|**2 at T with gamma = (1-beta) 4 log(T)/T. Non-convex: the same losses with the penalty
    sum x**2/(1+x**2), mean over T steps of |mean gradient at the mean|**2, gamma = (1-beta)/sqrt(T).

    Args:
        problem: its instances.
        horizons: T, rising.
        noise: standard deviation of a gradient's coordinate.
        gammas: for the noiseless bias.

    Returns:
        Values by part and method, mean over instances, and fitted slopes.
    """
    t = np.array(horizons, dtype=float)
    convex, rough, bias = {}, {}, {}
    for name in ("decentlam", "dmsgd", "pmsgd"):
        convex[name] = _convex(problem, name, t, noise)
        rough[name] = _rough(problem, name, t, noise)
        start = problem.start(len(gammas), solved=True)
        steps = 24_000
        ring = build("lazy ring", problem.hessian.shape[1])
        if name != "pmsgd":
            x = train(name, ring, start, lambda x, _: problem.gradient(x), np.array(gammas), _BETA, steps)
            bias[name] = problem.error(x).mean(0).tolist()
    parts = {"strongly convex": (t, convex), "non-convex": (t, rough), "bias": (np.array(gammas), bias)}
    return {
        part: {name: {"at": x.tolist(), "value": y, "slope": slope(x, y)} for name, y in values.items()}
        for part, (x, values) in parts.items()
    }


def slope(x: Any, y: Any) -> float:
    """Return the slope of log y over log x.

    Args:
        x: positive values.
        y: positive values.

    Returns:
        Least-squares slope.

    Example:
        >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _convex(problem: Problem, name: str, t: Array, noise: float) -> list[float]:
    rng, found, ring = np.random.default_rng(2), np.zeros(len(t)), build("lazy ring", problem.hessian.shape[1])
    gamma = (1 - _BETA) * 4 * np.log(t) / t

    def keep(count: int, x: Array) -> None:
        for place in np.flatnonzero((count > 0.9 * t) & (count <= t)):
            found[place] += problem.error(x)[:, place].mean() / np.ceil(0.1 * t[place])

    def noisy(x: Array, _: int) -> Array:
        return problem.gradient(x) + noise * rng.normal(size=x.shape)

    train(name, ring, problem.start(len(t)), noisy, gamma, _BETA, int(t[-1]), keep)
    return found.tolist()


def _rough(problem: Problem, name: str, t: Array, noise: float) -> list[float]:
    rng, found, ring = np.random.default_rng(3), np.zeros(len(t)), build("lazy ring", problem.hessian.shape[1])

    def gradient(x: Array) -> Array:
        return problem.gradient(x) + 2 * x / np.square(1 + np.square(x))

    def keep(count: int, x: Array) -> None:
        middle = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
        squared = np.square(gradient(middle).mean(1)).sum(1).mean(0)
        found[count <= t] += (squared / t)[count <= t]

    def noisy(x: Array, _: int) -> Array:
        return gradient(x) + noise * rng.normal(size=x.shape)

    train(name, ring, problem.start(len(t)), noisy, (1 - _BETA) / np.sqrt(t), _BETA, int(t[-1]), keep)
    return found.tolist()
