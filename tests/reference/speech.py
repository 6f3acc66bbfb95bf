"""Slow twins of the speech parts: word errors by recursion, log-mel by the definition, CTC by all alignments."""

import functools
import itertools
import math


def distance(one, other):
    """Levenshtein's distance by its recursion."""

    @functools.cache
    def d(i, j):
        if not i or not j:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return d(len(one), len(other))


def collapse(path):
    """Letters of a path: repeats merged, blanks (0) dropped."""
    return [letter for letter, _ in itertools.groupby(path) if letter]


def ctc(log_probabilities, target):
    """-log of the sum of the probabilities of all paths that collapse to the target; lists of frames x classes."""
    frames, classes = len(log_probabilities), len(log_probabilities[0])
    total = 0.0
    for path in itertools.product(range(classes), repeat=frames):
        if collapse(path) == list(target):
            total += math.exp(sum(log_probabilities[t][letter] for t, letter in enumerate(path)))
    return -math.log(total) if total else math.inf


def log_mel(wave, rate, bands, window=0.025, hop=0.010, lowest=60.0, highest=7600.0, floor=1e-6):
    """Log-mel features by the definition of the transform and of the triangles."""
    size, step = round(window * rate), round(hop * rate)
    padded = [0.0] * (size // 2) + list(wave) + [0.0] * (size // 2)
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    low, high = mel(lowest), mel(min(highest, rate / 2))
    edges = [700 * (10 ** ((low + (high - low) * i / (bands + 1)) / 2595) - 1) for i in range(bands + 2)]
    energies = []
    for t in range(1 + (len(padded) - size) // step):
        frame = [padded[t * step + n] * hann[n] for n in range(size)]
        power = []
        for k in range(size // 2 + 1):
            re = sum(x * math.cos(2 * math.pi * k * n / size) for n, x in enumerate(frame))
            im = sum(x * math.sin(2 * math.pi * k * n / size) for n, x in enumerate(frame))
            power.append(re * re + im * im)
        row = []
        for a, b, c in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            row.append(
                sum(
                    p * max(0.0, min((f - a) / (b - a), (c - f) / (c - b)))
                    for p, f in ((p, k * rate / size) for k, p in enumerate(power))
                )
            )
        energies.append(row)
    least = floor * max(map(max, energies))
    rows = [[math.log(least + e) for e in row] for row in energies]
    for m in range(bands):
        column = [row[m] for row in rows]
        mean = sum(column) / len(column)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
        for row in rows:
            row[m] = (row[m] - mean) / max(deviation, 1e-3)
    return rows
