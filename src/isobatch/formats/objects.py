"""Config objects: planned and returned as a new object of the same kind; the old one is not touched."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from isobatch.errors import InputError
from isobatch.formats.loading import like_a_mapping, load
from isobatch.formats.texts import Key

C = TypeVar("C")


def scale_config(
    config: C,
    batch_size: int | None = None,
    *,
    devices: int | None = None,
    new_devices: int | None = None,
    micro: int | None = None,
    keep_batch: bool = False,
    data_size: int | None = None,
    format: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> C:
    """Return a config object at another batch, every number that moves with the batch moved.

    Args:
        config: a mapping, a dataclass, a namespace, `TrainingArguments`, OmegaConf's DictConfig, ml_collections'
            ConfigDict, mmengine's Config, ...
        batch_size: the new global batch; unless given the one that new_devices take.
        devices: data-parallel devices that the config is for, where it does not say it.
        new_devices: data-parallel devices that it shall be for.
        micro: samples per device and forward pass.
        keep_batch: keep the batch, and accumulate.
        data_size: samples in an epoch, where the config does not say it.
        format: the name of the format, where it cannot be told.
        set: further answers by name.

    Returns:
        A new config of the same kind.

    Raises:
        Unanswered: the config leaves things open.
        InputError: no known format, or a batch that does not fit.

    Example:
        >>> args = {"per_device_train_batch_size": 8, "learning_rate": 1e-4, "max_steps": 1000, "adam_beta2": 0.98}
        >>> new = scale_config(args, 32, devices=1)
        >>> new["gradient_accumulation_steps"], new["learning_rate"], new["max_steps"]
        (4, 0.0002, 250)
    """
    found = load(config, data_size=data_size, devices=devices, format=format, set=set)
    made = found.at(batch_size, devices=new_devices, micro=micro, keep_batch=keep_batch)
    out = config
    for key, value in made.edits().items():
        out = _with(out, key, value)
    return out


def _with(held: Any, key: Key, value: Any) -> Any:
    """Return a copy of an object with one value changed, what is on the way copied as well."""
    if not key:
        return value
    part, rest = key[0], key[1:]
    if isinstance(held, Mapping):
        name = next((own for own in held if str(own) == part), part)
        inner = held.get(name, {} if rest else None)
        out: Any = copy.copy(held)
        out[name] = _with(inner, rest, value)
        return out
    if like_a_mapping(held):
        out = copy.deepcopy(held)
        names = {str(name): name for name in out.keys()}  # noqa: SIM118
        if part not in names:
            raise InputError(f"{type(held).__name__} has no {part}, which the plan changes to {value!r}; add it")
        out[names[part]] = _with(out[names[part]], rest, value)
        return out
    if isinstance(held, (list, tuple)) and isinstance(part, int):
        items = [_with(item, rest, value) if index == part else item for index, item in enumerate(held)]
        return tuple(items) if isinstance(held, tuple) else items
    absent = object()
    inner = getattr(held, str(part), absent)
    if inner is absent:
        raise InputError(f"{type(held).__name__} has no {part}, which the plan changes to {value!r}; add it")
    new = _with(inner, rest, value)
    if dataclasses.is_dataclass(held) and not isinstance(held, type) and held.__dataclass_params__.frozen:
        return dataclasses.replace(held, **{str(part): new})
    out = copy.copy(held)
    setattr(out, str(part), new)
    return out
