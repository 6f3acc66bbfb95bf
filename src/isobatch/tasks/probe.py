"""How good are features: a linear probe, nearest neighbours, and whether they have collapsed."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from isobatch.average import recalibrate
from isobatch.tasks.face import device_of
from isobatch.tasks.images import Images, Part

CHUNK, MOST, STATISTICS = 512, 4096, 1024
_NEIGHBOURS, _RIDGE = 20, 1e-2


@dataclass(frozen=True)
class Probe:
    """Held-out evaluation of an encoder on labelled images.

    Batch-norm statistics are measured again on clean training images before the features are taken, for raw and
    averaged weights alike, and put back afterwards.

    Args:
        images: the data; at most 4,096 training images fit the probe.
        encode: (model, float images in [0, 1]) -> features.

    References:
        Effective rank: Roy and Vetterli (2007).
    """

    images: Images
    encode: Callable[[nn.Module, Tensor], Tensor]

    def metrics(self, net: nn.Module) -> dict[str, float]:
        """Return the held-out metrics of a model.

        Args:
            net: in evaluation mode, without gradients.

        Returns:
            loss (squared error of the linear probe, 1 is chance), accuracy and knn in percent, rank (effective rank of
            the features) and variance (of unit features, 1 is isotropic and 0 collapsed).
        """
        train = spread(self.images.train, MOST)
        held = spread(self.images.held, MOST)
        with clean_statistics(net, self.images, self.encode):
            x, x_held = self.features(net, train[0]), self.features(net, held[0])
        loss, accuracy = linear(x, train[1], x_held, held[1], self.images.classes)
        found = {"loss": loss, "accuracy": accuracy, "knn": neighbours(x, train[1], x_held, held[1])}
        return found | {"rank": effective_rank(x_held), "variance": unit_variance(x_held)}

    def features(self, net: nn.Module, pixels: Tensor) -> Tensor:
        """Return the features of uint8 images, float64 on the CPU.

        Args:
            net: the model.
            pixels: uint8 of shape (n, channels, side, side).

        Returns:
            Shape (n, features).
        """
        place = device_of(net)
        found = [self.encode(net, part.to(place).float() / 255).float().cpu() for part in pixels.split(CHUNK)]
        return torch.cat(found).double()


@contextmanager
def clean_statistics(net: nn.Module, images: Images, encode: Callable[[nn.Module, Tensor], Tensor]) -> Generator[None]:
    """Measure batch-norm statistics on clean training images for the block, and put them back.

    Args:
        net: the model.
        images: the data.
        encode: runs the layers in question.

    Yields:
        None.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    kept = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    place = device_of(net)
    try:
        pixels = spread(images.train, STATISTICS)[0]
        recalibrate(net, (part.to(place).float() / 255 for part in pixels.split(CHUNK)), forward=encode)
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


def spread(part: Part, most: int) -> Part:
    """Return at most so many samples, evenly spaced.

    Args:
        part: images and labels.
        most: samples.

    Returns:
        The same or fewer.
    """
    count = len(part[1])
    if count <= most:
        return part
    index = torch.arange(most) * count // most
    return part[0][index], part[1][index]


def linear(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, classes: int) -> tuple[float, float]:
    """Fit a ridge regression on one-hot labels and return its held-out error and accuracy.

    W = argmin |Z W - (Y - mean Y)|^2 + 0.01 n |W|^2 on standardised features Z.

    Args:
        x: training features, float64.
        y: their labels.
        x_held: held-out features.
        y_held: their labels.
        classes: number of labels.

    Returns:
        Squared error as a share of that of the mean (1 is chance), and accuracy in percent.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64).repeat(50, 1)
        >>> linear(x, x.argmax(1), x, x.argmax(1), 2)[1]
        100.0
    """
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z, z_held = (x - mean) / scale, (x_held - mean) / scale
    target, wanted = (F.one_hot(labels, classes).double() for labels in (y, y_held))
    base = target.mean(0)
    gram = z.T @ z + _RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype)
    out = z_held @ torch.linalg.solve(gram, z.T @ (target - base)) + base
    error = (out - wanted).square().sum() / (base - wanted).square().sum()
    return float(error), float((out.argmax(1) == y_held).double().mean() * 100)


def neighbours(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> float:
    """Return the accuracy of the 20 nearest neighbours by cosine, each voting with exp(similarity / 0.07).

    Args:
        x: training features.
        y: their labels.
        x_held: held-out features.
        y_held: their labels.

    Returns:
        Percent.

    References:
        arXiv 1805.01978 (the weighted vote); arXiv 2104.14294 uses it.
    """
    similar = F.normalize(x_held) @ F.normalize(x).T
    best, index = similar.topk(min(_NEIGHBOURS, len(x)), 1)
    votes = torch.zeros(len(x_held), int(y.max()) + 1, dtype=best.dtype)
    votes.scatter_add_(1, y[index], torch.exp((best - 1) / 0.07))
    return float((votes.argmax(1) == y_held).double().mean() * 100)


def effective_rank(x: Tensor) -> float:
    """Return exp of the entropy of the centred features' normalised singular values.

    Args:
        x: features, shape (n, d).

    Returns:
        From 1 (or 0 where nothing varies) to d.

    Example:
        >>> round(effective_rank(torch.eye(4, dtype=torch.float64)), 6)
        3.0
    """
    values = torch.linalg.svdvals(x - x.mean(0))
    if float(values.sum()) <= 1e-12 * len(x):
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def unit_variance(x: Tensor) -> float:
    """Return the total variance of features scaled to unit length: 0 collapsed, 1 at most.

    Args:
        x: features, shape (n, d).

    Returns:
        The variance.

    Example:
        >>> unit_variance(torch.ones(5, 3, dtype=torch.float64))
        0.0
    """
    return float(F.normalize(x).var(0, unbiased=False).sum())
