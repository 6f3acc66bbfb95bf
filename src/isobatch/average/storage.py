"""How averages are held: the options that every kind shares."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from isobatch.average.binding import Select
from isobatch.errors import InputError
from isobatch.units import whole

Buffers = Literal["copy", "average"]
Rounding = Literal["auto", "nearest", "stochastic", "compensated"]
NARROW = (torch.bfloat16, torch.float16)


@final
@dataclass(frozen=True)
class Storage:
    """Options of the memory behind an average; the defaults suit almost every model.

    Args:
        rounding: how a result is rounded to the average's dtype: "nearest"; "stochastic" (unbiased, from a private
            seeded generator, so ranks agree); "compensated" (a second tensor keeps what rounding lost); "auto" takes
            nearest for float32 and wider, stochastic below.
        seed: of the stochastic rounding.
        flat: move the model's small parameters into one buffer per dtype, so that models of many small tensors are
            averaged in one operation; the parameters stay the same objects.
        select: which parameters to average, by canonical name and tensor; None for all. The rest, and buffers that
            are not averaged, stay the model's own.
        check_finite: whether an update first refuses weights that are not finite (one more read of the weights and a
            host sync); turn it off where the training loop has judged the step already.

    Raises:
        InputError: an unknown rounding or a bad seed.

    Example:
        >>> Storage(rounding="stochastic").resolve(torch.bfloat16)
        'stochastic'
    """

    rounding: Rounding = "auto"
    seed: int = 0
    flat: bool = False
    select: Select | None = None
    check_finite: bool = True

    def __post_init__(self) -> None:
        if self.rounding not in ("auto", "nearest", "stochastic", "compensated"):
            raise InputError(
                f'rounding={self.rounding!r} must be "auto", "nearest", "stochastic" or "compensated"; "auto" is safe'
            )
        whole("seed", self.seed, 0)

    def resolve(self, dtype: torch.dtype) -> Literal["nearest", "stochastic", "compensated"]:
        """Return the rounding in force for averages held in `dtype`.

        Args:
            dtype: of the average.

        Returns:
            nearest, stochastic or compensated; stochastic rounding exists below float32 only.
        """
        narrow = dtype in NARROW
        if self.rounding == "auto":
            return "stochastic" if narrow else "nearest"
        if self.rounding == "stochastic" and not narrow:
            return "nearest"
        return self.rounding


def kept_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a tensor's average is held.

    Args:
        tensor: the model's tensor.
        dtype: what the user asked for.

    Returns:
        dtype, except that float32 holds float64 weights in float64, and complex weights stay complex.

    Example:
        >>> kept_dtype(torch.zeros(1, dtype=torch.bfloat16), torch.float32)
        torch.float32
    """
    if tensor.is_complex() or (dtype == torch.float32 and tensor.dtype == torch.float64):
        return tensor.dtype
    return dtype
