"""A folder of checkpoints: saved whole or not at all, verified before they are loaded."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from isobatch.checkpoint import writer
from isobatch.checkpoint.files import FolderLock, disk_errors, sync_folder
from isobatch.checkpoint.manifest import Loaded, load, verify
from isobatch.checkpoint.tensors import Arena
from isobatch.checkpoint.tree import split
from isobatch.checkpoint.writer import Content, Ranks, StepFolder
from isobatch.errors import InputError, SaveError, warn
from isobatch.units import whole


class Checkpoints:
    """The checkpoints of one run in one folder: safetensors and JSON, hashed, renamed into place, never fewer than two.

    Reading has no side effects. The first save, or `start`, takes the folder's lock and makes a trial save. Used as a
    context manager it does both on entry and, on the way out, waits for the save in flight and drops the lock.

    Under torch.distributed every rank builds it and calls `start`, `save`, `latest` and `load` together; each writes
    its own state into the shared folder and rank 0 renames after all are done.

    Args:
        folder: where to save; made when missing.
        keep: how many to keep, at least 2.
        asynchronous: copy the state at the call and write it in a thread; at most one save is in flight, and its
            failure is raised by the next call of `save`, `check` or `wait`. Holds one copy of the state in memory.
        allow_nonfinite: patterns of paths that may hold inf or NaN, such as "model/*.mask".

    Raises:
        InputError: keep below 2.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as store:
        ...     store.save({"model": {"w": torch.ones(2)}}, seen=64)
        ...     store.load().state
        {'model': {'w': tensor([1., 1.])}}
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        asynchronous: bool = False,
        *,
        allow_nonfinite: Sequence[str] = (),
    ):
        if whole("keep", keep, 1) < 2:
            raise InputError(f"keep={keep} must be at least 2; one damaged checkpoint must not be the only one")
        self.folder = Path(folder)
        self.keep = keep
        self.asynchronous = asynchronous
        self._allow = tuple(allow_nonfinite)
        self._ranks = Ranks()
        self._lock: FolderLock | None = None
        self._bad: set[Path] = set()
        self._arena = Arena()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Take the lock, remove what a crash left and make a trial save; nothing happens the second time.

        Raises:
            InputError: another run saves here.
            SaveError: the folder is full, read-only, or not shared by all ranks.
        """
        if self._lock is None:
            lock = self._ranks.together(self._take_lock)
            try:
                writer.try_write(self.folder, self._ranks)
            except BaseException:
                lock.drop()
                raise
            self._lock = lock

    @property
    def cold(self) -> bool:
        """Whether the first asynchronous save would have to find its memory."""
        return self.asynchronous and len(self._arena) == 0

    def reserve(self, state: Mapping[str, Any]) -> None:
        """Take the memory for asynchronous copies of a state now, so that the first save is as quick as the others.

        Args:
            state: as for `save`; best after the first step, when the optimizer has its state.
        """
        if self.asynchronous:
            self._arena.reserve(sum(tensor.nbytes for tensor in split(state, ("*",))[1].values()))

    def save(self, state: Mapping[str, Any], *, seen: int, meta: Mapping[str, Any] | None = None) -> None:
        """Save a state; the newest checkpoint is this one, or the previous one if anything fails.

        Args:
            state: nested dicts, lists and tuples of tensors and JSON values, at a step boundary.
            seen: samples of applied updates.
            meta: JSON values for the manifest that `load` can compare: "drawn", "batch_plan", "data".

        Raises:
            InputError: a value that a checkpoint cannot hold, or another run saves here.
            NonFiniteError: inf or NaN in the state; nothing is saved.
            SaveError: the disk or a rank failed, now or (asynchronous) at the previous save.
        """
        self.wait()
        self.start()

        def prepare() -> Content:
            tree, tensors = split(state, self._allow)
            if self.asynchronous:
                tensors = self._arena.copy(tensors)
            return Content(whole("seen", seen, 0), tree, tensors, writer.plain(meta or {}), self._allow)

        content = self._ranks.together(prepare)
        if not self.asynchronous:
            self._write(content)
            return
        self._thread = threading.Thread(target=self._write_quietly, args=(content,), name="isobatch-save")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in an asynchronous save that has ended; call it at every step.

        It looks at this rank's thread only; where ranks must fail on the same step, `wait` does.

        Raises:
            SaveError: the disk or a rank failed.
            NonFiniteError: the state held inf or NaN.
        """
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight and raise what went wrong in it.

        Raises:
            SaveError: the disk or a rank failed.
            NonFiniteError: the state held inf or NaN.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def list(self) -> list[StepFolder]:
        """Return the checkpoints by name, oldest first, unverified.

        Returns:
            Steps with path, serial and seen.
        """
        return writer.scan(self.folder)

    def latest(self, fallback: bool = False) -> StepFolder | None:
        """Return the newest checkpoint after hashing all its files; found by scanning, there is no pointer file.

        Args:
            fallback: pass over a damaged one, with a warning, and take the previous.

        Returns:
            The step; None when the folder holds none.

        Raises:
            InputError: the newest is damaged and fallback is False, or all are; or this rank does not see it.
            SaveError: another rank does not see it.
        """
        self.wait()
        found = self._ranks.together(lambda: self._newest(fallback))
        serial, seen = (self._ranks.share(number) for number in ((found.serial, found.seen) if found else (0, 0)))
        if not serial:
            return None
        step = writer.step_at(self.folder, serial, seen)
        self._ranks.together(lambda: self._here(step))
        return step

    def load(
        self,
        step: StepFolder | None = None,
        *,
        rank: int | None = None,
        expect: Mapping[str, Any] | None = None,
        accept: Sequence[str] = (),
        fallback: bool = False,
    ) -> Loaded:
        """Load a checkpoint; its files are hashed first and nothing in them is executed.

        Args:
            step: which; None means `latest(fallback)`.
            rank: whose state; None means this rank's, which needs the world size of the save.
            expect: fields of meta with the values that this run needs.
            accept: fields of expect that may differ.
            fallback: as in `latest`.

        Returns:
            The state and what was saved beside it.

        Raises:
            InputError: no checkpoint, a damaged one, another world size, or a field that differs from expect.
        """
        self.wait()
        chosen = step or self.latest(fallback)
        if chosen is None:
            raise InputError(f"{self.folder}: holds no checkpoint; start the run without resuming")
        if rank is None:
            return load(chosen.path, rank=self._ranks.rank, world=self._ranks.world, expect=expect, accept=accept)
        return load(chosen.path, rank=rank, expect=expect, accept=accept)

    def close(self) -> None:
        """Wait for the save in flight, drop the lock, leave the group.

        Raises:
            SaveError: the save in flight failed.
        """
        try:
            self.wait()
        finally:
            self._arena.settle()
            if self._lock is not None:
                self._lock.drop()
                self._lock = None
            self._ranks.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            error.add_note(f"while this was raised, the save in flight failed too: {late}")  # the first one counts

    def _take_lock(self) -> FolderLock:
        lock = FolderLock(self.folder)
        if self._ranks.rank == 0:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            lock.take()
            writer.remove_leftovers(self.folder)
        return lock

    def _write(self, content: Content) -> None:
        writer.write_step(self.folder, content, self._ranks)
        if self._ranks.rank == 0:
            self._retain()

    def _write_quietly(self, content: Content) -> None:
        try:
            self._write(content)
        except BaseException as error:  # raised by the next call; an exception in a thread reaches nobody
            self._failure = error

    def _retain(self) -> None:
        good = 0
        for step in reversed(self.list()):
            if good >= self.keep:
                try:
                    writer.remove(step)
                except SaveError as error:
                    warn(f"an old checkpoint stays: {error}")
            elif step.path not in self._bad and _problem(step, ranks=()) is None:
                good += 1

    def _here(self, step: StepFolder) -> None:
        if step not in self.list():  # one rank alone would begin its run anew
            raise InputError(
                f"{step.path}: rank 0 has this checkpoint and rank {self._ranks.rank} does not see it; give every rank "
                "the same folder, on a disk that they share"
            )

    def _newest(self, fallback: bool) -> StepFolder | None:
        if self._ranks.rank != 0:
            return None
        problems: list[str] = []
        for step in reversed(self.list()):
            problem = _problem(step, ranks=None)
            if problem is None:
                return step
            if not fallback:
                raise InputError(f"{problem} (fallback=True takes the previous one)")
            problems.append(problem)
            self._bad.add(step.path)
            warn(f"a damaged checkpoint is passed over: {problem}")
        if problems:
            raise InputError(f"{self.folder}: every checkpoint is damaged; start again. {' | '.join(problems)}")
        return None


def _problem(step: StepFolder, ranks: Sequence[int] | None) -> str | None:
    """Say what is wrong with a checkpoint; ranks=() looks at the manifest and the sizes only."""
    try:
        verify(step.path, ranks)
    except InputError as error:
        return str(error)
    return None
