"""Writing a wide result into a narrow average without losing small updates."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isobatch.average.storage import NARROW
from isobatch.errors import InputError

RoundingInForce = Literal["nearest", "stochastic", "compensated"]


def work_dtype(average: torch.dtype, weights: torch.dtype, rounding: RoundingInForce) -> torch.dtype:
    """Return the dtype in which an update is computed.

    Args:
        average: dtype of the average.
        weights: dtype of the model's tensor.
        rounding: how the result is rounded to the average's dtype.

    Returns:
        The average's own dtype where it is wide enough, otherwise the next wider one.

    Example:
        >>> work_dtype(torch.bfloat16, torch.bfloat16, "stochastic")
        torch.float32
    """
    if rounding == "compensated":
        wider = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        return wider.get(average, torch.float32 if average in NARROW else average)
    return torch.float32 if average in NARROW else average


def refuse_lost(dtype: torch.dtype, shares: Sequence[float]) -> None:
    """Refuse an update that rounding to nearest would lose even where average and weights differ by 100%.

    Args:
        dtype: of the average.
        shares: weights of the new weights; 0 means that nothing is to move.

    Raises:
        InputError: says the smallest workable weight and the ways out.

    Example:
        >>> refuse_lost(torch.bfloat16, [0.1])
    """
    floor = torch.finfo(dtype).eps / 4
    low = min((s for s in shares if s > 0), default=1.0)
    if low < floor:
        raise InputError(
            f"an update of weight {low:.3g} is lost in {dtype} rounded to nearest, even where average and weights "
            f"differ by 100%; the smallest workable weight is {floor:.3g} (decay {1 - floor:.5g}). Use "
            'dtype=torch.float32, rounding="stochastic", or a longer cadence'
        )


def stochastic_(target: Tensor, value: Tensor, generator: torch.Generator | None) -> None:
    """Round value to one of target's two neighbouring numbers, so that the expectation is value.

    Of the neighbours a <= value <= b it takes b with probability (value - a) / (b - a).

    Args:
        target: bfloat16 or float16, any shape; overwritten.
        value: float32, same shape.
        generator: source of the random numbers, on target's device.

    Example:
        >>> target = torch.zeros(4, dtype=torch.bfloat16)
        >>> stochastic_(target, torch.full((4,), 0.5), None)
        >>> target.tolist()
        [0.5, 0.5, 0.5, 0.5]

    References:
        arXiv 2010.06192 (stochastic rounding for training in bfloat16).
    """
    near = value.to(target.dtype)
    back = near.to(value.dtype)
    error = value - back
    bits = near.view(torch.int16)
    # Floats are sign and magnitude: one more in the bits is one step away from zero, whatever the sign.
    step = torch.where((error > 0) == (back > 0), 1, -1).to(torch.int16)
    across = torch.where(error > 0, 1, -32767).to(torch.int16)
    other = torch.where(back == 0, across, bits + step).view(target.dtype)
    gap = (other.to(value.dtype) - back).abs_()
    chance = torch.rand(value.shape, generator=generator, dtype=value.dtype, device=value.device)
    target.copy_(torch.where((error != 0) & (chance * gap < error.abs()), other, near))


def compensated_(target: Tensor, rest: Tensor, value: Tensor) -> None:
    """Write value as target + rest, each in target's dtype.

    Args:
        target: the average; overwritten.
        rest: what rounding to target lost; overwritten.
        value: wider than target, same shape; its contents are used up.

    Example:
        >>> target, rest = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
        >>> compensated_(target, rest, torch.tensor([1.0009765625]))
        >>> target.item(), rest.item()
        (1.0, 0.0009765625)
    """
    target.copy_(value)
    rest.copy_(value.sub_(target))
