"""The warm-ups of other libraries by their names and words; see StepWarmup for what batch_size changes."""

from isobatch.average.stepwarmup import Curve, StepWarmup
from isobatch.units import whole


def tensorflow_warmup(batch_size: float | None = None) -> StepWarmup:
    """Return the warm-up of TensorFlow and torch-ema, (1 + t) / (10 + t) from t = 1.

    Args:
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> tensorflow_warmup().first
        1
    """
    return StepWarmup("tensorflow", first=1, batch_size=batch_size)


def diffusers_warmup(
    *,
    use_ema_warmup: bool = False,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    update_after_step: int = 0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of diffusers: (1 + t) / (10 + t), or crowson's with use_ema_warmup; the first step copies.

    Args:
        use_ema_warmup: as there.
        inv_gamma: as there.
        power: as there.
        update_after_step: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> diffusers_warmup().copies
        1
    """
    curve: Curve = "crowson" if use_ema_warmup else "tensorflow"
    copies = whole("update_after_step", update_after_step, 0) + 1
    return StepWarmup(curve, scale=inv_gamma, power=power, first=1, copies=copies, batch_size=batch_size)


def crowson_warmup(
    *,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    min_decay: float = 0.0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of k-diffusion, 1 - (1 + t / inv_gamma)**-power from t = 0.

    Args:
        inv_gamma: as there.
        power: as there.
        min_decay: as there (min_value).
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> crowson_warmup(power=0.75).power
        0.75
    """
    return StepWarmup("crowson", inv_gamma, power, min_decay=min_decay, batch_size=batch_size)


def timm_warmup(
    *,
    warmup_gamma: float = 1.0,
    warmup_power: float = 2 / 3,
    min_decay: float = 0.0,
    update_after_step: int = 0,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of timm's ModelEmaV3 with use_warmup, told the steps 0, 1, 2, ...

    Args:
        warmup_gamma: as there.
        warmup_power: as there.
        min_decay: as there.
        update_after_step: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> timm_warmup().copies
        2
    """
    copies = whole("update_after_step", update_after_step, 0) + 2
    return StepWarmup("crowson", warmup_gamma, warmup_power, 1, copies, min_decay, batch_size)


def ema_pytorch_warmup(
    *,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
    min_value: float = 0.0,
    update_after_step: int = 100,
    batch_size: float | None = None,
) -> StepWarmup:
    """Return the warm-up of ema-pytorch's EMA.

    Args:
        inv_gamma: as there.
        power: as there.
        min_value: as there.
        update_after_step: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> ema_pytorch_warmup().copies
        101
    """
    copies = whole("update_after_step", update_after_step, 0) + 1
    return StepWarmup("crowson", inv_gamma, power, 1, copies, min_value, batch_size)


def ultralytics_warmup(tau: float = 2000.0, batch_size: float | None = None) -> StepWarmup:
    """Return the warm-up of ultralytics, rho * (1 - exp(-t / tau)) from t = 1.

    Args:
        tau: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> ultralytics_warmup().scale
        2000.0
    """
    return StepWarmup("exponential", tau, first=1, batch_size=batch_size)


def mmengine_warmup(gamma: float = 100.0, batch_size: float | None = None) -> StepWarmup:
    """Return the annealing of MMEngine: the weight of new weights is max(momentum, gamma / (gamma + t)) from t = 0.

    Args:
        gamma: as there.
        batch_size: reference batch whose steps are counted; None counts calls, which is not batch-invariant.

    Returns:
        The warm-up.

    Example:
        >>> mmengine_warmup().curve
        'annealing'
    """
    return StepWarmup("annealing", gamma, batch_size=batch_size)
