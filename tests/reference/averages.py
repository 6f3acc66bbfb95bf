"""Averages of weights, written out slowly in float64.

Letters of the papers: theta[j] are the weights after step j (theta[0] before the first), B[j] the samples of step j,
zeta the average, H a half-life in samples, rho a decay, kappa = B / B_ref.
"""

import math

import numpy as np


def ema(theta, B, H):
    """zeta <- rho zeta + (1 - rho) theta[j], rho = 0.5 ** (B[j] / H); H a number or one per step."""
    zeta = np.array(theta[0], dtype=np.float64)
    for j, b in enumerate(B, start=1):
        h = H[j - 1] if isinstance(H, list) else H
        rho = 0.0 if h == 0 else 0.5 ** (b / h)
        zeta = rho * zeta + (1 - rho) * np.asarray(theta[j], np.float64)
    return zeta


def ema_every(theta, B, H, m):
    """Every m-th step with the exponent of the samples passed since the last application."""
    zeta, passed = np.array(theta[0], dtype=np.float64), 0.0
    for j, b in enumerate(B, start=1):
        passed += b
        if j % m == 0:
            rho = 0.5 ** (passed / H)
            zeta, passed = rho * zeta + (1 - rho) * np.asarray(theta[j], np.float64), 0.0
    return zeta


def hold_by_small_steps(theta, B, rho, B_ref):
    """What the run at B_ref gives if theta moves in a straight line inside each step; B[j] a multiple of B_ref."""
    zeta = np.array(theta[0], dtype=np.float64)
    for j, b in enumerate(B, start=1):
        k = round(b / B_ref)
        old, new = np.asarray(theta[j - 1], np.float64), np.asarray(theta[j], np.float64)
        for i in range(1, k + 1):
            zeta = rho * zeta + (1 - rho) * (old + (new - old) * i / k)
    return zeta


def hold(theta, B, rho, B_ref):
    """The closed form with S = (1 - rho**k) / (1 - rho), post-step; for any real k."""
    zeta = np.array(theta[0], dtype=np.float64)
    for j, b in enumerate(B, start=1):
        k = b / B_ref
        S = (1 - rho**k) / (1 - rho)
        w_b = (k - rho * S) / k
        w_a = 1 - rho**k - w_b
        zeta = rho**k * zeta + w_a * np.asarray(theta[j - 1], np.float64) + w_b * np.asarray(theta[j], np.float64)
    return zeta


def power(theta, B, g):
    """Sum of theta[j] times the integral of (g + 1) t**g / T**(g + 1) over the samples of step j."""
    n = np.cumsum([0, *B], dtype=np.float64)
    w = (n[1:] ** (g + 1) - n[:-1] ** (g + 1)) / n[-1] ** (g + 1)
    return sum(w_j * np.asarray(t, np.float64) for w_j, t in zip(w, theta[1:], strict=True))


def uniform_tail(theta, B, start):
    """Mean of theta[j] weighted with the samples of step j that lie after start."""
    n = np.cumsum([0, *B], dtype=np.float64)
    w = np.maximum(n[1:], start) - np.maximum(n[:-1], start)
    return sum(w_j * np.asarray(t, np.float64) for w_j, t in zip(w, theta[1:], strict=True)) / w.sum()


def recent_mean(theta, B, last, every):
    """Mean of the last snapshots, each taken at the first step that reaches a multiple of every."""
    n, taken = 0.0, []
    for j, b in enumerate(B, start=1):
        if math.floor((n + b) / every) > math.floor(n / every):
            taken.append(np.asarray(theta[j], np.float64))
        n += b
    return np.mean(taken[-last:], axis=0) if taken else np.asarray(theta[0], np.float64)


def from_loaded(first, seen, theta, B, kind, **by):
    """What a loaded average goes on as: theta[j] after B[j] more samples, the loaded one standing for those before."""
    first, n, zeta = np.asarray(first, np.float64), float(seen), np.asarray(first, np.float64)
    snapshots = [first] * by.get("last", 0)
    for t, b in zip(theta, B, strict=True):
        t = np.asarray(t, np.float64)
        if kind == "tail":
            zeta = ((n - by["start"]) * zeta + b * t) / (n + b - by["start"])
        elif kind == "power":
            zeta = t + (n / (n + b)) ** (by["g"] + 1) * (zeta - t)
        elif kind == "ema":
            zeta = t + 0.5 ** (b / by["H"]) * (zeta - t)
        elif kind == "recent" and math.floor((n + b) / by["every"]) > math.floor(n / by["every"]):
            snapshots = [*snapshots[1:], t]
            zeta = np.mean(snapshots, axis=0)
        n += b
    return zeta


def gamma_of(sigma_rel):
    """Bisection for sigma_rel**2 = (g + 1) / ((g + 2)**2 (g + 3))."""
    low, high = 0.0, 1e6
    for _ in range(200):
        g = (low + high) / 2
        low, high = (g, high) if math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))) > sigma_rel else (low, g)
    return low


def width(weights, times):
    """Standard deviation of the profile, relative to its end."""
    w, t = np.asarray(weights, np.float64), np.asarray(times, np.float64)
    mean = (w * t).sum() / w.sum()
    return math.sqrt((w * (t - mean) ** 2).sum() / w.sum()) / t[-1]


def mean_log_decay(decays, B_ref, seen, samples, pieces=100_000):
    """Mean of log rho over [seen, seen + samples] of a schedule that is constant over each reference step."""
    t = seen + samples * (np.arange(pieces) + 0.5) / pieces
    return float(np.mean([math.log(decays(int(x // B_ref))) for x in t]))


def half_lives_by_riemann(H, seen, samples, pieces=200_000):
    """Integral of dn / H(n) over the samples of an update."""
    n = seen + samples * (np.arange(pieces) + 0.5) / pieces
    return float(np.sum(samples / pieces / np.vectorize(H)(n)))


def pooled_moments(batches):
    """Mean and unbiased variance per channel over all samples of [N, C] batches."""
    x = np.concatenate(batches).astype(np.float64)
    return x.mean(0), x.var(0, ddof=1)


def profile_overlap(T_a, g_a, T_b, g_b, pieces=400_000):
    """Inner product of two power profiles by the midpoint rule."""
    t = (np.arange(pieces) + 0.5) / pieces * min(T_a, T_b)
    p = (g_a + 1) * (t / T_a) ** g_a / T_a * (g_b + 1) * (t / T_b) ** g_b / T_b
    return float(p.sum() * min(T_a, T_b) / pieces)
