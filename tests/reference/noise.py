r"""The gradient noise scale, slowly, in numpy float64.

Letters of McCandlish et al. (arXiv 1812.06162): B_j samples in chunk j, G_j its mean gradient, B all samples, Sigma the
covariance of one sample's gradient, G the true gradient. Unequal chunks are derived, as sums over pairs.
"""

import numpy as np


def mean_gradient(G_j, B_j):
    return sum(B * np.asarray(G, float) for B, G in zip(B_j, G_j, strict=True)) / sum(B_j)


def G_squared(G_j, B_j):
    """Mean of G_i . G_j over pairs of different chunks, weighted by B_i B_j: no chunk is multiplied by itself."""
    top = bottom = 0.0
    for i in range(len(B_j)):
        for j in range(len(B_j)):
            if i != j:
                top += B_j[i] * B_j[j] * float(np.dot(G_j[i], G_j[j]))
                bottom += B_j[i] * B_j[j]
    return top / bottom


def trace_Sigma(G_j, B_j):
    """Weighted sum of squared distances to the mean gradient over m - 1."""
    G_B = mean_gradient(G_j, B_j)
    return sum(B * float(np.sum((G - G_B) ** 2)) for B, G in zip(B_j, G_j, strict=True)) / (len(B_j) - 1)


def two_sizes(G_small_squared, G_big_squared, B_small, B_big):
    """(A.2) and (A.3): |G|^2 and tr(Sigma) from the squared norms at two batch sizes."""
    G2 = (B_big * G_big_squared - B_small * G_small_squared) / (B_big - B_small)
    S = (G_small_squared - G_big_squared) / (1 / B_small - 1 / B_big)
    return G2, S


def l1(G_j, B_j):
    """|G|_1^2 as (A.2) does it for unequal chunks, and |sigma|_1^2 from the sample variance of each coordinate."""
    from math import gamma, sqrt

    G_j, B_j = np.asarray(G_j, float), np.asarray(B_j, float)
    w = B_j / B_j.sum()
    G_B = mean_gradient(G_j, B_j)
    G2 = (np.abs(G_B).sum() ** 2 - np.sum(w**2 * np.abs(G_j).sum(1) ** 2)) / (1 - np.sum(w**2))
    k = len(B_j) - 1
    sigma = np.sqrt((B_j[:, None] * (G_j - G_B) ** 2).sum(0) / k)
    c4 = sqrt(2 / k) * gamma((k + 1) / 2) / gamma(k / 2)
    return G2, float((sigma.sum() / c4) ** 2)
