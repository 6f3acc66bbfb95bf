"""The state of the random generators, in values that a checkpoint can hold."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from isobatch.errors import InputError


def rng_state() -> dict[str, Any]:
    """Return the global generators of Python, numpy and torch (CPU and every GPU) of this process.

    Returns:
        Tensors and JSON values for a checkpoint.

    Raises:
        InputError: numpy's global generator was replaced by another kind.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(2)
        >>> set_rng_state(state)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the generator that data sets use
    if legacy["bit_generator"] != "MT19937":
        raise InputError(f"numpy's global generator is {legacy['bit_generator']}, not MT19937; keep its state yourself")
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the generators back where `rng_state` found them.

    Args:
        state: what `rng_state` gave.

    Raises:
        InputError: another number of GPUs; nothing was changed.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(state["cuda"]) != devices:
        raise InputError(
            f"field cuda: {len(state['cuda'])} GPU generators in the checkpoint, {devices} GPUs here; give the state "
            'with "cuda" cut or padded to them'
        )
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = {"key": legacy["key"].numpy().astype(np.uint32), "pos": legacy["pos"]}
    rest = {"has_gauss": legacy["has_gauss"], "gauss": legacy["gauss"]}
    np.random.set_state({"bit_generator": "MT19937", "state": words, **rest})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(generator, device)
