"""SGD with heavy ball, warm-up and a weight average on the sample clock, in numpy float64, one number at a time.

Letters: eta, mu, rho at the reference batch B; a step of n samples has kappa = n/B. Buffer b, weights theta, average
zeta. The factor on eta is the plain mean over the n samples of what the reference would have used at each of them.
"""

import math

import numpy as np


def factor(sample: int, B: int, length: int, warmup: float) -> float:
    """Reference factor for one sample: linear warm-up by step, then a half cosine to 0."""
    step = min(sample // B, math.ceil(length / B) - 1)
    if step * B < warmup:
        return min(1.0, (step + 1) * B / warmup)
    return (1 + math.cos(math.pi * min(1.0, (step * B - warmup) / (length - warmup)))) / 2


def heavy_ball(theta, noise, batches, *, a, B, eta, mu, rho, length, warmup, every=1):
    """Train L = sum a theta**2 / 2 with the given noise of each drawn sample; return theta, b and zeta.

    batches: samples of each step; noise: one row a drawn sample.
    """
    theta, b, zeta = np.array(theta), np.zeros_like(theta), np.array(theta)
    seen, old, since = 0, mu, []
    for n in batches:
        kappa = n / B
        g = a * theta + noise[seen : seen + n].mean(0)
        m = mu**kappa
        b = b * (1 - old) / (1 - m) if seen else b
        b = m * b + g
        lr = kappa * eta * (1 - m) / (1 - mu)
        lr *= sum(factor(s, B, length, warmup) for s in range(seen, seen + n)) / n
        theta = theta - lr * b
        seen, old = seen + n, m
        since.append(kappa / every)
        if len(since) == every:
            zeta = rho ** sum(since) * zeta + (1 - rho ** sum(since)) * theta
            since = []
    return theta, b, zeta
