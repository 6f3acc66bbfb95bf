"""Samples that are made when they are drawn: games, simulations."""

from abc import abstractmethod
from typing import Any


class Stream:
    """Samples that are made when they are drawn, so that what made them belongs into the checkpoint."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Args:
            state: that.
        """
