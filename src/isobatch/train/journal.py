"""The log of a run on the samples axis: one JSON line an entry, and TensorBoard where it is asked for."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from isobatch.errors import InputError


class Journal:
    """Append entries to log.jsonl; every entry carries `seen`, the samples of applied updates.

    Args:
        folder: of the run.
        tensorboard: also write TensorBoard scalars, with samples as their step.
        write: whether this process writes at all (the first rank).

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False, write: bool = True):
        self._board: Any = None
        if tensorboard and write:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "TensorBoard is not installed; pip install tensorboard, or drop --tensorboard"
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8") if write else None

    def add(self, seen: int, **values: float | int | str) -> None:
        """Append one entry.

        Args:
            seen: samples of applied updates.
            **values: numbers and words.
        """
        if self._file is None:
            return
        self._file.write(json.dumps({"seen": seen, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, global_step=seen)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
