"""The league of learning-rate rules a second time: pairs of points instead of variances, powers instead of logs."""

import math
import random

LEFT_OUT = {"Llama 3.1 405B, 5.0.0", "SSD, 1.1.0"}


def height(rule, b, c):
    """The rate at batch b, any unit."""
    return {
        "kept": 1.0,
        "sqrt": b**0.5,
        "linear": b,
        "noise-aware": b * ((1 - c / (c + 1)) + c / (c + 1) / b) ** 0.5,  # f = c/(c+1) at batch 1
        "saturating 1/2": (b / (b + c)) ** 0.5,
        "saturating 3/4": (b / (b + c)) ** 0.75,
        "saturating 1": b / (b + c),
        "surge": 1 / ((c / b) ** 0.5 + (b / c) ** 0.5),
    }[rule]


RULES = ("kept", "sqrt", "linear", "noise-aware", "saturating 1/2", "saturating 3/4", "saturating 1", "surge")


def scatter(logs):
    """Variance: half the mean squared difference of two points drawn with replacement."""
    return sum((one - other) ** 2 for one in logs for other in logs) / 2 / len(logs) ** 2


def error(points, c, rule):
    """Variance of log(rate/height)."""
    return scatter([math.log(lr / height(rule, b, c)) for b, lr in points])


def table(found, where):
    """Benchmark -> rule -> error."""
    several = {}
    for entry, fit in found:
        c = fit.hyperbola.critical
        known = len(fit.points) >= 4 and c.low > 0 and c.high / c.low <= 4
        rates = [p["lr"] for p in entry["points"]]
        if not known or f"{entry['name']}, {entry['round']}" in LEFT_OUT or min(rates) == max(rates):
            continue
        points = [
            (p["batch"], p["lr"])
            for p in entry["points"]
            if where == "all" or (p["batch"] <= c.value if where == "below" else p["batch"] >= c.value)
        ]
        if len(points) >= 2:
            several.setdefault(entry["name"], []).append([error(points, c.value, rule) for rule in RULES])
    return {
        name: {rule: sum(one[i] for one in rows) / len(rows) for i, rule in enumerate(RULES)}
        for name, rows in several.items()
    }


def intervals(rows, draws=2000):
    """Rule -> mean over benchmarks, 2.5% and 97.5% of means over draws with replacement."""
    names, rng = list(rows), random.Random(1)
    found = {}
    for rule in RULES:
        means = sorted(sum(rows[rng.choice(names)][rule] for _ in names) / len(names) for _ in range(draws))
        mean = sum(rows[name][rule] for name in names) / len(names)
        found[rule] = (mean, means[round(0.025 * draws)], means[round(0.975 * draws) - 1])
    return found


def alpha(batches, rates, c):
    """The exponent of the smallest variance of log(rate (1 + c/b)^alpha), by golden section."""

    def spread(a):
        off = [math.log(lr * (1 + c / b) ** a) for b, lr in zip(batches, rates, strict=True)]
        middle = sum(off) / len(off)
        return sum((x - middle) ** 2 for x in off)

    low, high, golden = -20.0, 20.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if spread(a) < spread(b) else (a, high)
    return (low + high) / 2
