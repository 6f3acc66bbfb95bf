"""The log of a run on the samples axis: one JSON line an entry, and TensorBoard where it is asked for."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from isobatch.errors import InputError


class Journal:
    """Append entries to log.jsonl; every entry carries `seen`, the samples of applied updates.

    A run that is taken up again repeats the steps past its checkpoint, so their entries are cut off first; a new run
    begins a new log, also where one was killed before its first checkpoint.

    Args:
        folder: of the run.
        tensorboard: also write TensorBoard scalars, with samples as their step.
        write: whether this process writes at all (the first rank).
        resumed: whether the run goes on from a checkpoint.
        after: `place` and `seen` of that checkpoint, None where it does not know them.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = False,
        write: bool = True,
        resumed: bool = False,
        after: tuple[int, int] | None = None,
    ):
        self._board: Any = None
        if tensorboard and write:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "TensorBoard is not installed; pip install tensorboard, or drop --tensorboard"
                ) from None
            purge = {} if after is None else {"purge_step": after[1] + 1}
            self._board = SummaryWriter(str(folder / "tensorboard"), **purge)
        path = folder / "log.jsonl"
        if write and after is not None and path.exists():
            _cut(path, after[0])
        self._file = path.open("a" if resumed else "w", encoding="utf-8") if write else None

    @property
    def place(self) -> int:
        """Bytes written so far; a checkpoint keeps them, and the next process cuts there."""
        return 0 if self._file is None else os.fstat(self._file.fileno()).st_size

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


def _cut(path: Path, place: int) -> None:
    """Cut a log behind `place` and the evaluations that follow it there: at the first step, or at half a line."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) < place:  # somebody shortened it; keep its whole lines
            file.seek(0)
            place = sum(len(line) for line in file if line.endswith(b"\n"))
        file.seek(place)
        for line in file:
            if not line.endswith(b"\n") or "batch" in json.loads(line):
                break
            place += len(line)
        file.truncate(place)
