"""Arguments that the kinds of average share."""

import math
from typing import Any

from isobatch.average.tracks import Tracks
from isobatch.errors import InputError
from isobatch.units import finite
from isobatch.units import half_life as half_life_of


def storage_settings(tracks: Tracks) -> dict[str, Any]:
    """Return the settings that shape the tensors, JSON-able.

    Args:
        tracks: the averages.

    Returns:
        dtype, buffers and rounding.
    """
    return {
        "dtype": str(tracks.dtype).removeprefix("torch."),
        "buffers": tracks.buffers,
        "rounding": tracks.rounding,
    }


def resolved(half_life: float | None, decay: float | None, batch_size: float | None) -> float:
    """Return the half-life in samples that a user's words stand for.

    Args:
        half_life: in samples, or None.
        decay: per update at batch_size, or None.
        batch_size: reference batch of decay.

    Returns:
        H in samples.

    Raises:
        InputError: not exactly one of half_life and decay, or decay without its batch.

    Example:
        >>> round(resolved(None, 0.999, 8))
        5542
    """
    if (half_life is None) == (decay is None):
        raise InputError("give half_life (in samples), or decay with the batch_size at which it was chosen")
    if half_life is not None:
        return checked_half_life(half_life)
    if batch_size is None or decay is None:
        raise InputError(f"decay={decay} is per update, so it needs batch_size, the batch at which it was chosen")
    return half_life_of(decay, batch_size)


def checked_half_life(half_life: float) -> float:
    """Return a half-life in [0, inf], or refuse it.

    Args:
        half_life: in samples.

    Returns:
        The same as a float.

    Raises:
        InputError: negative, NaN or not a number.

    Example:
        >>> checked_half_life(float("inf"))
        inf
    """
    return math.inf if half_life == math.inf else finite("half_life", half_life, 0)


def only_average(which: float | None) -> None:
    """Refuse a horizon where there is only one average.

    Args:
        which: must be None.

    Raises:
        InputError: anything else.

    Example:
        >>> only_average(None)
    """
    if which is not None:
        raise InputError(
            f"which={which!r}: there is one average here; leave it out (Horizons and PowerEMA hold several)"
        )


def no_half_life(half_life: float | None, kind: str) -> None:
    """Refuse a half-life per step where the kind has none.

    Args:
        half_life: must be None.
        kind: class name, for the message.

    Raises:
        InputError: anything else.

    Example:
        >>> no_half_life(None, "UniformTail")
    """
    if half_life is not None:
        raise InputError(f"half_life={half_life!r}: {kind} takes none per step; ModelEMA does")


def chosen(name: str, values: tuple[float, ...], which: float | None) -> int:
    """Return the index of the horizon asked for.

    Args:
        name: what distinguishes the horizons, for the message.
        values: of the horizons.
        which: one of them; None where there is only one.

    Returns:
        Its index.

    Raises:
        InputError: not one of them.

    Example:
        >>> chosen("half_life", (10.0, 100.0), 100)
        1
    """
    found = [k for k, value in enumerate(values) if which is not None and math.isclose(value, which, rel_tol=1e-9)]
    if which is None and len(values) == 1:
        return 0
    if not found:
        raise InputError(f"which={which!r} must be a {name} of this average: one of {list(values)}")
    return found[0]
