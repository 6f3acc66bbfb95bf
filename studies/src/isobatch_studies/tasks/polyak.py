"""Supervised averaging on images: a small ResNet with batch norm or group norm, and its average as a teacher."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.augment import Views, augment
from isobatch.plan import Recipe
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.metric import LOSS, PERCENT
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import finite, whole
from isobatch_studies.tasks.images import images
from isobatch_studies.tasks.pixels import Part
from isobatch_studies.tasks.probe import CHUNK, MOST, clean_statistics, spread, viewed
from isobatch_studies.tasks.resnet import ResNet, from_options


class Classifier(nn.Module):
    """Encoder and linear head.

    Args:
        encoder: images to features.
        classes: number of labels.
    """

    def __init__(self, encoder: ResNet, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        return self.head(self.encoder(x))


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of a classifier whose weights are averaged (Polyak averaging).

    L = CE(y, f(x)) + w KL(f'(x) | f(x)), f' by the average, w = options.distil (0: the average only watches).

    Args:
        settings: the recipe; options data, side and frames as in `images`; width, depth, stages and norm as in
            `resnet`; distil (0.0); probe (4,096 images of each part are evaluated); views_seed (0).
        seed: of the initial weights.

    Returns:
        The run; loss and accuracy on one fixed random view of each held-out image, batch-norm statistics measured again
        for raw and averaged weights alike.

    References:
        arXiv 1703.01780 (mean teachers), arXiv 2307.13813 (section on Polyak averaging).
    """
    data = images(settings)
    weight = finite("options.distil", settings.options.get("distil", 0.0), 0)
    views_seed = whole("options.views_seed", settings.options.get("views_seed", 0), 0)
    with seeded(seed):
        model = Classifier(from_options(settings, data.train[0].shape[1]), data.classes)
    most = whole("options.probe", settings.options.get("probe", MOST))
    train, held = (viewed(spread(part, most), copy) for copy, part in enumerate((data.train, data.held)))
    views = Views(size=data.train[0].shape[-1])

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor], context: LossContext) -> Tensor:
        x = augment(batch[0], context.places, views_seed, views)
        logits = net(x).float()
        supervised = F.cross_entropy(logits, batch[1])
        if not weight:
            return supervised
        with torch.no_grad():
            target = context.teacher(x).float()
        return supervised + weight * distance(target, logits)

    def metrics(net: nn.Module) -> dict[str, float]:
        return scores(net, train[0], held)

    needs = LossNeeds(teacher="train" if weight else None)
    return Run(
        model,
        TensorSamples(*data.train),
        loss,
        metrics,
        data.facts,
        needs,
        declared={"loss": LOSS, "accuracy": PERCENT},
    )


def distance(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(target) | softmax(logits)), the mean over samples.

    Args:
        target: the teacher's logits.
        logits: the student's.

    Returns:
        A scalar.

    Example:
        >>> distance(torch.zeros(2, 3), torch.ones(2, 3)).item()
        0.0
    """
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def scores(net: nn.Module, pixels: Tensor, held: Part) -> dict[str, float]:
    """Return held-out cross-entropy and accuracy in percent, with batch-norm statistics measured again.

    Args:
        net: a classifier in evaluation mode.
        pixels: training images for the statistics.
        held: held-out images and labels.

    Returns:
        loss and accuracy.
    """
    place = device_of(net)
    with clean_statistics(net, pixels, lambda model, x: model(x)):
        found = [net(part.to(place).float() / 255).float().cpu() for part in held[0].split(CHUNK)]
    logits = torch.cat(found)
    accuracy = (logits.argmax(1) == held[1]).double().mean() * 100
    return {"loss": float(F.cross_entropy(logits, held[1])), "accuracy": float(accuracy)}
