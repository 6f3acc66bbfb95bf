"""How long one step takes: measured on this machine, read from a file, and past it by an alpha-beta model."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from isobatch.critical.tables import table_rows
from isobatch.errors import InputError, unreadable
from isobatch.plan import Recipe
from isobatch.units import finite, whole

_WARM, _TIMED = 3, 15
_BATCH, _SECONDS, _RATE = "batch", "seconds_per_step", "samples_per_second"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one device's step against its local batch: base + per_sample*b.

    Args:
        base: seconds that do not depend on the batch.
        per_sample: seconds a sample.
        misfit: largest relative error at the points of the fit.
        points: (local batch, seconds) that it was fitted to.
    """

    base: float
    per_sample: float
    misfit: float
    points: tuple[tuple[float, float], ...]

    def at(self, batch: float, largest: float = math.inf) -> float:
        """Return the seconds of a step, in several passes where the local batch exceeds what fits.

        Args:
            batch: samples on the device.
            largest: samples that fit into one pass.

        Returns:
            Seconds.
        """
        passes = math.ceil(batch / largest) if math.isfinite(largest) else 1
        return passes * self.base + self.per_sample * batch


@dataclass(frozen=True)
class Network:
    """All-reduce of the gradient by the alpha-beta model: latency alpha a message, and bytes over bandwidth.

    ring: 2(N-1) alpha + 2(N-1)/N bytes/bandwidth; tree: 2 ceil(log2 N) alpha + 2 bytes/bandwidth; the faster counts.
    A share of it may hide behind the backward pass.

    Args:
        gradient_bytes: of the gradient that each device sends.
        latency: alpha, seconds a message.
        bandwidth: bytes a second of each device.
        overlap: share of the compute time behind which communication hides, in [0, 1).
    """

    gradient_bytes: float
    latency: float = 20e-6
    bandwidth: float = 25e9
    overlap: float = 0.0

    def __post_init__(self) -> None:
        finite("gradient_bytes", self.gradient_bytes, 0)
        finite("latency", self.latency, 0)
        finite("bandwidth", self.bandwidth, 0, open_low=True)
        finite("overlap", self.overlap, 0, 1, open_high=True)

    def seconds(self, devices: int) -> float:
        """Return the seconds of one all-reduce.

        Args:
            devices: N.

        Returns:
            0 for one device.

        Example:
            >>> round(Network(4e9, latency=0.0, bandwidth=1e9).seconds(4), 6)
            6.0
        """
        if devices == 1:
            return 0.0
        sent = self.gradient_bytes / self.bandwidth
        ring = 2 * (devices - 1) * self.latency + 2 * (devices - 1) / devices * sent
        return min(ring, 2 * math.ceil(math.log2(devices)) * self.latency + 2 * sent)

    def step(self, compute: float, devices: int) -> float:
        """Return the seconds of a whole step.

        Args:
            compute: seconds of each device's own work.
            devices: N.

        Returns:
            Seconds.
        """
        return compute + max(0.0, self.seconds(devices) - self.overlap * compute)

    def assumptions(self) -> list[str]:
        """Return what the model assumes, in words."""
        return [
            f"all-reduce: the faster of ring and tree, {self.latency * 1e6:g} us a message, {self.bandwidth / 1e9:g} "
            f"GB/s a device, {self.gradient_bytes / 1e6:,.3g} MB of gradient; assumed, not measured",
            f"communication hides behind {self.overlap:.0%} of the compute time",
            "every device computes at the speed of the one that was timed; no stragglers, no failures, no input stalls",
        ]


def fit_steps(points: Mapping[float, float]) -> StepTime:
    """Fit seconds = base + per_sample*b to measured steps, both not negative, by relative least squares.

    Args:
        points: local batch -> seconds of one step; at least two batches.

    Returns:
        The fit with its largest relative error.

    Raises:
        InputError: fewer than two points, or values that are not positive.

    Example:
        >>> found = fit_steps({8: 0.018, 64: 0.074, 256: 0.266})
        >>> round(found.base, 4), round(found.per_sample, 4)
        (0.01, 0.001)

    References:
        arXiv 2008.12260 (Pollux): compute time linear in the local batch.
    """
    if len(points) < 2:
        raise InputError(f"{len(points)} timed batch sizes; at least 2 are needed for a throughput curve; time another")
    b = np.array([finite("batch", float(batch), 0, open_low=True) for batch in points])
    t = np.array([finite("seconds", float(seconds), 0, open_low=True) for seconds in points.values()])
    (base, slope), _ = nnls(np.stack([1 / t, b / t], 1), np.ones(len(b)))
    misfit = float(np.abs((base + slope * b) / t - 1).max())
    return StepTime(float(base), float(slope), misfit, tuple(zip(b.tolist(), t.tolist(), strict=True)))


def read_steps(path: Path) -> dict[float, float]:
    """Read timed steps from a CSV file with a header: batch, and seconds_per_step or samples_per_second.

    Args:
        path: the file.

    Returns:
        batch -> seconds of one step.

    Raises:
        InputError: no such file, no such columns, a batch twice, or a value that is not a positive number.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("the throughput", path, error) from None
    rows = table_rows(text, str(path), f"{_BATCH},{_SECONDS}")
    columns = set(rows[0])
    if _BATCH not in columns or not columns & {_SECONDS, _RATE}:
        raise InputError(f"{path} must have a header with {_BATCH} and {_SECONDS} or {_RATE}, and rows below it")
    found: dict[float, float] = {}
    for line, row in enumerate(rows, start=2):
        try:
            batch = finite(_BATCH, float(row[_BATCH]), 0, open_low=True)
            name = _SECONDS if _SECONDS in columns else _RATE
            value = finite(name, float(row[name]), 0, open_low=True)
        except (InputError, ValueError, TypeError) as error:
            raise InputError(f"{path}, line {line}: {error}; correct the line, or leave it out") from None
        if batch in found:
            raise InputError(f"{path}, line {line}: batch {batch:g} stands there twice; keep one, such as the median")
        found[batch] = value if name == _SECONDS else batch / value
    return found


def measure_steps(
    recipe: Recipe, batches: Sequence[int], *, steps: int = _TIMED, device: str = "cpu"
) -> dict[float, float]:
    """Time training steps of a recipe's task on this machine, one process: the median at each batch.

    Args:
        recipe: with a task.
        batches: to time.
        steps: timed at each batch.
        device: where the run computes, and how: "cuda,bf16".

    Returns:
        batch -> seconds of one step; of tokens, the mean of what was drawn in whole samples.
    """
    from isobatch.critical.trial import at
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    count, found = whole("steps", steps), {}
    for batch in batches:
        made = at(recipe, whole("batch", batch), recipe.optimizer.lr)
        trainer = Trainer(make_run(made, 0), made, device=Device.parse(device))
        spent, drawn = [], []
        for _ in range(_WARM + count):
            began = time.perf_counter()
            drawn.append(trainer.step(batch).batch)
            spent.append(time.perf_counter() - began)
        found[float(np.mean(drawn[_WARM:]))] = float(np.median(spent[_WARM:]))
    return found


def gradient_bytes(recipe: Recipe) -> float:
    """Return the bytes of a recipe's gradient: four a trainable parameter.

    Args:
        recipe: with a task.

    Returns:
        Bytes.
    """
    from isobatch.tasks import make_run

    return 4.0 * sum(p.numel() for p in make_run(recipe, 0).model.parameters() if p.requires_grad)
