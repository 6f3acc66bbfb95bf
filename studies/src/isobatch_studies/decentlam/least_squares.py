"""Heterogeneous least squares: every node has a minimiser of its own, and the bias can be seen exactly.

F_i(x) = |A_i (x - x_i)|**2 / (2 rows), A_i standard normal, x_i = x_0 + standard normal. Arrays are
[instances, nodes, dimension, columns]; a column is a beta, a batch or a horizon, so that one run does them all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobatch.decentralized import METHODS, Topology, advance

Array = NDArray[np.float64]


class Problem:
    """Instances of the problem.

    Args:
        instances: how many; the number is the seed.
        nodes: of each.
        rows: of A_i.
        dimension: of x.
    """

    def __init__(self, instances: int, nodes: int, rows: int, dimension: int):
        drawn = [_instance(seed, nodes, rows, dimension) for seed in range(instances)]
        self.hessian, self.linear = (np.stack(parts) for parts in zip(*drawn, strict=True))
        self.best = np.linalg.solve(self.hessian.sum(1), self.linear.sum(1))[:, None]

    def gradient(self, x: Array) -> Array:
        """Return every node's full gradient.

        Args:
            x: weights [instances, nodes, dimension, columns].

        Returns:
            Gradients of the same shape.
        """
        return self.hessian @ x - self.linear

    def error(self, x: Array) -> Array:
        """Return mean_i |x_i - x*|**2 / |x*|**2.

        Args:
            x: weights.

        Returns:
            [instances, columns].
        """
        return np.square(x - self.best).sum(2).mean(1) / np.square(self.best).sum((1, 2))

    def start(self, columns: int, *, solved: bool = False) -> Array:
        """Return the weights before the first step, the same on every node.

        Args:
            columns: how many.
            solved: begin at x* instead of 0.

        Returns:
            Weights.
        """
        zero = np.zeros((*self.linear.shape[:3], columns))
        return zero + self.best if solved else zero


def train(
    name: str,
    topology: Topology,
    x: Array,
    gradient: Callable[[Array, int], Array],
    gamma: Any,
    beta: Any,
    steps: int,
    on_step: Callable[[int, Array], None] | None = None,
) -> Array:
    """Run a method on all nodes, instances and columns at once.

    Args:
        name: of the method.
        topology: who averages with whom.
        x: first weights.
        gradient: of weights and step.
        gamma: learning rate, one or one a column.
        beta: momentum, one or one a column.
        steps: how many.
        on_step: called with the count of steps and the weights after each.

    Returns:
        The last weights.
    """
    method = METHODS[name](beta=beta)
    state = method.start(x)
    matrices = [np.array(mixing.dense()) for mixing in topology.rounds]
    flat = (*x.shape[:2], -1)
    for count in range(steps):
        w = matrices[count % len(matrices)]
        step = method.step(x, state, gradient(x, count), gamma, count)
        x, state = advance(step, lambda z, w=w: (w @ z.reshape(flat)).reshape(z.shape), _mean)
        if on_step is not None:
            on_step(count + 1, x)
    return x


def _mean(z: Array) -> Array:
    return np.broadcast_to(z.mean(1, keepdims=True), z.shape)


def _instance(seed: int, nodes: int, rows: int, dimension: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(nodes, rows, dimension))
    own = rng.normal(size=dimension) + rng.normal(size=(nodes, dimension))
    hessian = np.einsum("nmd,nme->nde", a, a) / rows
    return hessian, np.einsum("nde,ne->nd", hessian, own)[..., None]
