"""MLPerf's files of reference convergence points: their form, and the unit that a benchmark used in a round."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isobatch.errors import InputError

_OLD = ("1.0.0", "1.1.0", "2.0.0", "2.1.0", "3.0.0", "3.1.0")
ROUNDS = {
    "training": (*_OLD, "4.0.0", "4.1.0", "5.0.0", "5.1.0", "6.0.0", "6.1.0"),
    "hpc": ("1.0.0", "2.0.0", "3.0.0"),
}
_ROUND = re.compile(r"^(training|hpc)_([0-9]+\.[0-9]+\.[0-9]+)$")
_VALUES, _BATCH = "Epochs to converge", "BS"  # the key is the same whatever the unit

# benchmark -> (first round, unit, samples in one unit) by rising round
_UNITS: dict[str, tuple[tuple[str, str, float | None], ...]] = {
    "resnet": (("1.0.0", "epochs", 1281167),),
    "bert": (("1.0.0", "samples", None),),
    "rnnt": (("1.0.0", "epochs", 278528),),
    "rnn_t": (("1.0.0", "epochs", 278528),),
    "maskrcnn": (("1.0.0", "epochs", 117266),),
    "unet3d": (("1.0.0", "epochs", 168), ("3.1.0", "samples", None)),
    "retinanet": (("5.0.0", "epochs", 1170301),),
    "ssd": (("1.0.0", "epochs", 117266), ("2.0.0", "epochs", 1170301)),
    "dlrm_dcnv2": (("3.0.0", "epochs", 4195197692),),
    "gpt3": (("3.0.0", "tokens", 1 / 2048),),
    "stable_diffusion": (("3.1.0", "steps", None), ("4.0.0", "samples", None)),
    "sd": (("3.1.0", "steps", None), ("4.0.0", "samples", None)),
    "rgat": (("5.0.0", "epochs", None),),
    "gnn": (("4.0.0", "epochs", None),),
    "llama2_70b_lora": (("4.0.0", "samples", None),),
    "llama31_405b": (("5.0.0", "samples", None),),
    "llama31_8b": (("5.1.0", "samples", None),),
    "flux1": (("5.1.0", "samples", None),),
    "gpt_oss_20b": (("6.0.0", "samples", None),),
    "deepseekv3_671b": (("6.0.0", "samples", None),),
    "qwen35_397b_grpo": (("6.1.0", "samples", None),),
    "cosmoflow": (("1.0.0", "epochs", None),),
    "deepcam": (("1.0.0", "epochs", None),),
    "oc20": (("1.0.0", "epochs", None),),
}


def is_reference(content: Any) -> bool:
    """Whether a file has the form of reference convergence points.

    Args:
        content: of a JSON file.

    Returns:
        The answer.
    """
    return isinstance(content, Mapping) and any(
        isinstance(entry, Mapping) and _BATCH in entry and _VALUES in entry for entry in content.values()
    )


def reference_unit(content: Mapping[str, Any], path: Path, edition: str | None) -> tuple[str, float | None]:
    """Return the unit that a benchmark used in a round; the file itself does not say it.

    Args:
        content: of the file.
        path: whose folder names the round, such as training_4.1.0.
        edition: the round, instead of the folder.

    Returns:
        The unit, and the samples in one where that is known.

    Raises:
        InputError: an unknown round or benchmark, or several benchmarks.
    """
    names = {str(entry.get("Benchmark")).lower() for entry in content.values() if isinstance(entry, Mapping)}
    if len(names) != 1:
        raise InputError(
            f"{path} holds several benchmarks: {', '.join(sorted(names))}; a table holds one: keep its entries alone"
        )
    said = (
        edition if edition is not None else next((p for p in reversed(path.resolve().parts) if _ROUND.match(p)), None)
    )
    match = _ROUND.match(said) if said is not None else None
    if match is None or match[2] not in ROUNDS[match[1]]:
        known = ", ".join(f"{kind}_{number}" for kind, numbers in ROUNDS.items() for number in numbers)
        raise InputError(
            f"{path}: the round {said!r} is unknown, and units change by round; name one of {known}, or the unit"
        )
    (name,) = names
    units = [row for row in _UNITS.get(name, ()) if _order(row[0]) <= _order(match[2])]
    if not units:
        raise InputError(
            f"{path}: the unit of {name!r} in {said} is not known; name it: steps, samples, tokens, epochs"
        )
    return units[-1][1:]


def reference_rows(content: Mapping[str, Any], unit: str) -> list[dict[str, Any]]:
    """Return a file's points as rows.

    Args:
        content: of the file.
        unit: of its values.

    Returns:
        Rows with a batch and a list of values.

    Raises:
        InputError: an entry of another form.
    """
    for key, entry in content.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get(_VALUES), list):
            raise InputError(f"{key} must hold {_BATCH} and a list of {_VALUES!r}; correct the entry, or leave it out")
    return [{"batch": entry.get(_BATCH), unit: entry[_VALUES]} for entry in content.values()]


def _order(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))
