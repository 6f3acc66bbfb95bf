r"""The clock: everything is counted in samples (or tokens), and turned into steps at the last moment.

A half-life of H samples is the decay 0.5**(B/H) at an update of B samples; it survives any sequence of batches, which
a decay per update does not.
"""

import math
import re
from numbers import Integral, Real

from isobatch.errors import InputError

_QUANTITY = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9_]+)?(?:[eE][+-]?[0-9]+)?)\s*([a-z]+)\s*$")
_EXACT = 2**53
_UNITS = {"sample": "samples", "token": "tokens", "epoch": "epochs", "step": "steps"}


def finite(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return value as a float inside [low, high], or refuse it.

    Args:
        name: what the value is, for the message.
        value: anything a caller may hand over; bools and strings are refused.
        low: smallest allowed value.
        high: largest allowed value.
        open_low: whether low itself is excluded.
        open_high: whether high itself is excluded.

    Returns:
        The value as a float.

    Raises:
        InputError: not a finite real number, or outside the range.

    Example:
        >>> finite("lr", 0.1, 0.0)
        0.1
    """
    if type(value) is float and low < value < high and math.isfinite(value):
        return value  # the common cases, without the words of a refusal
    if type(value) is int and low < value < high and -_EXACT <= value <= _EXACT:
        return float(value)
    bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        way = f"; give {name}.item()" if type(value).__name__ in ("Tensor", "ndarray") else ""
        raise InputError(f"{name}={value!r} must be a number in {bounds}; got {type(value).__name__}{way}")
    try:
        number = float(value)
    except OverflowError:  # a whole number that no float holds
        number = math.inf if abs(value) == value else -math.inf
    if not math.isfinite(number):
        raise InputError(f"{name}={number} must be finite and in {bounds}")
    if number < low or number > high or (open_low and number == low) or (open_high and number == high):
        raise InputError(f"{name}={number:g} must be in {bounds}")
    return number


def whole(name: str, value: object, low: int = 1) -> int:
    """Return value as an int of at least low, or refuse it.

    Args:
        name: what the value is, for the message.
        value: an integer (bools and fractions are refused).
        low: smallest allowed value.

    Returns:
        The value as an int.

    Raises:
        InputError: not an integer, or below low.

    Example:
        >>> whole("batch size", 128)
        128
    """
    if type(value) is int and value >= low:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}={value!r} must be a whole number of at least {low}")
    if int(value) < low:
        raise InputError(f"{name}={int(value)} must be at least {low}")
    return int(value)


def batch_ratio(batch: float, reference: float) -> float:
    """Return kappa = batch / reference, the factor by which the global batch grows.

    Args:
        batch: actual global batch in samples, positive.
        reference: batch at which the settings were chosen, positive.

    Returns:
        kappa, positive.

    Raises:
        InputError: a batch that is not positive and finite.

    Example:
        >>> batch_ratio(128, 8)
        16.0
    """
    return finite("batch", batch, 0, open_low=True) / finite("reference batch", reference, 0, open_low=True)


def half_life(decay: float, samples: float) -> float:
    """Return the half-life in samples of a decay that is applied every `samples` samples.

    H = B ln(1/2) / ln(rho). decay 0 gives 0 (a copy), decay 1 gives infinity (frozen).

    Args:
        decay: rho in [0, 1], once per update.
        samples: B, samples per update, positive.

    Returns:
        H in samples.

    Raises:
        InputError: decay outside [0, 1] or samples not positive.

    Example:
        >>> round(half_life(0.999, 8))
        5542

    References:
        arXiv 2307.13813 (the rule rho**kappa, here as the quantity that it keeps).
    """
    rho = finite("decay", decay, 0, 1)
    size = finite("samples", samples, 0, open_low=True)
    if rho == 0:
        return 0.0
    return math.inf if rho == 1 else -size * math.log(2) / math.log(rho)


def decay_at(half_life_: float, samples: float) -> float:
    """Return the decay per update of `samples` samples that has the half-life given in samples.

    rho = 0.5 ** (B / H). H = 0 gives 0 (a copy), H = inf gives 1 (frozen).

    Args:
        half_life_: H in samples, from 0 to infinity.
        samples: B, samples since the last update, positive.

    Returns:
        rho in [0, 1].

    Raises:
        InputError: a negative or NaN half-life, or samples not positive.

    Example:
        >>> round(decay_at(half_life(0.999, 8), 128), 6)
        0.984119
    """
    size = finite("samples", samples, 0, open_low=True)
    if isinstance(half_life_, bool) or math.isnan(half_life_) or half_life_ < 0:
        raise InputError(f"half-life={half_life_!r} must be in [0, inf] samples")
    return 0.0 if half_life_ == 0 else 2.0 ** (-size / half_life_)


def one_minus_decay(half_life_: float, samples: float) -> float:
    """Return 1 - decay_at(half_life, samples) without cancellation when the decay is near 1.

    1 - rho = -expm1(-B ln 2 / H).

    Args:
        half_life_: H in samples, positive or infinite (0 gives 1).
        samples: B, samples since the last update, positive.

    Returns:
        The weight of the new value, in [0, 1].

    Raises:
        InputError: as decay_at.

    Example:
        >>> f"{one_minus_decay(1e12, 1):.6e}"
        '6.931472e-13'
    """
    decay_at(half_life_, samples)
    return 1.0 if half_life_ == 0 else -math.expm1(-samples * math.log(2) / half_life_)


def to_samples(
    quantity: str,
    *,
    batch: int | None = None,
    data_size: int | None = None,
    name: str = "quantity",
    unit: str = "samples",
    sequence: int | None = None,
) -> float:
    """Return how many samples (or tokens) a quantity such as "30 epochs" or "20_000 samples" spans.

    Args:
        quantity: a number and one of samples, tokens, epochs, steps (singular allowed).
        batch: samples per step, needed for steps.
        data_size: samples per epoch, needed for epochs.
        name: which setting this is, for the message.
        unit: what the recipe's clock counts, "samples" or "tokens".
        sequence: tokens in a sample, needed to turn one into the other.

    Returns:
        The span on the recipe's clock.

    Raises:
        InputError: not a quantity, or the batch, data size or tokens in a sample that it needs are missing.

    Example:
        >>> to_samples("30 epochs", data_size=1437)
        43110.0
        >>> to_samples("2 samples", unit="tokens", sequence=1024)
        2048.0
    """
    match = _QUANTITY.match(quantity) if isinstance(quantity, str) else None
    kind = _UNITS.get(match[2].rstrip("s")) if match else None
    if match is None or kind is None:
        raise InputError(
            f'{name}={quantity!r} is not a quantity; write a number and samples, tokens, epochs or steps: "30 epochs"'
        )
    number = float(match[1].replace("_", ""))
    if kind == "epochs":
        if data_size is None:
            raise InputError(f'{name}="{quantity}" needs data_size, the samples in an epoch; add it or use {unit}')
        return number * data_size
    if kind == "steps":
        if batch is None:
            raise InputError(f'{name}="{quantity}" needs a batch size; add it or use {unit}')
        return number * batch
    if kind == unit:
        return number
    if sequence is None:
        raise InputError(
            f'{name}="{quantity}" is in {kind}, but the clock counts {unit}; give batch.sequence, the tokens in a '
            "sample, or set batch.unit"
        )
    return number * sequence if unit == "tokens" else number / sequence
