"""Batch augmentation and Algorithm 1 of concurrent adversarial learning, in float64, one sample at a time.

Letters: B samples a step, M views T_i(x_n), weights w[t], staleness tau, step eps. The model is softmax regression,
w of shape (10, d), whose gradients are written out.
"""

import numpy as np

MASK = 2**64 - 1


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def loss(w, x, y):
    return -np.log(softmax(w @ x)[y])


def grad_w(w, x, y):
    p = softmax(w @ x)
    p[y] -= 1
    return np.outer(p, x)


def grad_x(w, x, y):
    p = softmax(w @ x)
    p[y] -= 1
    return w.T @ p


def batch_augmentation(w, x, y, batches, view, *, M, eta):
    """batches: positions of each step; view(x_n, position, copy). Return the weights after each step."""
    history, w = [], np.array(w)
    for batch in batches:
        g = np.zeros_like(w)
        for i in range(M):
            for n, position in batch:
                g += grad_w(w, view(x[n], position, i), y[n])
        w = w - eta * g / (M * len(batch))
        history.append(w)
    return history


def concurrent_adversarial(w, x, y, batches, *, tau, eps, weights, eta, low=0.0, high=1.0):
    """batches: samples of each step. Directions of batch t come from w[max(t - tau, 0)], kept as a snapshot."""
    snapshots = [np.array(w)]
    for t, batch in enumerate(batches):
        old, now, g = snapshots[max(t - tau, 0)], snapshots[t], np.zeros_like(w)
        for n in batch:
            hat = np.clip(x[n] + eps(t) * np.sign(grad_x(old, x[n], y[n])), low, high)
            g += weights[0] * grad_w(now, x[n], y[n]) + weights[1] * grad_w(now, hat, y[n])
        snapshots.append(now - eta * g / len(batch))
    return snapshots[1:]


def uniform(seed, position, copy, k):
    """The k-th number of a row by SplitMix64, with Python's whole numbers."""

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    key = mix((mix((mix(seed) + position) & MASK) + copy) & MASK)
    return (mix((key + (k + 1) * 0x9E3779B97F4A7C15) & MASK) >> 11) * 2.0**-53


def nested(g):
    """g of shape (N, M, d): textbook mean squares, one number at a time; return (between, views, |G|^2)."""
    N, M, _ = g.shape
    g_n, g_all = g.mean(1), g.mean((0, 1))
    inner = sum(((g[n, m] - g_n[n]) ** 2).sum() for n in range(N) for m in range(M)) / (N * (M - 1))
    outer = M * sum(((g_n[n] - g_all) ** 2).sum() for n in range(N)) / (N - 1)
    return (outer - inner) / M, inner, (g_all**2).sum() - outer / (N * M)
