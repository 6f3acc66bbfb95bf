"""DINO: a student that agrees with its own average over crops of many sizes, with a centre on the sample clock."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.augment import Views, augment
from isobatch.average import ObservedMean
from isobatch.curves import Staircase
from isobatch.plan import Recipe
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.task import Run, TensorSamples, seeded
from isobatch.units import finite, half_life, whole
from isobatch_studies.tasks.byol import encoded, head
from isobatch_studies.tasks.images import images
from isobatch_studies.tasks.probe import MOST, Probe
from isobatch_studies.tasks.resnet import ResNet, from_options

GLOBAL = 2
_WHOLE, _PART = (0.4, 1.0), (0.05, 0.4)


class MultiCrop(nn.Module):
    """Encoder, projector and prototypes for crops of several sizes.

    Args:
        encoder: images to features.
        hidden: width inside the projector.
        bottleneck: width of unit vectors before the prototypes.
        out: prototypes.
        norm: "batch" or "group".
    """

    def __init__(self, encoder: ResNet, hidden: int, bottleneck: int, out: int, norm: str):
        super().__init__()
        self.encoder = encoder
        self.projector = head(encoder.features, hidden, bottleneck, norm)
        self.prototypes = nn.Parameter(torch.randn(out, bottleneck) / math.sqrt(bottleneck))

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Return logits of shape (all crops, out); each tensor of the list holds the crops of one size."""
        features = torch.cat([self.encoder(x) for x in crops])
        unit = F.normalize(self.projector(features))
        return F.linear(unit, F.normalize(self.prototypes))


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of DINO on images.

    L = mean of -softmax((f'(t) - c) / T') log softmax(f(s) / T) over pairs of a global crop t, which the teacher sees,
    and any other crop s. The centre c is a running mean with a half-life in samples; T' warms up in samples.

    Args:
        settings: the recipe; options as in `byol`, and crops (2 local ones), prototypes (256), bottleneck (32),
            centre_half_life in samples (decay 0.9 at the batch of schedule.stair unless given), temperature (0.07),
            temperature_start (0.04), temperature_warmup in samples (a tenth of the run).
        seed: of the initial weights.

    Returns:
        The run; its metrics are those of `Probe`.

    References:
        arXiv 2104.14294.
    """
    data, stairs = images(settings), settings.staircase()
    hidden, bottleneck, out, local, views_seed = (
        whole(f"options.{name}", settings.options.get(name, value), least)
        for name, value, least in (
            ("hidden", 128, 1), ("bottleneck", 32, 1), ("prototypes", 256, 2), ("crops", 2, 0), ("views_seed", 0, 0),
        )
    )  # fmt: skip
    with seeded(seed):
        encoder = from_options(settings, data.train[0].shape[1])
        model = MultiCrop(encoder, hidden, bottleneck, out, str(settings.options.get("norm", "batch")))
    side = data.train[0].shape[-1]
    sizes = [Views(size=side, crop=_WHOLE)] * GLOBAL + [Views(size=side // 2, crop=_PART)] * local
    usual = half_life(0.9, stairs.stair)
    span, warm, low, high = (
        finite(f"options.{name}", settings.options.get(name, value), 0, open_low=True)
        for name, value in (
            ("centre_half_life", usual), ("temperature_warmup", stairs.length / 10),
            ("temperature_start", 0.04), ("temperature", 0.07),
        )
    )  # fmt: skip
    centre = ObservedMean(torch.zeros(out), span)
    ramp = Staircase(length=stairs.length, warmup=min(warm, stairs.length), stair=stairs.stair)

    def loss(net: nn.Module, batch: tuple[Tensor], context: LossContext) -> Tensor:
        crops = [augment(batch[0], context.places, views_seed, one, k) for k, one in enumerate(sizes)]
        whole_crops = torch.cat(crops[:GLOBAL])
        groups = [whole_crops] + ([torch.cat(crops[GLOBAL:])] if local else [])
        with torch.no_grad():
            taught = context.teacher([whole_crops]).float()
        mean = context.means["centre"]
        heat = low + (high - low) * ramp.mean(context.seen, context.seen + context.batch)
        value = agreement(taught - mean.value, net(groups).float(), GLOBAL, GLOBAL + local, heat)
        mean.add(taught)
        return value

    probe = Probe(data, encoded, whole("options.probe", settings.options.get("probe", MOST)))
    needs = LossNeeds(teacher="train", means={"centre": centre})
    return Run(model, TensorSamples(data.train[0]), loss, probe.metrics, data.facts, needs, declared=probe.DECLARED)


def agreement(taught: Tensor, student: Tensor, teachers: int, crops: int, heat: float, cool: float = 0.1) -> Tensor:
    """Return DINO's loss: cross-entropy between teacher and student over pairs of different crops.

    Args:
        taught: the teacher's centred logits, crop after crop, shape (teachers * n, out).
        student: the student's, shape (crops * n, out), the teacher's crops first.
        teachers: crops that the teacher sees.
        crops: crops that the student sees.
        heat: the teacher's temperature.
        cool: the student's.

    Returns:
        Mean over pairs and samples.

    Example:
        >>> round(agreement(torch.zeros(2, 4), torch.zeros(2, 4), 2, 2, 0.04).item(), 4)  # log 4
        1.3863
    """
    target = (taught / heat).softmax(1).chunk(teachers)
    logs = (student / cool).log_softmax(1).chunk(crops)
    pairs = [-(t * s).sum(1).mean() for i, t in enumerate(target) for j, s in enumerate(logs) if i != j]
    return torch.stack(pairs).mean()
