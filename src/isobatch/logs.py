"""One way into other people's loggers: numbers by name, with the samples seen on the x axis."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from isobatch.errors import InputError
from isobatch.installed import need


class Log(Protocol):
    """What a run writes its numbers to; any object with these two methods will do."""

    def add(self, values: Mapping[str, float], seen: int) -> None:
        """Take the numbers of one place of the run, at the samples seen there."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class _TensorBoard:
    def __init__(self, folder: Path, after: int | None):
        need("torch", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        purge = {} if after is None else {"purge_step": after + 1}
        self.writer = SummaryWriter(str(folder / "tensorboard"), **purge)

    def add(self, values: Mapping[str, float], seen: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, global_step=seen)

    def close(self) -> None:
        self.writer.close()


class _Project:
    """Trackio, or wandb without its server: both are a module with init, log and finish."""

    def __init__(self, name: str, folder: Path, **options: Any):
        try:
            self.module = __import__(name)
        except ImportError:
            raise InputError(f"{name} is not installed; pip install {name}, or leave --log {name} out") from None
        self.run = self.module.init(project="isobatch", name=folder.resolve().name, **options)

    def add(self, values: Mapping[str, float], seen: int) -> None:
        self.module.log({**values, "samples": seen}, step=seen)

    def close(self) -> None:
        self.module.finish()


LOGS: dict[str, Callable[[Path, int | None], Log]] = {
    "tensorboard": _TensorBoard,
    "trackio": lambda folder, after: _Project("trackio", folder),
    "wandb": lambda folder, after: _Project("wandb", folder, mode="offline", dir=str(folder)),
}
"""Name of a logger -> opens it for the folder of a run, after so many samples of an earlier process."""


def open_log(name: str, folder: Path, after: int | None = None) -> Log:
    """Open a logger for a run.

    Args:
        name: tensorboard (files in folder/tensorboard), trackio, or wandb (offline, files in folder/wandb).
        folder: of the run.
        after: samples seen where the run is taken up again; what stands behind them is repeated.

    Returns:
        The log.

    Raises:
        InputError: another name, or a package that is not installed.

    Example:
        >>> open_log("paper", Path("out"))
        Traceback (most recent call last):
        ...
        isobatch.errors.InputError: log='paper' must be one of tensorboard, trackio, wandb
    """
    if name not in LOGS:
        raise InputError(f"log={name!r} must be one of {', '.join(LOGS)}")
    return LOGS[name](folder, after)
