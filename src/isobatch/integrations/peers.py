"""Averages that other libraries saved: torch, timm, ema-pytorch, torch-ema, diffusers, Lightning."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from isobatch.average import SWA, ModelAverage, ModelEMA
from isobatch.errors import InputError
from isobatch.gradients import canonical
from isobatch.units import finite, half_life

_CONTAINERS = ("state_dict_ema", "ema_state_dict", "model_ema")
_COUNTS = ("n_averaged", "optimization_step", "num_updates", "step")


class Adopted(NamedTuple):
    """What a saved average brought.

    Args:
        updates: that it had seen; None where it does not say.
        decay: per update; None where it does not say.
        half_life: in samples that follows from decay and batch size; None without both.
    """

    updates: int | None
    decay: float | None
    half_life: float | None


def load_peer(average: ModelAverage, state: Mapping[str, Any], *, batch_size: float | None = None) -> Adopted:
    """Take over an average that another library saved, with its decay and its count of updates.

    Known are the states of torch's AveragedModel, timm's ModelEmaV3 (and timm's checkpoints, `state_dict_ema`),
    ema-pytorch's EMA, and the lists of torch-ema's ExponentialMovingAverage and diffusers' EMAModel (`shadow_params`,
    in the order of model.parameters()).

    Args:
        average: over a model of the same parameters.
        state: what the library's state_dict() gave.
        batch_size: global samples per update in the run that saved it: turns its decay into the half-life of a
            ModelEMA, and its updates into samples seen.

    Returns:
        What was found.

    Raises:
        InputError: another number of tensors, a missing name, another shape, or no state of an average.

    Example:
        >>> import torch, isobatch as ib
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> ema = ib.ModelEMA(layer, half_life=8)
        >>> saved = {"shadow_params": [torch.full((1, 1), 3.0)], "decay": 0.5, "num_updates": 4}
        >>> load_peer(ema, saved, batch_size=16).half_life, ema.seen, ema.average()["weight"].item()
        (16.0, 64, 3.0)
    """
    if not isinstance(state, Mapping):
        raise InputError(f"state={type(state).__name__} must be what another library's state_dict() returned")
    inner = next((state[key] for key in _CONTAINERS if isinstance(state.get(key), Mapping)), state)
    size = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
    updates = next((int(inner[key]) for key in _COUNTS if _is_number(inner.get(key))), None)
    said = inner.get("decay")
    decay = finite("decay in the state", float(said), 0, 1) if said is not None and _is_number(said) else None
    seen = 0 if size is None or updates is None else updates * size
    if isinstance(average, SWA):  # torch's AveragedModel counts from the begin of the tail
        seen += average.start if seen else 0
    average.load_average(_tensors(average, inner), seen=int(seen) if seen == int(seen) else seen)
    span = None if decay is None or size is None else half_life(decay, size)
    if span is not None and isinstance(average, ModelEMA):
        average.half_life = span
    return Adopted(updates, decay, span)


def _tensors(average: ModelAverage, state: Mapping[str, Any]) -> dict[str, Tensor]:
    shadow = state.get("shadow_params")
    if shadow is None:
        found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        if not found:
            raise InputError(f"the state holds no tensors, only {sorted(map(str, state))[:5]}; give a saved average")
        return found
    if not isinstance(shadow, Sequence):
        raise InputError(f"shadow_params={type(shadow).__name__} must be a list of tensors")
    parameters = [(canonical(name), p) for name, p in average.root.named_parameters()]
    if len(shadow) != len(parameters):  # torch-ema and diffusers may have been given the trainable ones alone
        parameters = [(name, p) for name, p in parameters if p.requires_grad]
    if len(shadow) != len(parameters):
        raise InputError(
            f"{len(shadow)} shadow parameters in the state, {len(parameters)} in the model; build the same model"
        )
    held = {name: p.detach() for name, p in average.root.named_parameters()}
    return {canonical(name): p for name, p in held.items()} | {
        name: tensor for (name, _), tensor in zip(parameters, shadow, strict=True)
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)
