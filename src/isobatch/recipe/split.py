"""How a batch lies on devices: passes of micro samples on each of them, n of which are one update."""

import math
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.recipe.parts import Batch
from isobatch.units import whole

_LOOKED_AT = 1_000_000
"""Sizes of a pass below the one that fits, among which an even one is looked for."""


@dataclass(frozen=True)
class Split:
    """The reference batch on the devices that were asked for: the answer that changes no other number.

    Args:
        size: global batch.
        devices: data-parallel devices.
        micro: samples per device and forward pass; the last pass of an uneven split has fewer.
        accumulation: n, passes on each device that are one update.
        even: whether devices * micro * accumulation is the batch.
        even_micro: largest micro below it that splits the batch evenly; None where it is even, or no micro does.
        batch_norm: batch norm's momentum at that micro; None without batch norm.
    """

    size: int
    devices: int
    micro: int
    accumulation: int
    even: bool
    even_micro: int | None = None
    batch_norm: float | None = None

    def __str__(self) -> str:
        return f"{self.devices} x {self.micro} x n = {self.accumulation}"


def split_kept(old: Batch, new: Batch) -> Split:
    """Return how the reference batch lies on the devices of a plan.

    Args:
        old: the reference batch.
        new: the batch that was asked for; its samples per device and pass are what fits.

    Returns:
        The split, with the fewest passes.
    """
    size, devices = old.size, new.devices
    micro = min(new.per_device, math.ceil(size / devices))
    passes = math.ceil(size / (devices * micro))
    even = devices * micro * passes == size
    fits = None
    if not even and size % devices == 0:
        share = size // devices
        fits = next((m for m in range(micro, max(0, micro - _LOOKED_AT), -1) if share % m == 0), None)
    return Split(size, devices, micro, passes, even, fits)


def asked_size(old: Batch, size: int | None, micro: int | None, devices: int | None) -> int:
    """Return the batch of a plan; from the devices alone the one that they take with as many passes as before.

    Args:
        old: the reference batch.
        size: the batch that was asked for, None where only devices or micro were.
        micro: samples per device and forward pass; the recipe's own unless given.
        devices: data-parallel devices; the recipe's own unless given.

    Returns:
        Samples per step.

    Raises:
        InputError: nothing was asked for, or not a positive whole number.
    """
    if size is not None:
        return whole("batch size", size)
    if micro is None and devices is None:
        raise InputError(
            "batch size=None must be a whole number of at least 1; or give the devices and what fits on them: "
            "--devices, --micro"
        )
    per = old.per_device if micro is None else whole("micro", micro)
    count = old.devices if devices is None else whole("devices", devices)
    return per * count * old.accumulation
