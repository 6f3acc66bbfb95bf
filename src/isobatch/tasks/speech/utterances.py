"""Utterances of many lengths: features kept as bytes, padded to the longest of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isobatch.errors import InputError
from isobatch.tasks.speech.metric import encode

_SCALE = 31.75
"""Features from -4 to 4 become the integers from -127 to 127."""


@dataclass
class Batch:
    """A padded batch of utterances.

    Args:
        features: shape (batch, frames, bands), 0 beyond each length.
        lengths: valid frames, shape (batch,).
        targets: classes, shape (batch, letters), 0 beyond each length.
        target_lengths: letters, shape (batch,).
        labelled: whether the targets may be used, shape (batch,).
    """

    features: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    labelled: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Utterances:
    """Utterances in memory, one byte a feature.

    Args:
        features: log-mel features, each of shape (frames, bands).
        texts: what is said, one a feature tensor.
        voices: who says it, one a feature tensor.

    Raises:
        InputError: lists of different lengths, or none.

    Example:
        >>> held = Utterances([torch.zeros(9, 4), torch.ones(5, 4)], ["no", "yes"], ["a", "b"])
        >>> held.batch(torch.tensor([1])).features.shape
        torch.Size([1, 5, 4])
    """

    def __init__(self, features: Sequence[torch.Tensor], texts: Sequence[str], voices: Sequence[str]):
        if not features or not len(features) == len(texts) == len(voices):
            raise InputError(f"{len(features)} features, {len(texts)} texts and {len(voices)} voices must be as many")
        self.texts, self.voices = list(texts), list(voices)
        self.lengths = torch.tensor([len(x) for x in features])
        self.frames = quantise(torch.cat(list(features)))
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.targets = [torch.tensor(encode(text)) for text in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: "Utterances") -> "Utterances":
        whole = Utterances.__new__(Utterances)
        whole.texts, whole.voices = self.texts + other.texts, self.voices + other.voices
        whole.lengths = torch.cat((self.lengths, other.lengths))
        whole.frames = torch.cat((self.frames, other.frames))
        whole.starts = whole.lengths.cumsum(0) - whole.lengths
        whole.targets = self.targets + other.targets
        return whole

    def batch(self, indices: torch.Tensor, labelled: torch.Tensor | None = None) -> Batch:
        """Return utterances as a padded batch.

        Args:
            indices: which, int64 of shape (batch,).
            labelled: whether each target may be used; all of them unless given.

        Returns:
            The batch.
        """
        chosen = indices.tolist()
        lengths = self.lengths[indices]
        features = torch.zeros(len(chosen), int(lengths.max()), self.frames.shape[1])
        targets = [self.targets[i] for i in chosen]
        for row, (start, length) in enumerate(zip(self.starts[indices].tolist(), lengths.tolist(), strict=True)):
            features[row, :length] = self.frames[start : start + length]
        return Batch(
            features.div_(_SCALE),
            lengths,
            torch.nn.utils.rnn.pad_sequence(targets, batch_first=True),
            torch.tensor([len(target) for target in targets]),
            torch.ones(len(chosen), dtype=torch.bool) if labelled is None else labelled,
        )


def quantise(features: torch.Tensor) -> torch.Tensor:
    """Return features as int8; those beyond 4 deviations are cut.

    Args:
        features: with deviation 1.

    Returns:
        int8 tensor of the same shape.

    Example:
        >>> quantise(torch.tensor([0.0, 4.0, -9.0])).tolist()
        [0, 127, -127]
    """
    return (features * _SCALE).round().clamp(-127, 127).to(torch.int8)


def restore(frames: torch.Tensor) -> torch.Tensor:
    """Return the features of int8 frames.

    Args:
        frames: from `quantise`.

    Returns:
        float32 tensor of the same shape.
    """
    return frames.float() / _SCALE
