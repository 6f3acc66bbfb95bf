"""The studies by name."""

import importlib
from typing import Any

from isobatch.errors import InputError

STUDIES = {
    "adam": "Adam at any batch size: which rule holds when",
    "adaptive": "A batch that follows the noise scale, against fixed batches",
    "autowu": "AutoWU: a learning rate found without tuning, and a short budget mended",
    "batch-augmentation": "Batch augmentation: many views of each sample in one update",
    "byol": "BYOL: the average is the teacher",
    "concurrent-adversarial": "Adversarial examples made ahead by older weights",
    "decentlam": "Decentralized momentum: who amplifies the inconsistency bias",
    "dino": "DINO: the average is the teacher, and its centre an average too",
    "legw": "LEGW: sixteen times the batch with nothing retuned",
    "noise-scale": "The gradient noise scale against the critical batch, domain by domain",
    "polyak": "Averaged weights: the rule, the width of the place, the average as a teacher",
    "progressive": "Changing the batch in the middle of a run",
    "pseudo-label": "Continual pseudo-labelling: the average labels the data",
}

ON_DEVICES = frozenset({"byol", "dino", "polyak", "pseudo-label"})
"""Studies whose `run` takes a device."""

ON_NODES = frozenset({"decentlam"})
"""Studies whose `run` takes a number of nodes to simulate."""


def find(name: str) -> Any:
    """Return a study's module; its `run` trains, judges and writes.

    Args:
        name: of the study.

    Returns:
        The module.

    Raises:
        InputError: no such study.
    """
    if name not in STUDIES:
        raise InputError(f"study={name!r} must be one of {', '.join(STUDIES)}")
    return importlib.import_module(f"isobatch.studies.{name.replace('-', '_')}.study")


def on_device(name: str, device: str) -> dict[str, str]:
    """Return the arguments that hand a device to a study.

    Args:
        name: of the study.
        device: device and its options in one word.

    Returns:
        Arguments of its `run`, none for the CPU.

    Raises:
        InputError: a study that runs on the CPU only.

    Example:
        >>> on_device("progressive", "cpu")
        {}
    """
    if device == "cpu":
        return {}
    if name not in ON_DEVICES:
        raise InputError(f"study {name} runs on the CPU only; leave --device {device} out")
    return {"device": device}


def on_nodes(name: str, nodes: int | None) -> dict[str, int]:
    """Return the arguments that hand a number of simulated nodes to a study.

    Args:
        name: of the study.
        nodes: how many, None for the study's own.

    Returns:
        Arguments of its `run`.

    Raises:
        InputError: a study without nodes.

    Example:
        >>> on_nodes("decentlam", 1024)
        {'simulate_nodes': 1024}
    """
    if nodes is None:
        return {}
    if name not in ON_NODES:
        raise InputError(f"study {name} has no nodes; leave --simulate-nodes {nodes} out")
    return {"simulate_nodes": nodes}
