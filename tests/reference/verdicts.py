"""The equivalence test, written out slowly in float64, one seed and one mark at a time.

d[s][j] is the gap of seed s at mark j, D[j] the margin there, n the seeds, m the marks.
"""

import math

from scipy import stats


def mean(x):
    return math.fsum(x) / len(x)


def moment(x, k):
    m = mean(x)
    return mean([(v - m) ** k for v in x])


def deviation(x):
    return math.sqrt(moment(x, 2) * len(x) / (len(x) - 1))


def skewness(x):
    return moment(x, 3) / moment(x, 2) ** 1.5


def correlation(x, y):
    a, b = mean(x), mean(y)
    return mean([(v - a) * (w - b) for v, w in zip(x, y, strict=True)]) / math.sqrt(moment(x, 2) * moment(y, 2))


def columns(d):
    return [[row[j] for row in d] for j in range(len(d[0]))]


def is_flat(x, margin):
    return max(abs(v - mean(x)) for v in x) <= 1e-9 * margin


def spreads(d, D):
    """Deviation at each mark; where there is none, the largest one of the others."""
    marks = columns(d)
    found = [0.0 if is_flat(x, D[j]) else deviation(x) for j, x in enumerate(marks)]
    return [s if not is_flat(x, D[j]) else max(found) for j, (x, s) in enumerate(zip(marks, found, strict=True))]


def stretch(d, D, j, rate, side):
    """1 + (c/n) max(0, (M s + w g) / (M + w) + b max(0, s_j - s))."""
    n, marks = len(d), columns(d)
    varying = [x for i, x in enumerate(marks) if not is_flat(x, D[i])]
    if not varying:
        s, own, M, b = 0.0, 0.0, 1.0, 0.0
    else:
        s = mean([side * skewness(x) for x in varying])
        each = [s if is_flat(x, D[i]) else side * skewness(x) for i, x in enumerate(marks)]
        own = each[j]
        cubes = math.fsum(correlation(x, y) ** 3 for x in varying for y in varying)
        M = len(varying) if cubes <= 0 else min(max(len(varying) ** 2 / cubes, 1), len(varying))
        v = deviation(each) ** 2 if len(each) > 1 else 0.0
        v0 = 6 * (n - 2) / ((n + 1) * (n + 3))
        b = max(0.0, 1 - v0 / v) if v > 0 else 0.0
    w, g, c = (10 / n) ** 2, 0.75, 22 + 6 * math.log2(max(0.05 / rate, 1))
    return 1 + c / n * max(0.0, (M * s + w * g) / (M + w) + b * max(0.0, own - s))


def interval(d, D, j, rate, each):
    """Mean and the two ends at mark j; `rate` sets the stretch, `each` the t quantile."""
    n, x = len(d), columns(d)[j]
    half = stats.t.ppf(1 - each, n - 1) * spreads(d, D)[j] / math.sqrt(n)
    return mean(x), mean(x) - stretch(d, D, j, rate, -1) * half, mean(x) + stretch(d, D, j, rate, 1) * half


def median(x):
    y, h = sorted(x), len(x) // 2
    return y[h] if len(y) % 2 else (y[h - 1] + y[h]) / 2


def outliers(d, D):
    found = []
    for s in range(len(d)):
        for j, x in enumerate(columns(d)):
            far = [abs(v - median(x)) for v in x]
            typical = 1.4826 * median(far)
            if typical <= 1e-9 * D[j]:
                typical = 1.2533 * mean(far)
            if far[s] > 3 * D[j] and far[s] > 10 * typical:
                found.append(s)
                break
    return found


def verdict(d, D, same=0.05, different=0.025):
    m = len(D)
    if all(is_flat(x, D[j]) for j, x in enumerate(columns(d))):
        return "UNDECIDED"
    narrow = [interval(d, D, j, same, same) for j in range(m)]
    if not outliers(d, D) and all(-D[j] < low and high < D[j] for j, (_, low, high) in enumerate(narrow)):
        return "SAME"
    wide = [interval(d, D, j, different, different / m) for j in range(m)]
    if any(low > D[j] or high < -D[j] for j, (_, low, high) in enumerate(wide)):
        return "DIFFERENT"
    return "UNDECIDED"


def binomial_tail(k, n, p):
    """P(at most k of n)."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def failure_bound(k, n, confidence):
    """The p at which so few failures have the probability 1 - confidence, by bisection."""
    if k == n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(200):
        p = (low + high) / 2
        low, high = (p, high) if binomial_tail(k, n, p) > 1 - confidence else (low, p)
    return low


def fisher(a, b, n):
    """P(the arm has at least a of the a + b failures), each of the 2n runs as likely to fail."""
    ways = math.comb(2 * n, a + b)
    return math.fsum(math.comb(n, i) * math.comb(n, a + b - i) / ways for i in range(a, min(n, a + b) + 1))


def crossing(seeds, levels, paths, rng):
    """Share of sums of standard normal values that pass the boundary at some look, one path at a time."""
    bounds = [stats.norm.isf(level) for level in levels]
    crossed = 0
    for _ in range(paths):
        total, done = 0.0, 0
        for n, bound in zip(seeds, bounds, strict=True):
            total, done = total + math.sqrt(n - done) * rng.standard_normal(), n
            if total / math.sqrt(n) >= bound:
                crossed += 1
                break
    return crossed / paths
