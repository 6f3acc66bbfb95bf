"""Large-batch theory as its papers state it, step by step in float64 (1812.06162, 2007.05105, 2405.14578)."""

import numpy as np
from scipy import stats


def expected_loss(eps, G, H, Sigma, B):
    """L(theta - eps G_est) - L(theta), G_est of mean G and covariance Sigma/B, second order (1812.06162, 2.5)."""
    return -eps * G @ G + eps**2 / 2 * (G @ H @ G + np.trace(H @ Sigma) / B)


def best_rate(G, H, Sigma, B):
    """The eps of the lowest expected loss, by golden section."""
    low, high = 0.0, 4.0 * (G @ G) / (G @ H @ G)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(200):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if expected_loss(a, G, H, Sigma, B) < expected_loss(b, G, H, Sigma, B):
            high = b
        else:
            low = a
    return (low + high) / 2


def gain(S, batches):
    """r_t of AdaScale from the gradients of S workers: E[sigma^2 + mu^2]/E[sigma^2/S + mu^2] (2007.05105).

    batches: gradients, shape (trials, S, d), each of one base batch.
    """
    one = (batches**2).sum(-1).mean()
    mean = (batches.mean(1) ** 2).sum(-1).mean()
    return one / mean


def sign_rate(mu, sigma, H, B):
    """Best rate of sign descent, E sign(g_i) = sqrt(2B/pi) mu_i/sigma_i (2405.14578, eq. 9 with eq. 39)."""
    E = np.sqrt(2 * B / np.pi) * mu / sigma
    diagonal = np.diag(H)
    return E @ mu / (diagonal.sum() + E @ H @ E - (E**2 * diagonal).sum())


def sign_noise_batch(mu, sigma, H):
    """Batch of the highest best rate: sum H_ii over sum_{i != j} of (2/pi) mu_i mu_j H_ij/(sigma_i sigma_j)."""
    u = mu / sigma
    off = u @ H @ u - (u**2 * np.diag(H)).sum()
    return np.pi * np.diag(H).sum() / (2 * off)


def steps(S_min, E_min, B):
    """S with (S/S_min - 1)(E/E_min - 1) = 1 and E = B S, by bisection on the branch S > S_min, E > E_min."""
    low, high = max(S_min, E_min / B), 1e6 * max(S_min, E_min / B)
    for _ in range(300):
        S = (low + high) / 2
        if (S / S_min - 1) * (B * S / E_min - 1) < 1:
            low = S
        else:
            high = S
    return (low + high) / 2


def branch_losses(a, c, eta, B, S, D, factors, marks, alpha, theta=1.0):
    """Smoothed final E L of branches of SGD at k B with lr k eta, after S samples at B (2505.23971), exactly.

    a: curvatures; c: variance of one sample's gradient; D: samples of a branch, evaluated at `marks` even points.
    """

    def run(m, v, lr, batch, samples):
        for _ in range(round(samples / batch)):
            m, v = (1 - lr * a) * m, (1 - lr * a) ** 2 * v + lr**2 * c / batch
        return m, v

    m, v = run(np.full(len(a), theta), np.zeros(len(a)), eta, B, S)
    found = []
    for k in factors:
        mk, vk, L = m, v, []
        for _ in range(marks):
            mk, vk = run(mk, vk, k * eta, k * B, D / marks)
            L.append((a * (mk**2 + vk)).sum() / 2)
        weight = np.array([alpha ** (marks - 1 - i) for i in range(marks)])
        found.append(float((weight * L).sum() / weight.sum()))
    return found


def hyperbola(B, E, level=0.95):
    """(E_min, B_crit, low, high): E = E_min (1 + B/B_crit) by least squares in logs, and the profile of B_crit.

    Every number by golden section or bisection in log B_crit; E_min at a given B_crit is a mean of logs.
    """
    B, E = np.asarray(B, float), np.asarray(E, float)

    def sse(c):
        r = np.log(E) - np.log(1 + B / np.exp(c))
        return ((r - r.mean()) ** 2).sum()

    low, high, golden = np.log(B.min() / 1e4), np.log(B.max() * 1e4), (np.sqrt(5) - 1) / 2
    while high - low > 1e-10:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if sse(a) < sse(b) else (a, high)
    best = (low + high) / 2
    limit = sse(best) * (1 + stats.t.ppf((1 + level) / 2, len(B) - 2) ** 2 / (len(B) - 2))
    ends = []
    for far in (np.log(B.min() / 1e5), np.log(B.max() * 1e5)):
        inside, outside = best, far
        if sse(far) <= limit:
            ends.append(0.0 if far < best else np.inf)
            continue
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if sse(middle) <= limit else (inside, middle)
        ends.append(float(np.exp(inside)))
    return float(np.exp((np.log(E) - np.log(1 + B / np.exp(best))).mean())), float(np.exp(best)), *ends


def scatter(B, E):
    """Root mean square of what the hyperbola leaves, per degree of freedom."""
    least, critical, *_ = hyperbola(B, E)
    r = np.log(np.asarray(E, float)) - np.log(least * (1 + np.asarray(B, float) / critical))
    return float(np.sqrt((r**2).sum() / max(len(r) - 2, 1)))


def bent(B, E, a):
    """Smallest sum of squares of E = E_min (1 + (B/B_crit)^a) in logs at a given a: a grid, then golden section."""
    B, E = np.log(np.asarray(B, float)), np.log(np.asarray(E, float))

    def sse(c):
        r = E - np.log1p(np.exp(a * (B - c)))
        return ((r - r.mean()) ** 2).sum()

    grid = np.linspace(B.min() - np.log(1e5), B.max() + np.log(1e5), 200)  # B_crit from 1e-5 to 1e5 of the range
    best = min(grid, key=sse)
    low, high = max(best - (grid[1] - grid[0]), grid[0]), min(best + (grid[1] - grid[0]), grid[-1])
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-8:
        x, y = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, y) if sse(x) < sse(y) else (x, high)
    return float(sse((low + high) / 2))


def prefers(straight, free, n):
    """Whether an F test at 5% prefers one parameter more: 2 and 3 parameters on n points."""
    return (straight - free) / (free / (n - 3)) > stats.f.ppf(0.95, 1, n - 3)


def quantum(values):
    """The largest number of 1e-6 that divides all values, tried one after the other by Euclid's subtraction."""
    parts = [round(v * 1e6) for v in values]
    while len(set(parts)) > 1:
        least = min(parts)
        parts = [p if p == least else (p - least) or least for p in parts]
    return parts[0] / 1e6


def felt(B, critical, variance):
    """Propagation of errors: the even noise that leaves S_min, E_min or B_crit as uncertain as these variances do."""
    B, variance = [float(b) for b in B], [float(v) for v in variance]
    slope = [critical / (critical + b) for b in B]
    n, middle = len(B), sum(slope) / len(B)
    square = sum((s - middle) ** 2 for s in slope)
    of_critical = [(s - middle) / square for s in slope]
    of_steps = [1 / n - middle * w for w in of_critical]
    of_samples = [w + v for w, v in zip(of_steps, of_critical, strict=True)]
    ratios = [sum(w * w * v for w, v in zip(of, variance, strict=True)) / sum(w * w for w in of)
              for of in (of_steps, of_samples, of_critical)]  # fmt: skip
    return max(*ratios, sum(variance) / n) ** 0.5
