"""Decentralized methods as their papers write them: dense matrices, one list entry a step, float64 numpy."""

import numpy as np


def mixing(topology, step=0):
    return np.array(topology.at(step).dense())


def trajectory(name, x, gradient, w_of, gamma, beta, steps, *, period=8, slow_beta=0.5, slow_lr=1.0):
    """X after `steps` steps; x is [nodes, d], gradient maps X to G, w_of maps the step to W."""
    xs, ms, u, old = [x], [np.zeros_like(x)], np.zeros_like(x), x
    for k in range(steps):
        x, m, w, g = xs[-1], ms[-1], w_of(k), gradient(xs[-1])
        j = np.ones_like(w) / len(w)
        if name == "dsgd":
            new, m_new = w @ (x - gamma * g), m
        elif name in ("dmsgd", "slowmo"):
            m_new = beta * m + g
            new = w @ (x - gamma * m_new)
            if name == "slowmo" and (k + 1) % period == 0:
                u = slow_beta * u + (old - j @ new) / gamma
                new = old = old - slow_lr * gamma * u
        elif name == "awc":
            m_new = beta * m + g
            new = w @ x - gamma * m_new
        elif name == "da":
            m_new = w @ (beta * m + g)
            new = w @ (x - gamma * m_new)
        elif name == "qg":
            new = w @ (x - gamma * (g + beta * m))
            m_new = beta * m + (1 - beta) * (x - new) / gamma
        elif name == "d2":
            m_new = beta * m + g
            jump = x - xs[-2] + gamma * m if k else 0
            new = w @ (x + jump - gamma * m_new)
        elif name == "decentlam":
            g_tilde = (x - w @ (x - gamma * g)) / gamma
            m_new = beta * m + g_tilde
            new = x - gamma * m_new
        elif name == "pmsgd":
            m_new = beta * m + j @ g
            new = x - gamma * m_new
        xs.append(new)
        ms.append(m_new)
    return xs[-1]


class LeastSquares:
    """F_i(x) = |A_i x - b_i|**2 / (2 rows) with a minimiser of its own on every node."""

    def __init__(self, nodes=8, rows=50, d=30, spread=1.0, seed=0):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(nodes, rows, d))
        own = rng.normal(size=d) + spread * rng.normal(size=(nodes, d))
        self.hessian = np.einsum("nmd,nme->nde", a, a) / rows
        self.linear = np.einsum("nde,ne->nd", self.hessian, own)
        self.best = np.linalg.solve(self.hessian.sum(0), self.linear.sum(0))

    def gradient(self, x):
        return np.einsum("nde,ne->nd", self.hessian, x) - self.linear

    def bias(self, x):
        return ((x - self.best) ** 2).sum(1).mean() / (self.best**2).sum()

    def solve(self, left, right):
        """X with left X + right G(X) = 0."""
        n, d = self.linear.shape
        blocks = np.zeros((n * d, n * d))
        for i in range(n):
            blocks[i * d : (i + 1) * d, i * d : (i + 1) * d] = self.hessian[i]
        spread = np.kron(right, np.eye(d))
        return np.linalg.solve(np.kron(left, np.eye(d)) + spread @ blocks, spread @ self.linear.reshape(-1)).reshape(
            n, d
        )

    def fixed_point(self, name, w, gamma, beta):
        """Where a method stays, by algebra."""
        eye, j = np.eye(len(w)), np.ones_like(w) / len(w)
        large = gamma / (1 - beta)
        if name in ("dsgd", "decentlam", "qg"):
            return self.solve(eye - w, gamma * w)
        if name == "dmsgd":
            return self.solve(eye - w, large * w)
        if name == "awc":
            return self.solve(eye - w, large * eye)
        if name == "da":
            return self.solve(eye - w, gamma * w @ np.linalg.solve(eye - beta * w, w))
        return np.tile(self.best, (len(w), 1)) if name in ("d2", "pmsgd") else j
