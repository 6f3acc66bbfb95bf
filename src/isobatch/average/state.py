"""State of an average as tensors by name and JSON-able values, and how a saved state is taken over."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from isobatch.average.binding import canonical
from isobatch.average.tracks import Tracks
from isobatch.errors import InputError

FORMAT = 1

Settings = Literal["match", "saved", "given"]
Missing = Literal["refuse", "weights"]
Unexpected = Literal["refuse", "drop"]


def tensors_out(tracks: Tracks) -> dict[str, Tensor]:
    """Return every tensor of the averages by role and name; they are not copies.

    Args:
        tracks: the averages.

    Returns:
        "average/<name>", or "average.<k>/<name>" where there are several; likewise compensation and previous; the
        state of each random generator.
    """
    found = {}
    for role, stacks in tracks.roles.items():
        for name, stack in stacks.tensors.items():
            for k in range(stack.shape[0]):
                found[_key(role, k, stack.shape[0], name)] = stack[k]
    for device, generator in tracks.generators.items():
        found[f"generator/{device}"] = generator.get_state()
    return found


def tensors_in(tracks: Tracks, tensors: Mapping[str, Tensor], missing: Missing, unexpected: Unexpected) -> None:
    """Copy saved tensors into the averages, matched by name; nothing is changed unless everything fits.

    Args:
        tracks: the averages.
        tensors: what tensors_out() returned, here or on another device.
        missing: "refuse", or "weights": averages that were not saved start at the present weights.
        unexpected: "refuse", or "drop" what is not averaged here.

    Raises:
        InputError: names or shapes differ.
    """
    saved = {_canonical(key): tensor for key, tensor in tensors.items() if not key.startswith("generator/")}
    mine = {key: t for key, t in tensors_out(tracks).items() if not key.startswith("generator/")}
    absent, extra = sorted(mine.keys() - saved.keys()), sorted(saved.keys() - mine.keys())
    if absent and missing == "refuse":
        raise InputError(f'the state lacks {absent[:5]}; missing="weights" starts them at the present weights')
    if extra and unexpected == "refuse":
        raise InputError(f'the state holds {extra[:5]}, not averaged here; unexpected="drop" leaves them out')
    for key in sorted(mine.keys() & saved.keys()):
        if mine[key].shape != saved[key].shape:
            raise InputError(f"{key!r} has shape {tuple(saved[key].shape)} in the state, {tuple(mine[key].shape)} here")
    if absent:
        tracks.reset()
        mine = tensors_out(tracks)
    for key in sorted(mine.keys() & saved.keys()):
        mine[key].copy_(saved[key])
    for device, generator in tracks.generators.items():
        key = f"generator/{device}"
        if key in tensors:
            generator.set_state(tensors[key].to("cpu", torch.uint8))


def plain_in(tracks: Tracks, tensors: Mapping[str, Tensor], index: int) -> None:
    """Copy one average from tensors named as in a model, such as another library's average.

    Args:
        tracks: the averages.
        tensors: by name, with or without "module." before all names.
        index: which average.

    Raises:
        InputError: a name is missing or a shape differs.
    """
    found = {canonical(name): tensor for name, tensor in tensors.items()}
    mine = tracks.values(index)
    for prefix in ("module.", "ema_model.", "model."):
        if not mine.keys() <= found.keys() and all(prefix + name in found for name in mine):
            found = {name: found[prefix + name] for name in mine}
    absent = sorted(mine.keys() - found.keys())
    if absent:
        raise InputError(f"the tensors lack {absent[:5]}; they hold {sorted(found)[:5]}")
    for name, average in mine.items():
        if average.shape != found[name].shape:
            raise InputError(f"{name!r} has shape {tuple(found[name].shape)} there, {tuple(average.shape)} here")
    for name, average in mine.items():
        average.copy_(found[name])


def winner(
    saved: Mapping[str, Any], given: Mapping[str, Any], policy: Settings, fixed: frozenset[str]
) -> Mapping[str, Any]:
    """Return the settings that hold after a load.

    Args:
        saved: settings in the state.
        given: settings of this object.
        policy: "match" refuses a difference, "saved" or "given" name the winner.
        fixed: settings that shape the tensors; "saved" cannot change them in an object that exists.

    Returns:
        The settings to use.

    Raises:
        InputError: a difference that the policy does not cover; both values are in the message.

    Example:
        >>> winner({"half_life": 2.0}, {"half_life": 3.0}, "given", frozenset())["half_life"]
        3.0
    """
    if policy not in ("match", "saved", "given"):
        raise InputError(f'settings={policy!r} must be "match", "saved" or "given"')
    for key in sorted(saved.keys() | given.keys()):
        was, now = saved.get(key), given.get(key)
        if _same(was, now) or policy == "given" or (policy == "saved" and key not in fixed):
            continue
        way = f"build it with {key}={was!r}" if key in fixed else 'settings="saved" takes the first'
        raise InputError(f'{key}={was!r} in the state, {now!r} here; {way}, settings="given" keeps the second')
    return given if policy == "given" else saved


def opened(state: Mapping[str, Any] | None, kind: str) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Return values and tensors of a state, checked for kind and format.

    Args:
        state: what state_dict() returned.
        kind: class name of the average that takes it over.

    Returns:
        Values and tensors.

    Raises:
        InputError: no state, another kind of average, or a newer format.
    """
    if state is None:
        raise InputError('the checkpoint holds no average; missing="weights" starts it at the present weights')
    if not {"values", "tensors"} <= state.keys():
        raise InputError(f'not a state of an average: keys {sorted(state)[:5]}, "values" and "tensors" are needed')
    values = state["values"]
    absent = sorted({"class", "format", "settings", "clock"} - values.keys())
    if absent:
        raise InputError(f"the state of the average lacks {absent}; it was written by another program or damaged")
    if values["class"] != kind:
        raise InputError(f"the state is of a {values['class']}, not of a {kind}; build that kind to load it")
    if values["format"] > FORMAT:
        raise InputError(f"the state has format {values['format']}, this version reads up to {FORMAT}; update isobatch")
    return values, state["tensors"]


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, float) and isinstance(now, int | float):
        return math.isclose(was, now, rel_tol=1e-9)
    if isinstance(was, list | tuple) and isinstance(now, list | tuple):
        return len(was) == len(now) and all(_same(a, b) for a, b in zip(was, now, strict=True))
    return was == now


def _key(role: str, index: int, count: int, name: str) -> str:
    return f"{role}/{name}" if count == 1 else f"{role}.{index}/{name}"


def _canonical(key: str) -> str:
    role, _, name = key.partition("/")
    return f"{role}/{canonical(name)}"
