"""BYOL: a student that predicts what its own average sees in another view of the same image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.augment import Views, augment
from isobatch.plan import Recipe
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.task import Run, TensorSamples, seeded
from isobatch.units import whole
from isobatch_studies.tasks.images import images
from isobatch_studies.tasks.probe import MOST, Probe
from isobatch_studies.tasks.resnet import ResNet, from_options

_VIEWS = 2


class Siamese(nn.Module):
    """Encoder, projector and predictor.

    Args:
        encoder: images to features.
        hidden: width inside projector and predictor.
        out: width of projections.
        norm: "batch" or "group" (layer norm on vectors).
    """

    def __init__(self, encoder: ResNet, hidden: int, out: int, norm: str):
        super().__init__()
        self.encoder = encoder
        self.projector = head(encoder.features, hidden, out, norm)
        self.predictor = head(out, hidden, out, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return projections and predictions, each of shape (batch, out)."""
        projected = self.projector(self.encoder(x))
        return projected, self.predictor(projected)


def head(inside: int, hidden: int, outside: int, norm: str) -> nn.Sequential:
    """Return a perceptron of one normalised hidden layer.

    Args:
        inside: width in.
        hidden: width inside.
        outside: width out.
        norm: "batch", otherwise layer norm.

    Returns:
        The module.
    """
    middle = nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden)
    return nn.Sequential(nn.Linear(inside, hidden), middle, nn.ReLU(), nn.Linear(hidden, outside))


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of BYOL on images.

    L = mean over samples of sum over ordered pairs of views (a, b) of 2 - 2 cos(q(z_a), stop(z'_b)), z' by the average.
    The cosine schedule of the teacher's momentum is the recipe's ema.decay and ema.final.

    Args:
        settings: the recipe; options data, side and frames as in `images`; width, depth, stages and norm as in
            `resnet`; hidden (128) and out (32) of the heads; probe (4,096 images of each part); views_seed (0).
        seed: of the initial weights.

    Returns:
        The run; its metrics are those of `Probe`.

    References:
        arXiv 2006.07733.
    """
    data = images(settings)
    hidden, out, views_seed = (
        whole(f"options.{name}", settings.options.get(name, value), least)
        for name, value, least in (("hidden", 128, 1), ("out", 32, 1), ("views_seed", 0, 0))
    )
    with seeded(seed):
        encoder = from_options(settings, data.train[0].shape[1])
        model = Siamese(encoder, hidden, out, str(settings.options.get("norm", "batch")))
    views = Views(size=data.train[0].shape[-1])

    def loss(net: nn.Module, batch: tuple[Tensor], context: LossContext) -> Tensor:
        pair = torch.cat([augment(batch[0], context.places, views_seed, views, view) for view in range(_VIEWS)])
        with torch.no_grad():
            target = context.teacher(pair)[0].float()
        return regression(net(pair)[1].float(), target)

    probe = Probe(data, encoded, whole("options.probe", settings.options.get("probe", MOST)))
    return Run(
        model,
        TensorSamples(data.train[0]),
        loss,
        probe.metrics,
        data.facts,
        LossNeeds(teacher="train"),
        declared=probe.DECLARED,
    )


def regression(predicted: Tensor, target: Tensor) -> Tensor:
    """Return BYOL's symmetric loss for two views stacked along the first dimension.

    Args:
        predicted: the student's predictions, first view first, shape (2n, out).
        target: the teacher's projections in the same order.

    Returns:
        Mean over samples, from 0 to 8.

    Example:
        >>> z = torch.eye(2)
        >>> regression(z, z).item()  # each view must predict the other one
        4.0
    """
    first, second = target.chunk(2)
    cosine = F.cosine_similarity(predicted, torch.cat([second, first]))
    return 2 * (2 - 2 * cosine).mean()


def encoded(net: nn.Module, x: Tensor) -> Tensor:
    """Return the features that are evaluated: the encoder's, before the projector.

    Args:
        net: with an encoder.
        x: float images in [0, 1].

    Returns:
        Shape (n, features).
    """
    return net.get_submodule("encoder")(x)
