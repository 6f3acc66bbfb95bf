"""What one call of a study is given: which grid, where its runs are trained and kept, and until when."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from isobatch.verify.cells import run_all, train_all, until
from isobatch.verify.workers import Curve, Job

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Work:
    """One call of a study; the next call with the same folder takes up where this one stopped.

    Args:
        quick: the small grid of criteria.json; claims that it cannot judge stay without a verdict.
        grid: a further grid, "" for the study's own.
        out: folder for cells, result.json, pictures and page; nothing is kept without it.
        workers: processes, one a core unless given.
        executor: trains the runs, as in `isobatch.verify.run`; None for processes of this machine.
        budget: seconds from now after which nothing further is begun.
        device: where runs are trained, in the word of `Device.parse`.
        on_estimate: called with seconds (0: unknown) and the number of runs.
        on_done: called with each finished run.

    Example:
        >>> Work(quick=True).left() is None
        True
    """

    quick: bool = False
    grid: str = ""
    out: Path | None = None
    workers: int | None = None
    executor: Executor | None = None
    budget: float | None = None
    device: str = "cpu"
    on_estimate: Callable[[float, int], None] | None = None
    on_done: Callable[[Any], None] | None = None
    ends: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends = until(self.budget)

    def left(self) -> float | None:
        """Return the seconds that are left.

        Returns:
            0 or more; None where there is no limit.
        """
        return None if self.ends == math.inf else max(0.0, self.ends - time.monotonic())

    def announce(self, runs: int) -> None:
        """Say how many runs there will be.

        Args:
            runs: their number, those that are kept already counted.
        """
        if self.on_estimate is not None:
            self.on_estimate(0.0, runs)

    def train(self, groups: Sequence[Sequence[Job]], *, checkpoints: bool = False) -> dict[str, list[Curve]]:
        """Train groups of runs while time is left.

        Args:
            groups: runs that belong together: a group that is not complete leaves nothing.
            checkpoints: keep a run at each of its stops too, for runs of many minutes.

        Returns:
            arm -> curves by seed, of complete groups only.
        """
        return train_all(
            groups,
            self.out,
            workers=self.workers,
            executor=self.executor,
            budget=self.left(),
            on_done=self.on_done,
            checkpoints=checkpoints,
        )

    def results(
        self,
        function: Callable[[_Item], _Result],
        jobs: Sequence[_Item],
        *,
        name: Callable[[_Item], str],
        read: Callable[[dict[str, Any]], _Result],
        **more: Any,
    ) -> list[_Result] | None:
        """Run other work than training, or read what an earlier call kept of it, while time is left.

        Args:
            function: of one job, importable by name; its result is a dataclass of plain values.
            jobs: that belong together.
            name: file name of a job's result, a hash of everything that decides it.
            read: a result from its plain values.
            **more: as in `isobatch.verify.cells.run_all`, where this work's own does not fit: workers, ends, on_done.

        Returns:
            Results in the order of the jobs; None where some are missing because the time was over.
        """
        own: dict[str, Any] = {
            "workers": self.workers,
            "executor": self.executor,
            "device": self.device,
            "ends": self.ends,
            "on_done": self.on_done,
        }
        return run_all(function, jobs, self.out, name=name, read=read, **{**own, **more})

    def head(self, study: str, rules: dict[str, Any]) -> dict[str, Any]:
        """Return how every result begins.

        Args:
            study: its name.
            rules: its criteria.

        Returns:
            Its name and title, and which grid it is of.
        """
        return {"study": study, "title": rules["title"], "quick": self.quick, "grid": self.grid}
