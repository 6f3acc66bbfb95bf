"""The updates of decentralized training, in the papers' letters: x weights, m momentum, g gradient, gamma, beta.

Each is a generator of one node's step: it yields the value that its neighbours average, is sent sum_j w_ij of theirs,
and returns the new (x, m). `advance` drives one with a function `mix`, so that `advance(dmsgd(x, m, g, ...), mix)` is a
plain function of (x, m, g, mix). Everything is elementwise arithmetic: numpy arrays, tensors, one node or a stack of
nodes, one bucket of parameters or all of them.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

Array = Any
Step = Generator[Any, Array, Any]


@dataclass(frozen=True)
class Everyone:
    """A value whose exact mean over all nodes is wanted, instead of an average over neighbours.

    Args:
        value: of this node.
    """

    value: Array


def advance(step: Step, mix: Callable[[Array], Array], mean: Callable[[Array], Array] | None = None) -> Any:
    """Run a step to its end.

    Args:
        step: one of the updates below.
        mix: z -> sum_j w_ij z_j.
        mean: z -> mean over all nodes, for the updates that ask for it.

    Returns:
        What the update returns, x or (x, ...).

    Example:
        >>> advance(dsgd(1.0, 0.5, 0.1), lambda z: z)
        0.95
    """
    answer: Any = None
    while True:
        try:
            message = step.send(answer)
        except StopIteration as end:
            return end.value
        answer = (mean or mix)(message.value) if isinstance(message, Everyone) else mix(message)


def dsgd(x: Array, g: Array, gamma: Array) -> Generator[Any, Array, Any]:
    """Decentralized SGD, adapt then combine: X+ = W(X - gamma G).

    Args:
        x: weights.
        g: gradient.
        gamma: learning rate.

    Returns:
        New x.
    """
    x = yield x - gamma * g
    return x


def dmsgd(x: Array, m: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """Decentralized momentum SGD: M+ = beta M + G; X+ = W(X - gamma M+).

    Its fixed point is DSGD's at gamma/(1-beta): the inconsistency bias grows by up to 1/(1-beta)**2.

    Args:
        x: weights.
        m: momentum.
        g: gradient.
        gamma: learning rate.
        beta: momentum factor.

    Returns:
        New x and m.
    """
    m = beta * m + g
    x = yield x - gamma * m
    return x, m


def awc(x: Array, m: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """AWC-DmSGD, adapt while combining: M+ = beta M + G; X+ = W X - gamma M+.

    What is sent does not depend on the gradient, so the exchange may run beside the whole backward pass.

    Args:
        x: weights.
        m: momentum.
        g: gradient; it may still be written while x is on its way.
        gamma: learning rate.
        beta: momentum factor.

    Returns:
        New x and m.
    """
    mixed = yield x
    m = beta * m + g
    return mixed - gamma * m, m


def da(x: Array, m: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """DA-DmSGD, doubly averaged: M+ = W(beta M + G); X+ = W(X - gamma M+). Two exchanges a step.

    Args:
        x: weights.
        m: momentum.
        g: gradient.
        gamma: learning rate.
        beta: momentum factor.

    Returns:
        New x and m.
    """
    m = yield beta * m + g
    x = yield x - gamma * m
    return x, m


def qg(x: Array, m: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """QG-DmSGD, quasi-global momentum: X+ = W(X - gamma(G + beta M)); M+ = beta M + (1-beta)(X - X+)/gamma.

    Args:
        x: weights.
        m: momentum.
        g: gradient.
        gamma: learning rate, above 0.
        beta: momentum factor.

    Returns:
        New x and m.
    """
    mixed = yield x - gamma * (g + beta * m)
    m = beta * m + (1 - beta) * (x - mixed) / gamma
    return mixed, m


def d2(x: Array, m: Array, psi: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """D2 / Exact Diffusion with momentum: M+ = beta M + G; psi+ = X - gamma M+; X+ = W(psi+ + X - psi).

    The same as X+ = W(2X - X_prev - gamma(M+ - M)) at a constant gamma; psi starts at X. It removes the bias, and
    needs eigenvalues of W above -1/3.

    Args:
        x: weights.
        m: momentum.
        psi: of the step before.
        g: gradient.
        gamma: learning rate.
        beta: momentum factor.

    Returns:
        New x, m and psi.
    """
    m = beta * m + g
    new = x - gamma * m
    x = yield new + x - psi
    return x, m, new


def decentlam(x: Array, m: Array, g: Array, gamma: Array, beta: Array) -> Generator[Any, Array, Any]:
    """DecentLaM: gtilde = (X - W(X - gamma G))/gamma; M+ = beta M + gtilde; X+ = X - gamma M+.

    The momentum sees the mixing: its fixed point is DSGD's at every beta. One exchange, as DmSGD.

    Args:
        x: weights.
        m: momentum.
        g: gradient.
        gamma: learning rate, above 0.
        beta: momentum factor.

    Returns:
        New x and m.

    References:
        arXiv 2104.11981.
    """
    mixed = yield x - gamma * g
    new = mixed - (gamma * beta) * m  # x - gamma M+ without gtilde; M+ then is the step taken, over gamma
    return new, (x - new) / gamma


def pmsgd(
    x: Array, m: Array, g: Array, gamma: Array, beta: Array, scale: Callable[[Array, Array], Array] | None = None
) -> Generator[Any, Array, Any]:
    """Parallel momentum SGD, all-reduce: M+ = beta M + mean(G); x+ = x - gamma M+.

    Args:
        x: weights.
        m: momentum.
        g: gradient.
        gamma: learning rate.
        beta: momentum factor.
        scale: (x, mean gradient) -> gradient scaled by layer, such as LARS; None for plain momentum.

    Returns:
        New x and m.
    """
    g = yield Everyone(g)
    m = beta * m + (g if scale is None else scale(x, g))
    return x - gamma * m, m


def slow_outer(
    x: Array, u: Array, old: Array, gamma: Array, slow_beta: float, slow_lr: float
) -> Generator[Any, Array, Any]:
    """SlowMo's outer step: u+ = b u + (x_old - mean(x))/gamma; x = x_old - a gamma u+.

    Args:
        x: weights after the inner steps.
        u: slow momentum.
        old: weights after the outer step before, the same on every node.
        gamma: learning rate, above 0.
        slow_beta: b.
        slow_lr: a.

    Returns:
        New x and u; x is the new x_old too.
    """
    mean = yield Everyone(x)
    u = slow_beta * u + (old - mean) / gamma
    return old - slow_lr * gamma * u, u


def lars_ratio(norm_x: Array, norm_g: Array, trust: float, weight_decay: float) -> Array:
    """Return LARS's trust ratio eta |x| / (|g| + wd |x|), 1 where either norm is 0.

    Args:
        norm_x: norm of a layer's weights.
        norm_g: norm of its gradient.
        trust: eta.
        weight_decay: wd.

    Returns:
        The factor of g + wd x.

    References:
        arXiv 1708.03888.
    """
    both = 1 * ((norm_x > 0) & (norm_g > 0))
    ratio = trust * norm_x / (norm_g + weight_decay * norm_x + (1 - both))  # never 0/0
    return both * ratio + (1 - both)
