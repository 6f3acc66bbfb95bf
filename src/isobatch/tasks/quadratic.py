r"""Noisy quadratic: L(theta) = 1/2 sum_i a_i theta_i**2, with gradient noise of covariance c/B per coordinate.

Under SGD (with or without momentum) the weights and their average are a linear system, so mean and covariance at any
batch are exact and take milliseconds: the error of a rule against kappa without a single lucky run.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from isobatch.plan import Recipe, Settings
from isobatch.tasks.metric import LOSS
from isobatch.tasks.task import Run, TensorSamples, seeded
from isobatch.units import decay_at, finite, whole

Array = np.ndarray


def curvatures(dimension: int = 8) -> Array:
    """Return the curvatures a_i, spread evenly in log between 0.03 and 1.

    Args:
        dimension: number of coordinates.

    Returns:
        float64 array of shape (dimension,).
    """
    return np.logspace(math.log10(0.03), 0, dimension)


def moments(
    settings: Settings, curvature: Array, noise: float, samples: int, start: float = 1.0
) -> tuple[Array, Array]:
    """Mean and covariance of (weight, buffer, average) after `samples` samples of SGD, exactly.

    One step of B samples, with g = a theta + xi and Var(xi) = c/B:
    b' = mu b + g, theta' = theta - eta b', zeta' = rho zeta + (1 - rho) theta', rho = 0.5**(B/H).

    Args:
        settings: numbers per step at one batch; lr constant.
        curvature: a_i, shape (d,).
        noise: c, variance of one sample's gradient.
        samples: clock at which the moments are wanted, a multiple of the batch.
        start: initial value of every coordinate.

    Returns:
        Means of shape (d, 3) and covariances of shape (d, 3, 3).
    """
    eta, mu = settings.lr, settings.momentum
    rho = decay_at(settings.half_life, settings.batch) if math.isfinite(settings.half_life) else 1.0
    steps = round(samples / settings.batch)
    mean = np.tile(np.array([start, 0.0, start]), (len(curvature), 1))
    cov = np.zeros((len(curvature), 3, 3))
    kick = np.array([-eta, 1.0, -(1 - rho) * eta])
    matrices = np.zeros((len(curvature), 3, 3))
    for matrix, a in zip(matrices, curvature, strict=True):
        matrix[1] = [a, mu, 0]
        matrix[0] = [1 - eta * a, -eta * mu, 0]
        matrix[2] = (1 - rho) * matrix[0] + [0, 0, rho]
    shock = np.outer(kick, kick) * noise / settings.batch
    for _ in range(steps):
        mean = np.einsum("dij,dj->di", matrices, mean)
        cov = matrices @ cov @ matrices.transpose(0, 2, 1) + shock
    return mean, cov


def simulate(
    step: Callable[[Array, Array, int], Array],
    settings: Settings,
    noise: float,
    samples: int,
    *,
    replicas: int,
    seed: int,
) -> tuple[Array, Array]:
    """Weights and averages of many independent runs of a non-linear optimizer on one coordinate.

    Args:
        step: (theta, gradient, step number) -> new theta, all of shape (replicas,); it may keep state.
        settings: numbers per step; half_life and batch are read here.
        noise: c, variance of one sample's gradient; curvature is 1.
        samples: clock at which to stop, a multiple of the batch.
        replicas: independent runs.
        seed: of the noise.

    Returns:
        theta and zeta after the last step, each of shape (replicas,).
    """
    rng = np.random.default_rng(seed)
    rho = decay_at(settings.half_life, settings.batch) if math.isfinite(settings.half_life) else 1.0
    theta = np.ones(replicas)
    zeta = theta.copy()
    scale = math.sqrt(noise / settings.batch)
    for k in range(round(samples / settings.batch)):
        theta = step(theta, theta + scale * rng.standard_normal(replicas), k)
        zeta = rho * zeta + (1 - rho) * theta
    return theta, zeta


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of the noisy quadratic.

    Args:
        settings: the recipe; data_size (4096) noise vectors, options.noise is c (1.0), options.dimension is d (8).
        seed: of the initial weights, 1 plus a little noise.

    Returns:
        The run; its held-out loss is the noiseless one.
    """
    dimension = whole("options.dimension", settings.options.get("dimension", 8))
    noise = finite("options.noise", settings.options.get("noise", 1.0), 0)
    a = torch.as_tensor(curvatures(dimension), dtype=torch.float32)
    with seeded(0):
        xi = torch.randn(settings.data_size or 4096, dimension) * math.sqrt(noise)
    xi -= xi.mean(0)
    with seeded(seed):
        model = nn.ParameterDict({"theta": nn.Parameter(1 + 0.1 * torch.randn(dimension))})

    def loss(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        theta = net.get_parameter("theta")
        return 0.5 * (a.to(theta.device) * theta.square()).sum() + (batch[0].mean(0) * theta).sum()

    def metrics(net: nn.Module) -> dict[str, float]:
        theta = net.get_parameter("theta").cpu()
        return {"loss": float(0.5 * (a * theta.square()).sum())}

    return Run(
        model,
        TensorSamples(xi),
        loss,
        metrics,
        {"data": f"noisy quadratic, d={dimension}, c={noise:g}"},
        declared={"loss": LOSS},
    )
