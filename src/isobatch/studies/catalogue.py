"""The studies by name."""

import importlib
from typing import Any

from isobatch.errors import InputError

STUDIES = {
    "adam": "Adam at any batch size: which rule holds when",
    "progressive": "Changing the batch in the middle of a run",
}


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
