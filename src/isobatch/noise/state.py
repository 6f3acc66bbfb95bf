"""What a NoiseScale writes into a checkpoint, and what must agree when it is read back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isobatch.errors import InputError

if TYPE_CHECKING:
    from isobatch.noise.scale import NoiseScale


def values_of(noise: "NoiseScale", history: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a state.

    Args:
        noise: whose state.
        history: values of its history.

    Returns:
        Settings, clock and history.
    """
    return {
        "class": "NoiseScale",
        "settings": _settings(noise),
        "clock": {
            "seen": noise.seen,
            "measured_at": noise.measured_at,
            "turn": noise.turn,
            "mode": noise.mode,
            "coverage": noise.coverage,
            "expected": noise.expected,
            "reason": noise.reason,
            "armed": noise.armed,
        },
        "pace": {"steps": noise.pace.steps, "last": noise.pace.last, "gap": noise.pace.gap},
        "history": history,
    }


def compare(noise: "NoiseScale", values: Mapping[str, Any]) -> None:
    """Refuse a state of another kind of measurement.

    Args:
        noise: that is to take it.
        values: of the state.

    Raises:
        InputError: naming the first setting that differs, with both values.
    """
    ours, theirs = _settings(noise), values["settings"]
    for key, mine in ours.items():
        if theirs.get(key) != mine:
            raise InputError(
                f"the state was kept with {key}={theirs.get(key)!r}, this NoiseScale has {key}={mine!r}; "
                "build it alike, or start a new estimate"
            )


def restore(noise: "NoiseScale", state: Mapping[str, Any]) -> None:
    """Take over a state that fits.

    Args:
        noise: that takes it.
        state: tensors and values.
    """
    tensors, values = state["tensors"], state["values"]
    parameters: dict[str, Tensor] = {noise.columns.name_of(p): p for p in noise.columns.model.parameters()}
    device = next(iter(parameters.values())).device
    noise.history.load(tensors, values["history"], len(noise.columns), device)
    trusted: dict[Tensor, Tensor] = {
        parameters[name]: tensors[f"trusted/{name}"].detach().to(device, copy=True)
        for name in parameters
        if f"trusted/{name}" in tensors
    }
    noise.trusted = trusted or None
    clock, pace = values["clock"], values["pace"]
    noise.seen, noise.measured_at, noise.turn = clock["seen"], clock["measured_at"], clock["turn"]
    noise.mode, noise.coverage, noise.expected = clock["mode"], clock["coverage"], clock["expected"]
    noise.reason = clock["reason"]
    noise.pace.steps, noise.pace.last, noise.pace.gap = pace["steps"], pace["last"], pace["gap"]


def _settings(noise: "NoiseScale") -> dict[str, Any]:
    return {
        "geometry": noise.geometry.name,
        "unit": noise.unit,
        "data_size": noise.data_size,
        "half_life": noise.history.half_life,
        "columns": noise.columns.names,
    }
