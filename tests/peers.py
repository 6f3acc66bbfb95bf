"""Other libraries, imported as they are, whatever hardware their torchvision was built for."""

import importlib
import warnings

import pytest
import torch

_KEPT = []  # the definitions live as long as their Library


def peer(name):
    """Import a library or skip; a torchvision built for other hardware is given the operators that it misses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::" not in str(error) or _KEPT:
                pytest.skip(f"{name}: {error}")
            _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
            for missing in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
                _KEPT[0].define(missing)
            return peer(name)
        except ImportError as error:
            pytest.skip(f"{name}: {error}")
