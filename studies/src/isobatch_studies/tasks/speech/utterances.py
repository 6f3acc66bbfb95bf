"""Utterances of many lengths: features kept as bytes, padded to the longest of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.speech.metric import encode

_SCALE = 31.75
"""Features from -4 to 4 become the integers from -127 to 127."""


@dataclass
class UtteranceBatch:
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

    def to(self, device: torch.device) -> "UtteranceBatch":
        """Return the batch on a device."""
        return UtteranceBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Utterances:
    """Utterances in memory, one byte a feature.

    Args:
        frames: features of all utterances one after another, int8 from `quantise`, shape (frames, bands).
        lengths: frames of each utterance.
        texts: what is said.
        voices: who says it.

    Raises:
        InputError: no utterance, or lists of different lengths.

    Example:
        >>> held = Utterances.of([torch.zeros(9, 4), torch.ones(5, 4)], ["no", "yes"], ["a", "b"])
        >>> held.batch(torch.tensor([1])).features.shape
        torch.Size([1, 5, 4])
    """

    def __init__(self, frames: torch.Tensor, lengths: torch.Tensor, texts: Sequence[str], voices: Sequence[str]):
        if not len(lengths) or not len(lengths) == len(texts) == len(voices):
            raise InputError(f"{len(lengths)} utterances, {len(texts)} texts and {len(voices)} voices must be as many")
        self.frames, self.lengths, self.texts, self.voices = frames, lengths, list(texts), list(voices)
        self.starts = lengths.cumsum(0) - lengths
        self.targets = [torch.tensor(encode(text)) for text in texts]

    @classmethod
    def of(cls, features: Sequence[torch.Tensor], texts: Sequence[str], voices: Sequence[str]) -> "Utterances":
        """Make utterances of log-mel features.

        Args:
            features: each of shape (frames, bands), deviation 1.
            texts: what is said.
            voices: who says it.

        Returns:
            The utterances.
        """
        return cls(quantise(torch.cat(list(features))), torch.tensor([len(x) for x in features]), texts, voices)

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: "Utterances") -> "Utterances":
        frames, lengths = torch.cat((self.frames, other.frames)), torch.cat((self.lengths, other.lengths))
        return Utterances(frames, lengths, self.texts + other.texts, self.voices + other.voices)

    def batch(self, indices: torch.Tensor, labelled: torch.Tensor | None = None) -> UtteranceBatch:
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
        return UtteranceBatch(
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
