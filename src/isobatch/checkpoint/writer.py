"""One save that all ranks make together: a temporary folder, files that are fsynced and read back, a rename."""

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from isobatch.checkpoint.files import disk_errors, need_space, sync_folder, write_file
from isobatch.checkpoint.manifest import MANIFEST, names, rank_file, seal
from isobatch.checkpoint.tensors import chunks, describe, header
from isobatch.checkpoint.tree import check_finite
from isobatch.errors import InputError, SaveError

T = TypeVar("T")
_STEP = re.compile(r"(\d{6,})-seen-(\d+)", re.ASCII)
_LEFTOVER = re.compile(r"^(\d{6,}-seen-\d+|trial|trial-renamed)(\.tmp-[0-9a-f]+)+$")


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


@dataclass(frozen=True)
class Content:
    """What one rank saves.

    Attributes:
        seen: samples of applied updates.
        tree: the state without its tensors.
        tensors: {path: tensor}.
        meta: JSON values of the run; rank 0's are stored.
        allow_nonfinite: patterns of paths that may hold inf or NaN.
    """

    seen: int
    tree: Any
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    allow_nonfinite: Sequence[str]


@dataclass(frozen=True)
class StepFolder:
    """A checkpoint folder, not yet verified.

    Attributes:
        path: the folder.
        serial: counts the saves into its parent; the newest has the highest, whatever the clock says.
        seen: samples of applied updates.
    """

    path: Path
    serial: int
    seen: int


def step_at(folder: Path, serial: int, seen: int) -> StepFolder:
    """Return the checkpoint of a number.

    Args:
        folder: where a run saves.
        serial: of the save.
        seen: samples of applied updates.

    Returns:
        The step, which need not exist.

    Example:
        >>> step_at(Path("run"), 12, 40960).path.name
        '000012-seen-40960'
    """
    return StepFolder(folder / f"{serial:06d}-seen-{seen}", serial, seen)


def scan(folder: Path) -> list[StepFolder]:
    """List the checkpoints of a folder by name, oldest first.

    Args:
        folder: where a run saves; may not exist yet.

    Returns:
        The steps; temporary folders and anything else are left out.
    """
    if not folder.is_dir():
        return []
    matches = [(path, _STEP.fullmatch(path.name)) for path in folder.iterdir()]
    steps = [(path, step_at(folder, int(match[1]), int(match[2]))) for path, match in matches if match]
    return sorted((step for path, step in steps if step.path == path), key=lambda step: (step.serial, step.seen))


def write_step(folder: Path, content: Content, ranks: Ranks) -> StepFolder:
    """Save what all ranks bring as one new step; collective.

    Args:
        folder: where the run saves; this run holds its lock.
        content: what this rank saves.
        ranks: all ranks of the run.

    Returns:
        The new step.

    Raises:
        SaveError: the disk or a rank failed; nothing is left but what was there.
        NonFiniteError: a tensor holds inf or NaN.
    """
    serial = ranks.share(max((step.serial for step in scan(folder)), default=0) + 1 if ranks.rank == 0 else 0)
    mark = ranks.share(secrets.randbits(32))
    step = step_at(folder, serial, ranks.share(content.seen))
    final = step.path
    temporary = final.with_name(f"{final.name}.tmp-{mark:08x}")
    try:
        ranks.together(lambda: _open(temporary, ranks.rank))
        ranks.together(lambda: _write_rank(temporary, content, ranks.rank))
        ranks.together(lambda: _finish(temporary, final, content, ranks))
    except Exception:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # gives the space back; a crash leaves it to the next save
        raise
    return step


def try_write(folder: Path, ranks: Ranks) -> None:
    """Go through a whole save with a tiny state and remove it, so that a bad disk shows before the first epoch.

    Args:
        folder: where the run will save.
        ranks: all ranks of the run.

    Raises:
        SaveError: the folder cannot be written, or is not the same one on every rank.
    """
    mark = ranks.share(secrets.randbits(32))
    first, second = folder / f"trial.tmp-{mark:08x}", folder / f"trial-renamed.tmp-{mark:08x}"
    content = Content(0, {"trial": {"$tensor": "trial"}}, {"trial": torch.arange(1024)}, {}, ())
    try:
        ranks.together(lambda: _open(first, ranks.rank))
        ranks.together(lambda: _write_rank(first, content, ranks.rank))
        ranks.together(lambda: _finish(first, second, content, ranks))
    finally:
        if ranks.rank == 0:
            shutil.rmtree(first, ignore_errors=True)
            shutil.rmtree(second, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted saves and removals left; only under the lock.

    Args:
        folder: where the run saves.
    """
    for path in folder.iterdir():
        if _LEFTOVER.match(path.name):
            shutil.rmtree(path, ignore_errors=True)


def remove(step: StepFolder) -> None:
    """Remove a checkpoint so that a crash half-way does not leave half of one under its name.

    Args:
        step: which.

    Raises:
        SaveError: the disk refuses it.
    """
    doomed = step.path.with_name(f"{step.path.name}.tmp-{secrets.token_hex(4)}")
    with disk_errors(step.path):
        step.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what goes into the manifest, or refuse what JSON would change.

    Args:
        meta: JSON values.

    Returns:
        The copy.

    Raises:
        InputError: not JSON, or tuples and other keys than strings.
    """
    try:
        copy = json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"meta={meta!r} is not JSON ({error}); give dicts, lists, strings and finite numbers"
        ) from None
    if copy != meta:
        raise InputError(f"meta={meta!r} comes back as {copy!r}; give lists for tuples and strings for keys")
    return copy


def _open(temporary: Path, rank: int) -> None:
    if rank == 0:
        with disk_errors(temporary):
            remove_leftovers(temporary.parent)
            temporary.mkdir()


def _write_rank(temporary: Path, content: Content, rank: int) -> None:
    check_finite(content.tensors, content.allow_nonfinite, content.seen)
    text_name, data_name = names(rank)
    entries = describe(content.tensors)
    head = header(entries)
    size = len(head) + sum(tensor.nbytes for tensor in content.tensors.values())
    need_space(temporary, size)

    def data() -> Any:
        yield head
        yield from chunks(content.tensors, entries)

    digest = write_file(temporary / data_name, data(), size)
    text = rank_file(rank, content.seen, content.tree, entries, digest, size)
    write_file(temporary / text_name, [text], len(text))


def _finish(temporary: Path, final: Path, content: Content, ranks: Ranks) -> None:
    if ranks.rank != 0:
        return
    try:
        manifest = seal(temporary, content.seen, ranks.world, content.meta)
    except InputError as error:
        raise SaveError(f"{error}; the ranks do not save the same step into one folder") from error
    write_file(temporary / MANIFEST, [manifest], len(manifest))
    with disk_errors(final):
        sync_folder(temporary)
        if final.exists():  # rename would replace an empty folder in silence
            raise FileExistsError(17, "exists already", str(final))
        temporary.rename(final)
        sync_folder(final.parent)
