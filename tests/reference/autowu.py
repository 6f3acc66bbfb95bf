"""AutoWU by the sheet, one decision at a time, with scikit-learn's exact Gaussian process at given hyperparameters."""

import math

import numpy as np
import torch
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel


def process(x, y, c, s, noise):
    kernel = ConstantKernel(s, "fixed") * RBF(0.2, "fixed") + WhiteKernel(noise, "fixed")
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(np.asarray(x)[:, None], np.asarray(y) - c)


def log_evidence(x, y, c, s, noise):
    """Of all losses, with the constant."""
    return process(x, y, c, s, noise).log_marginal_likelihood_value_


def chance_and_place(x, y, c, s, noise):
    """max_i P(f_i < f_500), and the place of the lowest mean, on 500 places of [0, 1]."""
    at = np.linspace(0, 1, 500)
    mu, cov = process(x, y, c, s, noise).predict(at[:, None], return_cov=True)
    cov = cov - noise * np.eye(500)
    p = [norm.cdf((mu[-1] - mu[i]) / math.sqrt(cov[i, i] + cov[-1, -1] - 2 * cov[i, -1] + 1e-4)) for i in range(499)]
    return max(p), at[mu.argmin()]


def fit(x, y, raw, steps=100):
    """Mean, scale and noise before softplus after some steps of torch's Adam on the dense evidence, in float64."""
    x, y = torch.tensor(x), torch.tensor(y)
    values = torch.tensor([float(y.mean()), *raw], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.01)
    one = torch.eye(len(x), dtype=torch.float64)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / (2 * 0.2**2))
    for _ in range(steps):
        c, s, noise = values[0], *torch.nn.functional.softplus(values[1:])
        K = s * kernel + (1e-4 + noise) * one
        r = y - c
        loss = (r @ torch.linalg.solve(K, r) + torch.logdet(K)) / (2 * len(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values.tolist()


def schedule(t, *, T, W, lr_min, lr_max, switch=None, lr_peak=None, hold=None):
    """Rate of step t; `switch` is the step at which the decay starts, `hold` the cooldown fraction."""
    if switch is None:
        return lr_min * (lr_max / lr_min) ** (t / W)
    begin = switch if hold is None else max(switch, (1 - hold) * T)
    return lr_peak if t < begin else lr_peak * 0.5 * (1 + math.cos(math.pi * (t - begin) / (T - begin)))
