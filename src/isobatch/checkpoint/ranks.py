"""What the ranks of a run must agree on: one number, and whether everybody succeeded."""

import contextlib
from collections.abc import Callable, Generator
from typing import TypeVar

import torch
from torch import distributed as dist

from isobatch.errors import SaveError

T = TypeVar("T")


class Ranks:
    """The processes of one run on a gloo group of their own, so that a saving thread never meets training traffic.

    One process, or no process group: rank 0 of 1, and nothing is communicated. Building it is collective.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self.rank, self.world = 0, 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
            group = dist.new_group(backend="gloo")
            self._group = group if isinstance(group, dist.ProcessGroup) else None

    def share(self, number: int) -> int:
        """Return rank 0's number on every rank.

        Args:
            number: any int64; only rank 0's counts.

        Returns:
            The number of rank 0.
        """
        if self._group is None:
            return number
        message = torch.tensor([number], dtype=torch.int64)
        with _lost_rank():
            dist.broadcast(message, src=0, group=self._group)
        return int(message)

    def together(self, action: Callable[[], T]) -> T:
        """Run an action on every rank; returns after all are done, and fails everywhere if it failed anywhere.

        Args:
            action: what this rank does; no collective calls inside.

        Returns:
            What the action returned here.

        Raises:
            SaveError: the action failed on another rank, or a rank is gone.
        """
        error: Exception | None = None
        result: list[T] = []
        try:
            result.append(action())
        except Exception as caught:  # told to the others first, raised below
            error = caught
        failed = self._failed(error is not None)
        if error is not None:
            raise error
        if failed:
            raise SaveError(f"failed on rank {failed}, whose error says why; nothing was changed on rank {self.rank}")
        return result[0]

    def close(self) -> None:
        """Leave the group; nothing happens in a single process."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def _failed(self, mine: bool) -> list[int]:
        if self._group is None:
            return []
        flags = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with _lost_rank():
            dist.all_gather(flags, torch.tensor([int(mine)]), group=self._group)
        return [rank for rank, flag in enumerate(flags) if int(flag)]


@contextlib.contextmanager
def _lost_rank() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's only kind
        raise SaveError(
            f"a rank was lost ({str(error).splitlines()[0]}); older checkpoints are intact: restart the run"
        ) from error
