"""A long run that was ended before its curve was finished: it goes on from the last stop at which it was evaluated."""

from pathlib import Path
from types import TracebackType
from typing import Self

from isobatch.checkpoint import Checkpoints, load
from isobatch.train import Trainer
from isobatch.train.persistence import restore, state_of

Points = list[dict[str, dict[str, float]]]
"""What was measured at each stop so far: model -> metric -> value."""


class Unfinished:
    """Checkpoints of one run at its stops; a run taken up there equals the uninterrupted one bit for bit.

    Args:
        folder: of this run alone.
        trainer: at its start.

    Raises:
        InputError: another process trains this run.
    """

    def __init__(self, folder: Path, trainer: Trainer):
        self.trainer = trainer
        self.store = Checkpoints(folder, allow_nonfinite=("*",))  # what a lost run is, the comparison says

    def __enter__(self) -> Self:
        self.store.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)

    def take_up(self) -> tuple[Points, float]:
        """Set the trainer to the last stop that was kept.

        Returns:
            What was measured up to there and the seconds that it took; nothing and 0 at the start of a run, and where
            the data are not those of the checkpoint.
        """
        newest = self.store.latest(fallback=True)
        if newest is None:
            return [], 0.0
        found = load(newest.path)
        if found.meta["about"] != self._about():
            return [], 0.0
        restore(self.trainer, found.state, found.state)
        return found.meta["points"], float(found.meta["seconds"])

    def save(self, points: Points, seconds: float) -> None:
        """Keep the run as it stands.

        Args:
            points: what was measured so far.
            seconds: that it took.
        """
        about = {"about": self._about(), "points": points, "seconds": seconds}
        self.store.save(state_of(self.trainer), seen=self.trainer.seen, meta=about)

    def _about(self) -> dict[str, object]:
        facts = {str(name): str(value) for name, value in (self.trainer.run.facts or {}).items()}
        return {"order": self.trainer.order.fingerprint, "facts": facts}
