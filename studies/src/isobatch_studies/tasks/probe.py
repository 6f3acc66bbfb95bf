"""How good are features: a linear probe, nearest neighbours, and whether they have collapsed."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from isobatch.augment import Views, augment
from isobatch.average import recalibrate
from isobatch.tasks.metric import LOSS, PERCENT, Metric
from isobatch.tasks.task import device_of
from isobatch_studies.tasks.pixels import Images, Part

CHUNK, MOST, STATISTICS = 512, 4096, 1024
_NEIGHBOURS, _STEPS, _DECAY, _SEED = 20, 40, 1e-3, 20_231


@final
class Probe:
    """Held-out evaluation of an encoder on random views of labelled images.

    Clean frames of different games are told apart by an untrained encoder, so the probe is fitted and judged on one
    random view of each image (crop, flip, colour), drawn once and for all. Batch-norm statistics are measured again
    before the features are taken, for raw and averaged weights alike, and put back.

    Args:
        images: the data.
        encode: (model, float images in [0, 1]) -> features.
        most: images of each part that are used, evenly spaced.

    References:
        Effective rank: Roy and Vetterli (2007).
    """

    def __init__(self, images: Images, encode: Callable[[nn.Module, Tensor], Tensor], most: int = MOST):
        self.images, self.encode = images, encode
        self.train, self.held = (
            viewed(spread(part, most), copy) for copy, part in enumerate((images.train, images.held))
        )

    DECLARED: ClassVar[dict[str, Metric]] = {
        "loss": LOSS,
        "accuracy": PERCENT,
        "knn": PERCENT,
        "rank": Metric("ratio", better="higher"),
        "variance": Metric("difference", better="higher", unit="of an isotropic one", scale=1.0),
    }

    def metrics(self, net: nn.Module) -> dict[str, float]:
        """Return the held-out metrics of a model.

        Args:
            net: in evaluation mode, without gradients.

        Returns:
            loss (cross-entropy of the linear probe), accuracy (its own) and knn in percent, rank (effective rank of
            the features) and variance (of unit features, 1 is isotropic and 0 collapsed).
        """
        (pixels, y), (pixels_held, y_held) = self.train, self.held
        with clean_statistics(net, pixels, self.encode):
            x, x_held = self.features(net, pixels), self.features(net, pixels_held)
        loss, accuracy = linear(x, y, x_held, y_held, self.images.classes)
        found = {"loss": loss, "accuracy": accuracy, "knn": neighbours(x, y, x_held, y_held)}
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


def viewed(part: Part, copy: int) -> Part:
    """Return one fixed random view of each image.

    Args:
        part: images and labels.
        copy: which view; parts with other numbers are drawn independently.

    Returns:
        uint8 views of the same size, and the labels.
    """
    pixels, labels = part
    views = Views(size=pixels.shape[-1])
    drawn = [augment(x, place, _SEED, views, copy) for x, place in zip(
        pixels.split(CHUNK), torch.arange(len(pixels)).split(CHUNK), strict=True
    )]  # fmt: skip
    return (torch.cat(drawn) * 255).round().to(torch.uint8), labels


@contextmanager
def clean_statistics(net: nn.Module, pixels: Tensor, encode: Callable[[nn.Module, Tensor], Tensor]) -> Generator[None]:
    """Measure batch-norm statistics on at most 1,024 images for the block, and put them back.

    Args:
        net: the model.
        pixels: uint8 training images.
        encode: runs the layers in question.

    Yields:
        None.
    """
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    kept = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    place = device_of(net)
    try:
        chosen = pixels[:: max(1, len(pixels) // STATISTICS)][:STATISTICS]
        recalibrate(net, (part.to(place).float() / 255 for part in chosen.split(CHUNK)), forward=encode)
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
    """Fit a multinomial logistic regression and return its held-out cross-entropy and accuracy.

    min over W, b of mean CE(Z W + b, y) + 0.001 |W|^2 / 2 on standardised features Z, by 40 steps of L-BFGS from 0.

    Args:
        x: training features, float64.
        y: their labels.
        x_held: held-out features.
        y_held: their labels.
        classes: number of labels.

    Returns:
        Cross-entropy and accuracy in percent.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64).repeat(50, 1)
        >>> linear(x, x.argmax(1), x, x.argmax(1), 2)[1]
        100.0
    """
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    z, z_held = (x - mean) / scale, (x_held - mean) / scale
    with torch.enable_grad():
        weights = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, requires_grad=True)
        fit = torch.optim.LBFGS([weights], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            fit.zero_grad()
            loss = F.cross_entropy(z @ weights[:-1] + weights[-1], y) + _DECAY / 2 * weights[:-1].square().sum()
            loss.backward()
            return loss

        fit.step(closure)
    out = z_held @ weights[:-1].detach() + weights[-1].detach()
    return float(F.cross_entropy(out, y_held)), float((out.argmax(1) == y_held).double().mean() * 100)


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
