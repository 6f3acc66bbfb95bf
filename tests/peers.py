"""Other libraries, imported as they are, whatever hardware their torchvision was built for."""

import importlib
import importlib.util
import warnings
from functools import cache

import pytest
import torch


def peer(name):
    """Import a library, or skip where it is not there or cannot be imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _torchvision()
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{name}: {error}")


@cache
def _torchvision():
    """Give a torchvision that was built for other hardware the operators that it misses: others import it."""
    kept = torch.library.Library("torchvision", "FRAGMENT")  # the definitions live as long as it does
    if importlib.util.find_spec("torchvision") is None:
        return kept
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for missing in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
            kept.define(missing)
        importlib.import_module("torchvision")
    return kept
