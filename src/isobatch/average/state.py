"""Settings that the kinds of average share, and states: tensors by name, JSON-able values, how they are taken over."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from isobatch.average.binding import AVERAGED
from isobatch.average.buffers import AverageBuffers
from isobatch.average.clock import checked_half_life
from isobatch.average.kernels import refuse_beyond
from isobatch.curves import NoWarmup, Warmup
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import canonical, dressed, first_not_finite, fitted, local
from isobatch.units import half_life as half_life_of

FORMAT = 1
# Classes under the names that they had when states of this format were first written.
RENAMED = {"Horizons": "MultiEMA", "UniformTail": "SWA", "RecentMean": "LAWA"}

_PREFIXES = ("module.", "ema_model.", "model.")

Settings = Literal["match", "saved", "given"]
Missing = Literal["refuse", "weights"]
Unexpected = Literal["refuse", "drop"]


def storage_settings(buffers: AverageBuffers) -> dict[str, Any]:
    """Return the settings that shape the tensors, JSON-able.

    Args:
        buffers: the averages.

    Returns:
        dtype, buffers and rounding.
    """
    return {
        "dtype": str(buffers.dtype).removeprefix("torch."),
        "buffers": buffers.of_buffers,
        "rounding": buffers.rounding,
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


def several(name: str, values: object) -> tuple[Any, ...]:
    """Return a sequence of numbers as a tuple, or refuse it.

    Args:
        name: what they are, for the message.
        values: from the caller.

    Returns:
        The values, not checked further.

    Raises:
        InputError: no sequence, or an empty one.

    Example:
        >>> several("half_lives", [10, 100])
        (10, 100)
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name}={values!r} must be a list of numbers, such as [1_000, 10_000]")
    found = tuple(values)
    if not found:
        raise InputError(f"{name}=[] must be at least one number, all different")
    return found


def fitting_warmup(warmup: Warmup | None, batch_size: float | None) -> Warmup:
    """Return the warm-up of an average, fitted to the batch at which its decay was stated.

    Args:
        warmup: from the caller; None for none.
        batch_size: reference batch of the decay, or None.

    Returns:
        The warm-up in force.

    Raises:
        InputError: something else than a warm-up.

    Example:
        >>> fitting_warmup(None, None)
        NoWarmup()
    """
    if warmup is None:
        return NoWarmup()
    if not isinstance(warmup, Warmup):
        raise InputError(f"warmup={warmup!r} must be a warm-up such as Ramp(0.09) or timm_warmup(), or None")
    return warmup.fitted(batch_size)


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
            f"which={which!r}: there is one average here; leave it out (MultiEMA and PowerEMA hold several)"
        )


def no_half_life(half_life: float | None, kind: str) -> None:
    """Refuse a half-life per step where the kind has none.

    Args:
        half_life: must be None.
        kind: class name, for the message.

    Raises:
        InputError: anything else.

    Example:
        >>> no_half_life(None, "SWA")
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
    wanted = float(which) if isinstance(which, Real) and not isinstance(which, bool) else math.nan
    found = [k for k, value in enumerate(values) if math.isclose(value, wanted, rel_tol=1e-9)]
    if which is None and len(values) == 1:
        return 0
    if not found:
        raise InputError(f"which={which!r} must be a {name} of this average: one of {list(values)}")
    return found[0]


def tensors_out(buffers: AverageBuffers) -> dict[str, Tensor]:
    """Return every tensor of the averages by role and name; they are not copies.

    Args:
        buffers: the averages.

    Returns:
        "average/<name>", or "average.<k>/<name>" where there are several; likewise compensation and previous; the
        state of each random generator. Of a sharded model each rank has its shards, as DTensors.
    """
    found, live = {}, buffers.live()
    for role, stacks in buffers.roles.items():
        for name, stack in stacks.tensors.items():
            for k in range(stack.shape[0]):
                found[_key(role, k, stack.shape[0], name)] = dressed(stack[k], live[name])
    for device, generator in buffers.generators.items():
        found[f"generator/{device}"] = generator.get_state()
    return found


def tensors_in(
    buffers: AverageBuffers, tensors: Mapping[str, Tensor], missing: Missing, unexpected: Unexpected
) -> None:
    """Copy saved tensors into the averages, matched by name; nothing is changed unless everything fits.

    Args:
        buffers: the averages.
        tensors: what tensors_out() returned, here or on another device; tied tensors under any of their names.
        missing: "refuse", or "weights": averages that were not saved start at the present weights.
        unexpected: "refuse", or "drop" what is not averaged here.

    Raises:
        InputError: names or shapes differ, or something that is no tensor.
        NonFiniteError: a saved average that is not finite, by name.
    """
    if missing not in ("refuse", "weights") or unexpected not in ("refuse", "drop"):
        raise InputError(
            f'missing={missing!r} must be "refuse" or "weights", unexpected={unexpected!r} "refuse" or "drop"'
        )
    mine = {key: t for key, t in tensors_out(buffers).items() if not key.startswith("generator/")}
    saved = _named({k: t for k, t in tensors.items() if not str(k).startswith("generator/")}, mine, buffers.aliases)
    absent, extra = sorted(mine.keys() - saved.keys()), sorted(saved.keys() - mine.keys())
    if absent and missing == "refuse":
        raise InputError(f'the state lacks {absent[:5]}; missing="weights" starts them at the present weights')
    if extra and unexpected == "refuse":
        raise InputError(f'the state holds {extra[:5]}, not averaged here; unexpected="drop" leaves them out')
    shared = {key: _part(saved[key], mine[key], key) for key in sorted(mine.keys() & saved.keys())}
    still = {key for key in shared if key.partition("/")[2] in buffers.still}
    _fitting(buffers, shared, mine, "in the state", still)
    random = {device: _generator(tensors, device) for device in buffers.generators}
    if absent:
        buffers.reset()
        mine = tensors_out(buffers)
    with torch.no_grad():
        for key, tensor in shared.items():
            local(mine[key]).copy_(tensor)
    for device, state in random.items():
        if state is not None:
            buffers.generators[device].set_state(state)


def plain_in(buffers: AverageBuffers, tensors: Mapping[str, Tensor], places: Sequence[int]) -> None:
    """Copy one average from tensors named as in a model, such as another library's average.

    Args:
        buffers: the averages.
        tensors: by name, with or without "module." (any number of them) before all names; tied ones under any name.
        places: which of the K averages it becomes.

    Raises:
        InputError: a name is missing, a shape differs, or something that is no tensor.
        NonFiniteError: a tensor that is not finite, by name.
    """
    if not isinstance(tensors, Mapping):
        raise InputError(
            f"tensors={type(tensors).__name__} must be a mapping of names to tensors, as a state_dict() is"
        )
    found = {canonical(str(name)): tensor for name, tensor in tensors.items()}
    mine = buffers.values(places[0])
    reach = mine.keys() | buffers.aliases.keys()
    while not found.keys() & reach:
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    for alias, name in buffers.aliases.items():
        if alias in found:
            found.setdefault(name, found[alias])
    absent = sorted(mine.keys() - found.keys())
    if absent:
        raise InputError(f"the tensors lack {absent[:5]}; they hold {sorted(found)[:5]}")
    parts = {name: _part(found[name], average, name) for name, average in mine.items()}
    _fitting(buffers, parts, mine, "there", buffers.still)
    rests = buffers.roles["compensation"].tensors if "compensation" in buffers.roles else {}
    with torch.no_grad():
        for place in places:
            for name, stack in buffers.roles["average"].tensors.items():
                stack[place].copy_(parts[name])
            for rest in rests.values():
                rest[place].zero_()  # what rounding lost of the average that was there


def _named(saved: Mapping[Any, Any], mine: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Saved tensors under the names that are used here."""
    found: dict[str, Any] = {}
    for key, tensor in saved.items():
        role, _, name = str(key).partition("/")
        found[f"{role}/{canonical(name)}"] = tensor
    for key in [key for key in found if key not in mine]:
        role, _, name = key.partition("/")
        first = f"{role}/{aliases.get(name)}"
        if name not in aliases or first not in mine:
            continue
        if first not in found:
            found[first] = found.pop(key)
        elif (
            isinstance(found[key], Tensor)
            and isinstance(found[first], Tensor)
            and torch.equal(found[key], found[first])
        ):
            del found[key]
    return found


def _part(given: Any, mine: Tensor, name: str) -> Any:
    """Return this rank's part of what was given."""
    return fitted(given, mine, name) if isinstance(given, Tensor) else given


def _fitting(
    buffers: AverageBuffers, given: Mapping[str, Any], mine: Mapping[str, Tensor], where: str, still: Collection[str]
) -> None:
    """Refuse tensors that cannot be copied into the averages as they are."""
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            what = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"on {tensor.device}, {tensor.layout}"
            raise InputError(f"{name!r} {where} is no plain tensor ({what}); give what state_dict() returned")
        if tensor.shape != local(mine[name]).shape:
            raise InputError(f"{name!r} has shape {tuple(tensor.shape)} {where}, {tuple(mine[name].shape)} here")
        if tensor.dtype not in AVERAGED or (tensor.is_complex() and not mine[name].is_complex()):
            raise InputError(f"{name!r} is {tensor.dtype} {where}, {mine[name].dtype} here; convert it first")
        refuse_beyond(name, tensor, mine[name].dtype)
    bad = buffers.shards.first(first_not_finite(given, still), given)
    if bad is not None:
        raise NonFiniteError(
            f"{bad!r} {where} is not finite, and the average would never recover; nothing was changed. Load an older "
            "state",
            parameter=bad.partition("/")[2] or bad,
        )


def _generator(tensors: Mapping[str, Any], device: torch.device) -> Tensor | None:
    state = tensors.get(f"generator/{device}")
    if state is None:
        return None
    size = torch.Generator(device).get_state().numel()
    if not isinstance(state, Tensor) or state.numel() != size:
        raise InputError(f"'generator/{device}' is no state of a random generator ({size} bytes); the state is damaged")
    return state.to("cpu", torch.uint8)


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
        if policy == "given" and _turned(was, now):
            raise InputError(
                f"{key}={was!r} in the state, {now!r} here: the same in another order, so that each average would go "
                f"on under the name of another; build it with {key}={was!r}"
            )
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
    if not isinstance(state, Mapping) or not {"values", "tensors"} <= state.keys():
        keys = sorted(map(str, state))[:5] if isinstance(state, Mapping) else type(state).__name__
        raise InputError(f'not a state of an average: keys {keys}, "values" and "tensors" are needed')
    values, tensors = state["values"], state["tensors"]
    if not isinstance(values, Mapping) or not isinstance(tensors, Mapping):
        raise InputError('"values" and "tensors" of the state must be mappings; it was damaged')
    absent = sorted({"class", "format", "settings", "clock"} - values.keys())
    if absent:
        raise InputError(f"the state of the average lacks {absent}; it was written by another program or damaged")
    saved = RENAMED.get(values["class"], values["class"]) if isinstance(values["class"], str) else values["class"]
    if saved != kind:
        raise InputError(f"the state is of a {saved}, not of a {kind}; build that kind to load it")
    if isinstance(values["format"], bool) or not isinstance(values["format"], int):
        raise InputError(f"the state has format {values['format']!r}, not a number; it was damaged")
    if values["format"] > FORMAT:
        raise InputError(f"the state has format {values['format']}, this version reads up to {FORMAT}; update isobatch")
    if not isinstance(values["settings"], Mapping):
        raise InputError("the settings in the state are no mapping; it was damaged")
    return values, tensors


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, float) and isinstance(now, int | float):
        return math.isclose(was, now, rel_tol=1e-9)
    if isinstance(was, list | tuple) and isinstance(now, list | tuple):
        return len(was) == len(now) and all(_same(a, b) for a, b in zip(was, now, strict=True))
    return was == now


def _turned(was: Any, now: Any) -> bool:
    """Whether two lists hold the same numbers in another order."""
    lists = isinstance(was, list | tuple) and isinstance(now, list | tuple)
    return lists and not _same(was, now) and _same(sorted(was, key=str), sorted(now, key=str))


def _key(role: str, index: int, count: int, name: str) -> str:
    return f"{role}/{name}" if count == 1 else f"{role}.{index}/{name}"
