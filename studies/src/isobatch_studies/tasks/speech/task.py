"""Continual pseudo-labelling: a supervised start, then the averaged model labels a share of every batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isobatch.augment import Draws
from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.metric import LOSS, Metric
from isobatch.tasks.task import Run, device_of, seeded
from isobatch.units import finite, whole
from isobatch_studies.tasks.speech.metric import decode, greedy, word_error_rate
from isobatch_studies.tasks.speech.model import Recogniser
from isobatch_studies.tasks.speech.pools import Pools, Slots, pools
from isobatch_studies.tasks.speech.utterances import UtteranceBatch, Utterances

DECLARED = {
    "loss": LOSS,
    "wer": Metric("difference", better="lower", unit="errors in a hundred words", scale=100.0),
    "dev": Metric("difference", better="lower", unit="errors in a hundred words", scale=100.0),
    "empty": Metric("difference", better="lower", unit="percent"),
    "letters": Metric("difference", better="higher", unit="letters for a hundred said", scale=100.0),
    "start": Metric("difference", better="lower", unit="samples", scale=1e5),
}
_HEADS, _ROWS = 4, 64
_TIME_MASK, _BAND_MASK = 10, 6


class Start(nn.Module):
    """When pseudo-labelling begins: after a number of samples, or when the teacher's dev error has come down.

    Its two numbers are a buffer, so that they are part of every checkpoint.

    Args:
        after: samples, where `error` is None.
        error: word error rate of the teacher on dev at which to begin, in percent.
        every: samples between two looks at dev.
    """

    def __init__(self, after: int, error: float | None, every: int):
        super().__init__()
        self.after, self.error, self.every = after, error, every
        self.register_buffer("clock", torch.tensor([-1, every]))

    @property
    def at(self) -> int:
        """Samples at which it began, -1 before."""
        return int(self.get_buffer("clock")[0])

    def begun(self, seen: int, dev_error: Callable[[], float]) -> bool:
        """Return whether pseudo-labelling has begun, and note when it does.

        Args:
            seen: samples on the clock.
            dev_error: of the teacher as it is.

        Returns:
            Whether this step is mixed.
        """
        clock = self.get_buffer("clock")
        if self.at >= 0:
            return True
        if self.error is None:
            now = seen >= self.after
        elif seen < int(clock[1]):
            now = False
        else:
            clock[1] = (seen // self.every + 1) * self.every
            now = dev_error() <= self.error
        if now:
            clock[0] = seen
        return now


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of continual pseudo-labelling with a CTC transformer.

    L = mean over the samples of a batch of CTC(x, y) / letters(y), y the transcript, or the teacher's greedy decoding
    where there is none; a sample with an empty pseudo-label weighs 0 and still counts in the mean.

    Args:
        settings: the recipe; data as in `pools`, options.width (64) and layers (2) of the model; the start is
            options.start samples (8192), or options.start_error, the teacher's word error rate on dev in percent,
            looked at every options.look samples (512); masks_seed (0).
        seed: of the initial weights.

    Returns:
        The run; its metrics are the test's loss a letter, word error rate (wer), share of empty outputs (empty) and
        letters out over letters said (letters), the word error rate on dev, and the start in samples, -1 before it.

    References:
        arXiv 2307.13813, section 3.3.
    """
    data = pools(settings)
    width, layers, start, look, masks = (
        whole(f"options.{name}", settings.options.get(name, value), least)
        for name, value, least in (
            ("width", 64, 1), ("layers", 2, 1), ("start", 8192, 0), ("look", 512, 1), ("masks_seed", 0, 0)
        )
    )  # fmt: skip
    if width % _HEADS:
        raise InputError(f"options.width={width} must be a multiple of {_HEADS}, the attention heads")
    error = settings.options.get("start_error")
    bands = data.train.frames.shape[1]
    with seeded(seed):
        model = Recogniser(bands, width, layers, _HEADS)
    begin = Start(start, None if error is None else finite("options.start_error", error, 0), look)
    model.start = begin

    def loss(net: nn.Module, slots: Tensor, context: LossContext) -> Tensor:
        mixed = begin.begun(context.seen, lambda: recognise(context.teacher, data.dev)[0])
        batch = data.batch(slots.cpu(), mixed).to(device_of(net))
        if mixed:
            pseudo_label(context.teacher, batch)
        scores, lengths = net(masked(batch, Draws(masks, context.places).uniform(4).float()), batch.lengths)
        return per_utterance(scores, lengths, batch).mean()

    def metrics(net: nn.Module) -> dict[str, float]:
        return {**report(net, data), "start": float(begin.at)}

    return Run(model, Slots(data.slots), loss, metrics, data.facts, LossNeeds(teacher="eval"), declared=DECLARED)


@torch.no_grad()
def pseudo_label(teacher: nn.Module, batch: UtteranceBatch) -> None:
    """Replace the targets of the rows without a transcript by the teacher's greedy decoding.

    Args:
        teacher: the averaged model.
        batch: changed in place.
    """
    rows = (~batch.labelled).nonzero()[:, 0]
    if not len(rows):
        return
    scores, lengths = teacher(batch.features[rows], batch.lengths[rows])
    found = [torch.tensor(target, dtype=torch.int64) for target in greedy(scores, lengths)]
    every = [row[:length] for row, length in zip(batch.targets.cpu(), batch.target_lengths.tolist(), strict=True)]
    for row, target in zip(rows.tolist(), found, strict=True):
        every[row] = target
    device = batch.features.device
    batch.targets = nn.utils.rnn.pad_sequence(every, batch_first=True).to(device)
    batch.target_lengths = torch.tensor([len(target) for target in every], device=device)


def per_utterance(scores: Tensor, lengths: Tensor, batch: UtteranceBatch) -> Tensor:
    """Return the CTC loss of each utterance a letter; 0 where the target is empty or longer than the scores.

    Args:
        scores: shape (batch, frames, classes).
        lengths: valid frames, shape (batch,).
        batch: with the targets.

    Returns:
        Shape (batch,).
    """
    exact = torch.promote_types(scores.dtype, torch.float32)
    paths = scores.log_softmax(-1, dtype=exact).transpose(0, 1)
    targets = batch.targets if batch.targets.shape[1] else batch.targets.new_zeros(len(batch), 1)
    loss = F.ctc_loss(paths, targets, lengths, batch.target_lengths, reduction="none", zero_infinity=True)
    return loss * (batch.target_lengths > 0) / batch.target_lengths.clamp_min(1)


def masked(batch: UtteranceBatch, draws: Tensor) -> Tensor:
    """Return the features with one stretch of time and one of bands set to 0, the mean.

    Args:
        batch: of utterances.
        draws: uniform numbers, shape (batch, 4).

    Returns:
        Shape of batch.features.

    References:
        arXiv 1904.08779 (SpecAugment), without time warping.
    """
    x = batch.features
    draws = draws.to(x.device)
    time, band = (torch.arange(n, device=x.device) for n in x.shape[1:])
    keep_time = _outside(time, batch.lengths, _TIME_MASK, draws[:, 0], draws[:, 1])
    keep_band = _outside(band, torch.full_like(batch.lengths, x.shape[2]), _BAND_MASK, draws[:, 2], draws[:, 3])
    return x * keep_time[:, :, None] * keep_band[:, None]


def _outside(places: Tensor, ends: Tensor, most: int, width: Tensor, start: Tensor) -> Tensor:
    widths = torch.minimum((width * (most + 1)).long(), ends)
    starts = (start * (ends - widths + 1)).long()
    return (places < starts[:, None]) | (places >= (starts + widths)[:, None])


def recognise(net: nn.Module, held: Utterances) -> tuple[float, list[str], float]:
    """Recognise held-out utterances.

    Args:
        net: a recogniser in evaluation mode.
        held: the utterances.

    Returns:
        Word error rate in percent, what was recognised, and the mean CTC loss a letter.
    """
    found, total, device = [], 0.0, device_of(net)
    with torch.no_grad():
        for rows in torch.arange(len(held)).split(_ROWS):
            batch = held.batch(rows).to(device)
            scores, lengths = net(batch.features, batch.lengths)
            found += [decode(classes) for classes in greedy(scores, lengths)]
            total += float(per_utterance(scores, lengths, batch).sum())
    return word_error_rate(held.texts, found), found, total / len(held)


def report(net: nn.Module, data: Pools) -> dict[str, float]:
    """Return the held-out metrics of a recogniser.

    Args:
        net: in evaluation mode.
        data: with dev and test.

    Returns:
        loss, wer, empty, letters, dev.
    """
    error, found, loss = recognise(net, data.test)
    said, out = (sum(len(text.replace(" ", "")) for text in texts) for texts in (data.test.texts, found))
    empty = 100.0 * sum(not text.strip() for text in found) / len(found)
    return {
        "loss": loss,
        "wer": error,
        "empty": empty,
        "letters": 100.0 * out / said,
        "dev": recognise(net, data.dev)[0],
    }
