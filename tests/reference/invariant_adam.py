r"""Adam with the second moment of a reference batch: slow, one coordinate array at a time, in numpy float64.

Letters: n_i samples of chunk i, g_i its mean gradient, W = sum n_i, B = B_ref, s2 the variance of one sample's
gradient, G2 the square of the true gradient, beta the decays, d the accumulated log-decays. Wang and Aitchison
(arXiv 2402.18824) give chunks of exactly B samples; the rest is derived.
"""

import math

import numpy as np


def estimates(g, n):
    """Unbiased (G2, s2) from chunk means g_i over n_i samples."""
    g, n = np.asarray(g, float), np.asarray(n, float)
    shape = (len(n),) + (1,) * (g.ndim - 1)
    W = n.sum()
    mean = (n.reshape(shape) * g).sum(0) / W
    s2 = (n.reshape(shape) * (g - mean) ** 2).sum(0) / (len(n) - 1)
    return mean**2 - s2 / W, s2


def v_in(g, n, B):
    """G2 + s2 / B; a single chunk of exactly B needs no estimate."""
    if sum(n) == B:
        return mean_gradient(g, n) ** 2
    G2, s2 = estimates(g, n)
    return G2 + s2 / B


def mean_gradient(g, n):
    return sum(n_i * np.asarray(g_i, float) for n_i, g_i in zip(n, g, strict=True)) / sum(n)


class InvariantAdam:
    """theta, m, v and the open window, as lists; `settings` may change at every step."""

    def __init__(self, theta, B, decoupled=True, rmsprop=False):
        self.theta = np.array(theta, float)
        self.B, self.decoupled, self.rmsprop = B, decoupled, rmsprop
        self.m = np.zeros_like(self.theta)
        self.v = np.zeros_like(self.theta)
        self.b = np.zeros_like(self.theta)
        self.d1 = self.d2 = 0.0
        self.window = []

    def step(self, g, n, *, lr, beta1, beta2, eps, lam):
        W = sum(n)
        g_bar = mean_gradient(g, n)
        if self.decoupled:
            self.theta = (1 - lr * lam) * self.theta
            g_all = [np.asarray(g_i, float) for g_i in g]
        else:
            g_bar = g_bar + lam * self.theta
            g_all = [np.asarray(g_i, float) + lam * self.theta for g_i in g]
        self.d1 += math.log(beta1) if beta1 > 0 else -math.inf
        if W < self.B or self.window:
            self.window.append((W, g_bar, math.log(beta2)))
            self.close_window()
        else:
            self.v = beta2 * self.v + (1 - beta2) * v_in(g_all, n, self.B)
            self.d2 += math.log(beta2)
        self.move(g_bar, lr, beta1, eps)

    def close_window(self):
        N = sum(W for W, _, _ in self.window)
        if self.B > N:
            return
        d = sum(log for _, _, log in self.window)
        new = v_in([g for _, g, _ in self.window], [W for W, _, _ in self.window], self.B)
        self.v = math.exp(d) * self.v + (1 - math.exp(d)) * new
        self.d2 += d
        self.window = []

    def root(self):
        v, d = self.v, self.d2
        if self.window:
            L = sum(log for _, _, log in self.window)
            S_over_N = mean_gradient([g for _, g, _ in self.window], [W for W, _, _ in self.window])
            v = math.exp(L) * v + (1 - math.exp(L)) * S_over_N**2
            d += L
        return np.sqrt(v if self.rmsprop else v / (1 - math.exp(d)))

    def move(self, g_bar, lr, beta1, eps):
        if self.rmsprop:
            self.b = beta1 * self.b + g_bar / (self.root() + eps)
            self.theta = self.theta - lr * self.b
        else:
            self.m = beta1 * self.m + (1 - beta1) * g_bar
            self.theta = self.theta - lr * self.m / (1 - math.exp(self.d1)) / (self.root() + eps)
