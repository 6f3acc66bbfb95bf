"""LEGW in the letters of the paper: base batch B0, peak eta0, w0 epochs of warm-up, k = B/B0, decay d(e) in epochs."""

import math


def learning_rate(iteration, *, eta0, w0, B0, B, N, epochs, d):
    """Rate of one iteration of batch B: the mean over the reference's iterations that it covers."""
    k = B / B0
    eta_peak, w = math.sqrt(k) * eta0, k * w0
    rates, first = [], iteration * B // B0
    for i in range(first, first + B // B0):
        e = min(i * B0 / N, epochs - B0 / N)
        rates.append(eta_peak * min(1.0, (e + B0 / N) / w) if e < w else eta_peak * d(max(0.0, e - w0) / (epochs - w0)))
    return sum(rates) / len(rates)
