"""The scaling rules as their papers state them: kappa small steps taken one by one, in float64, no closed form.

rho, beta, mu: decays per step; eta: learning rate; G, s: mean and deviation of one batch's gradient; k: kappa, whole.
"""

import itertools
import math

import numpy as np


def decay(rho: float, k: int) -> float:
    """What k updates zeta <- rho zeta + (1-rho) theta, theta = 0, leave of zeta = 1 (2307.13813, Definition 1.1)."""
    zeta, theta = 1.0, 0.0
    for _ in range(k):
        zeta = rho * zeta + (1 - rho) * theta
    return zeta


def half_life(rho: float, B: float) -> float:
    """Samples until an average forgets half: whole updates while more than half is left, then the part of one."""
    left, n = 1.0, 0
    while left * rho > 0.5:
        left, n = left * rho, n + 1
    return B * (n + math.log(left / 0.5) / math.log(1 / rho))


def sde_beta(beta: float, k: float) -> float:
    """(1-beta)/eta**2 is held while eta grows by sqrt(k) (2205.10287)."""
    eta = 1.0
    held = (1 - beta) / eta**2
    return 1 - held * (math.sqrt(k) * eta) ** 2


def second_moment(G: float, s: float, k: int) -> float:
    """E g**2 when g is the mean of k independent draws of G + s and G - s: every outcome, weighted by its count."""
    total = 0.0
    for j in range(k + 1):
        g = G + s * (2 * j - k) / k
        total += math.comb(k, j) / 2**k * g**2
    return total


def adam_lr(eta: float, f: float, k: int) -> float:
    """The eta' whose drift eta/(B sqrt(v)) per sample is the reference's, found by bisection."""
    G, s, B = math.sqrt(1 - f), math.sqrt(f), 1.0
    wanted = eta / (B * math.sqrt(second_moment(G, s, 1)))
    low, high = 0.0, 2 * k * eta
    for _ in range(200):
        middle = (low + high) / 2
        drift = middle / (k * B * math.sqrt(second_moment(G, s, k)))
        low, high = (middle, high) if drift < wanted else (low, middle)
    return (low + high) / 2


def share(f: float, k: int) -> float:
    """Noise share of the second moment after the batch grew by k."""
    G, s = math.sqrt(1 - f), math.sqrt(f)
    return 1 - G**2 / second_moment(G, s, k)


def eps(e: float, f: float, k: int) -> float:
    """eps keeps its size beside sqrt(v)."""
    G, s = math.sqrt(1 - f), math.sqrt(f)
    return e * math.sqrt(second_moment(G, s, k) / second_moment(G, s, 1))


def linear_lr(eta: float, k: int) -> float:
    """How far k steps along a constant gradient of 1 move the weight."""
    theta = 0.0
    for _ in range(k):
        theta -= eta * 1.0
    return -theta


def buffer(mu: float, g: float = 1.0) -> float:
    """PyTorch's momentum buffer b <- mu b + g once it has settled on a constant gradient."""
    b, before = 0.0, -1.0
    while abs(b - before) > 1e-17 * abs(b):
        before, b = b, mu * b + g
    return b


def fresh_share(beta: float, k: int) -> float:
    """Share of the old average in beta m + (1-beta) g whose noise stays when g is the mean of k draws, by bisection."""
    wanted = (1 - beta) * math.sqrt(second_moment(0.0, 1.0, 1))
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        noise = middle * math.sqrt(second_moment(0.0, 1.0, k))
        low, high = (middle, high) if noise < wanted else (low, middle)
    return 1 - (low + high) / 2


def decoupled_decay(lam: float, eta: float, eta2: float, k: int) -> float:
    """lambda' of one step at eta' that takes from the weights what k steps at eta take, first order."""
    lost = 0.0
    for _ in range(k):
        lost += eta * lam
    return lost / eta2


def decoupled_decay_exact(lam: float, eta: float, eta2: float, k: int) -> float:
    """The same with the k shrinkages multiplied out."""
    theta = 1.0
    for _ in range(k):
        theta *= 1 - eta * lam
    return (1 - theta) / eta2


def running_mean(m: float, passes: int) -> float:
    """PyTorch's batch-norm momentum whose one pass forgets what `passes` passes at m forget."""
    r, x = 1.0, 0.0
    for _ in range(passes):
        r = (1 - m) * r + m * x
    return 1 - r


def step_matrix(rho: float, eta: float, order: str) -> np.ndarray:
    """One SGD step and one EMA update on (theta, zeta, g) with a constant gradient; pre- or post-step average."""
    read = -(1 - rho) * eta if order == "post" else 0.0
    return np.array([[1.0, 0.0, -eta], [1 - rho, rho, read], [0.0, 0.0, 1.0]])


def small_steps(rho: float, eta: float, k: int, order: str) -> np.ndarray:
    """The product of k matrices."""
    product = np.eye(3)
    for _ in range(k):
        product = step_matrix(rho, eta, order) @ product
    return product


def lag(rho: float, k: int, order: str, eta: float = 0.1) -> float:
    """Gap in zeta between k small steps and one step of k*eta under rho**k, relative to the motion k*eta."""
    small, large = small_steps(rho, eta, k, order), step_matrix(decay(rho, k), k * eta, order)
    return abs(small[1, 2] - large[1, 2]) / (k * eta)


def mean_square(samples: list[list[float]], B: int) -> float:
    """E|g|**2 when g is the mean of B independent draws: every sequence of draws, one by one."""
    total, n = 0.0, 0
    for draws in itertools.product(samples, repeat=B):
        g = [math.fsum(column) / B for column in zip(*draws, strict=True)]
        total, n = total + math.fsum(x * x for x in g), n + 1
    return total / n


def noise_scale(samples: list[list[float]]) -> float:
    """tr(Sigma)/|G|**2 (1812.06162, 2.9)."""
    G = [math.fsum(column) / len(samples) for column in zip(*samples, strict=True)]
    spread = math.fsum((x - m) ** 2 for g in samples for x, m in zip(g, G, strict=True)) / len(samples)
    return spread / math.fsum(m * m for m in G)


def clip(norm: float, samples: list[list[float]], B: int, k: int) -> float:
    """The norm that is the same multiple of the gradient's root mean square norm at the batch k*B."""
    multiple = norm / math.sqrt(mean_square(samples, B))
    return multiple * math.sqrt(mean_square(samples, k * B))
