"""Averages by a Triton kernel: one pass over the weights moves all averages of a tensor, on a GPU.

The shares are a tensor on the device, so one compiled kernel serves whatever the decay, and nothing is read back on the
host. Weights may be narrower than the averages, which are float32.
"""

from __future__ import annotations  # the names of Triton are not there yet when this file is read

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from isobatch.errors import warn

BLOCK = 1024  # elements a program
tl: Any = None  # triton.language, once it is needed


def _kernel(averages, weights, shares, count, stride, horizons: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    now = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
    row = averages
    for k in tl.static_range(horizons):
        share = tl.load(shares + k)
        value = tl.load(row + at, mask=inside, other=0.0)
        gap = now - value
        # as torch.lerp: a share of 1 gives the weights themselves
        moved = tl.where(share < 0.5, value + share * gap, now - gap * (1.0 - share))
        tl.store(row + at, moved, mask=inside)
        row += stride


@cache
def _jitted() -> Any:
    global tl
    tl = import_module("triton.language")
    return import_module("triton").jit(_kernel)


def blended_by_triton(
    averages: Sequence[Tensor],
    rests: Sequence[Tensor],
    previous: Tensor | None,
    weights: Tensor,
    shares: Tensor,
) -> None:
    """Do what blended() does for averages of float32 that have no companions, in one launch.

    Args:
        averages: K of shape [n], float32, rows of one tensor; overwritten.
        rests: none.
        previous: None.
        weights: [n], float32, bfloat16 or float16.
        shares: [2, K], float32, on the device of the weights; the second row is used.
    """
    count, horizons = weights.numel(), len(averages)
    stride = averages[1].storage_offset() - averages[0].storage_offset() if horizons > 1 else count
    with torch.cuda.device(weights.device) if weights.is_cuda else nullcontext():
        _jitted()[(-(-count // BLOCK),)](averages[0], weights, shares[1], count, stride, horizons, BLOCK)


@cache
def triton_for(device: torch.device) -> Callable[..., None] | None:
    """Return the kernel's launch for a device, or None with one warning that says why plain PyTorch goes on.

    Args:
        device: of averages and weights.

    Returns:
        blended_by_triton, or None: no GPU (and TRITON_INTERPRET=1 is not set), or Triton is not installed.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     triton_for(torch.device("meta")) is None
        True
    """
    why = ""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        why = f"the average lies on {device}, and Triton needs a CUDA device"
    else:
        try:
            _jitted()
        except ImportError as error:
            why = f"{error}; Triton comes with torch for CUDA on Linux, or by pip install triton"
    if why:
        warn(f'compiled="triton": averages are updated by plain PyTorch, because {why}')
    return None if why else blended_by_triton
