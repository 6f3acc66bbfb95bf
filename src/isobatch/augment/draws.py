"""Random numbers of a row that depend on (seed, position, copy) alone: the same on any rank, in any micro-batch."""

import numpy as np
import torch

from isobatch.errors import InputError
from isobatch.units import whole

_GOLDEN = 0x9E3779B97F4A7C15


class Draws:
    """Uniform numbers for the rows of a batch, each row with a stream of its own.

    The k-th number of a row is SplitMix64's k-th output under a key hashed from (seed, position in the sample order,
    copy). So a view does not move with the number of ranks, the micro-batches, the batch or a resume.

    Args:
        seed: of the whole run, 0 or more.
        positions: int64 tensor of shape (rows,), places in the sample order (`drawn` and on).
        copies: int64 tensor of shape (rows,), which view of its sample a row is.

    Raises:
        InputError: a negative seed, or shapes that differ.

    Example:
        >>> one, two = Draws(0, torch.tensor([7, 8])), Draws(0, torch.tensor([8]))
        >>> bool((one.uniform(3)[1:] == two.uniform(3)).all())
        True

    References:
        Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
    """

    def __init__(self, seed: int, positions: torch.Tensor, copies: torch.Tensor | None = None):
        copies = torch.zeros_like(positions) if copies is None else copies
        if copies.shape != positions.shape or positions.dim() != 1:
            raise InputError(
                f"positions {tuple(positions.shape)} and copies {tuple(copies.shape)} must be one row each"
            )
        key = _mix(np.full(len(positions), whole("seed", seed, 0) % 2**64, dtype=np.uint64))
        key = _mix(key + positions.cpu().numpy().astype(np.uint64))
        self._key = _mix(key + copies.cpu().numpy().astype(np.uint64))
        self._used = 0

    def __len__(self) -> int:
        return len(self._key)

    def uniform(self, count: int) -> torch.Tensor:
        """Return the next `count` numbers of each row, in [0, 1).

        Args:
            count: numbers a row.

        Returns:
            float64 tensor of shape (rows, count), on the CPU.
        """
        steps = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        self._used += count
        words = _mix(self._key[:, None] + steps[None, :]) >> np.uint64(11)
        return torch.from_numpy(words.astype(np.float64) * 2.0**-53)

    def integers(self, low: int, high: int, count: int = 1) -> torch.Tensor:
        """Return whole numbers in [low, high], both included.

        Args:
            low: smallest.
            high: largest.
            count: numbers a row.

        Returns:
            int64 tensor of shape (rows, count).

        Example:
            >>> Draws(0, torch.arange(4)).integers(2, 2).flatten().tolist()
            [2, 2, 2, 2]
        """
        return (low + self.uniform(count) * (high - low + 1)).floor().long()


def _mix(word: np.ndarray) -> np.ndarray:
    word = word + np.uint64(_GOLDEN)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
