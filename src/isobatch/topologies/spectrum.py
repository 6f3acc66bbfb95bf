"""Eigenvalues of small symmetric matrices and of circulants, in plain Python: this floor has no numerics library."""

import cmath
import math
from collections.abc import Sequence

from isobatch.errors import InputError

LARGEST = 256
_SWEEPS = 60

Rows = Sequence[Sequence[float]]


def symmetric_eigenvalues(matrix: Rows) -> list[float]:
    """Return the eigenvalues of a symmetric matrix in rising order: Householder reduction, then implicit QL.

    Args:
        matrix: n rows of n numbers; only the lower triangle is read. About 4/3 n**3 operations.

    Returns:
        n eigenvalues.

    Raises:
        InputError: more than 256 rows.

    Example:
        >>> [round(value, 12) for value in symmetric_eigenvalues([[2.0, 1.0], [1.0, 2.0]])]
        [1.0, 3.0]
    """
    if len(matrix) > LARGEST:
        raise InputError(
            f"the spectrum of {len(matrix)} nodes is not computed here; at most {LARGEST} without symmetry"
        )
    diagonal, beside = _tridiagonal([list(map(float, row)) for row in matrix])
    return sorted(_ql(diagonal, beside))


def circulant_eigenvalues(row: Sequence[float]) -> list[complex]:
    """Return the eigenvalues of the matrix whose row i is `row` shifted right by i: the Fourier transform of the row.

    Args:
        row: the first row; zeros cost nothing.

    Returns:
        n complex numbers, the first one the sum of the row.

    Example:
        >>> [round(abs(value), 12) for value in circulant_eigenvalues([0.5, 0.25, 0.0, 0.25])]
        [1.0, 0.5, 0.0, 0.5]
    """
    n = len(row)
    entries = [(place, value) for place, value in enumerate(row) if value]
    return [sum(v * cmath.exp(2j * math.pi * ((k * p) % n) / n) for p, v in entries) + 0j for k in range(n)]


def _tridiagonal(a: list[list[float]]) -> tuple[list[float], list[float]]:
    """Reduce a symmetric matrix, in place, to its diagonal and the elements beside it."""
    n = len(a)
    beside = [0.0] * n
    for i in range(n - 1, 0, -1):
        row = a[i]
        scale = sum(map(abs, row[:i]))
        if i == 1 or scale == 0.0:
            beside[i] = row[i - 1]
            continue
        u = [value / scale for value in row[:i]]
        h = sum(value * value for value in u)
        g = -math.copysign(math.sqrt(h), u[-1])
        beside[i] = scale * g
        h -= u[-1] * g
        u[-1] -= g
        p = [0.0] * i
        for j in range(i):
            left = a[j]
            p[j] += left[j] * u[j]
            for k in range(j):
                p[j] += left[k] * u[k]
                p[k] += left[k] * u[j]
        p = [value / h for value in p]
        shift = sum(x * y for x, y in zip(u, p, strict=True)) / (2 * h)
        q = [x - shift * y for x, y in zip(p, u, strict=True)]
        for j in range(i):
            uj, qj, left = u[j], q[j], a[j]
            for k in range(j + 1):
                left[k] -= uj * q[k] + qj * u[k]
    return [a[i][i] for i in range(n)], beside


def _ql(d: list[float], e: list[float]) -> list[float]:
    """Diagonalise a tridiagonal matrix by implicit QL; e[i] stands between d[i-1] and d[i]."""
    n = len(d)
    e = [*e[1:], 0.0]
    for start in range(n):
        for _ in range(_SWEEPS):
            m = start
            while m < n - 1 and abs(e[m]) > 2.3e-16 * (abs(d[m]) + abs(d[m + 1])):
                m += 1
            if m == start:
                break
            _sweep(d, e, start, m)
    return d


def _sweep(d: list[float], e: list[float], start: int, m: int) -> None:
    g = (d[start + 1] - d[start]) / (2.0 * e[start])
    r = math.hypot(g, 1.0)
    g = d[m] - d[start] + e[start] / (g + math.copysign(r, g))
    s = c = 1.0
    p = 0.0
    for i in range(m - 1, start - 1, -1):
        f, b = s * e[i], c * e[i]
        r = math.hypot(f, g)
        e[i + 1] = r
        if r == 0.0:
            d[i + 1] -= p
            e[m] = 0.0
            return
        s, c = f / r, g / r
        g = d[i + 1] - p
        r = (d[i] - g) * s + 2.0 * c * b
        p = s * r
        d[i + 1] = g + p
        g = c * r - b
    d[start] -= p
    e[start], e[m] = g, 0.0
