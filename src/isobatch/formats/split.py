"""What the batch becomes, and how it lies on the devices in the words that a file has for it."""

import math
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.formats.ledger import Ledger
from isobatch.plan import Recipe
from isobatch.units import whole


@dataclass(frozen=True)
class Asked:
    """A batch on devices.

    Args:
        size: global, in the recipe's unit.
        devices: data-parallel devices.
        micro: of each device and pass; None where the file does not say it.
    """

    size: int
    devices: int
    micro: int | None


def asked_batch(
    recipe: Recipe, ledger: Ledger, size: int | None, devices: int | None, micro: int | None, keep: bool
) -> Asked:
    """Return the batch that was asked for.

    Args:
        recipe: the recipe.
        ledger: whether the file can accumulate, and says the batch by device.
        size: the new global batch, None for the one that the devices take with as many passes as before.
        devices: the new devices, None for those of the recipe.
        micro: samples per device and pass, None for the recipe's, or the most below it that divides.
        keep: keep the global batch, and accumulate.

    Returns:
        The batch.

    Raises:
        InputError: a batch that the devices cannot take.
    """
    old = recipe.batch
    grain = getattr(old, "sequence", None) or 1 if old.unit == "tokens" else 1
    count = old.devices if devices is None else whole("devices", devices)
    if keep:
        if size is not None and size != old.size:
            raise InputError(f"--keep-batch keeps {old.size}; drop --batch-size {size}, or drop --keep-batch")
        if not ledger.accumulates:
            raise InputError(
                f"{ledger.title} cannot accumulate, so that {count} devices cannot keep the batch; drop --keep-batch"
            )
        size = old.size
    elif size is None and ledger.keeps_batch and micro is None:
        size = old.size
    elif size is None:
        each = old.per_device if micro is None else whole("micro", micro)
        size = each * count * old.accumulation
    size = whole("batch size", size)
    if size % (count * grain):
        step = count * grain
        low = size // step * step
        near = f"{low} or {low + step}" if low else f"{step}"
        words = f"{count} devices" + (f" x sequences of {grain} tokens" if grain > 1 else "")
        raise InputError(f"batch size={size} does not lie evenly on {words}; nearest: {near}")
    share = size // count
    if micro is not None:
        if share % whole("micro", micro):
            raise InputError(
                f"batch size={size} is no multiple of {count} devices x micro {micro}; micro must divide {share}"
            )
        if share != micro and not ledger.accumulates:
            raise InputError(f"{ledger.title} cannot accumulate; micro must be {share} for {size} on {count} devices")
        return Asked(size, count, micro)
    if old.micro is None:
        return Asked(size, count, None)
    if not ledger.accumulates:
        return Asked(size, count, share)
    return Asked(size, count, _divisor(share // grain, min(old.micro, share) // grain) * grain)


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most so much."""
    best, root = 1, min(math.isqrt(number), 10**6)
    for part in range(1, root + 1):
        if number % part == 0:
            best = max([best, *(each for each in (part, number // part) if each <= most)])
    return best
