"""Averages of a model's weights on the sample clock."""

from isobatch.errors import warn
from isobatch.installed import need

need("torch")

from typing import Any

from isobatch.average.base import ModelAverage
from isobatch.average.binding import trainable
from isobatch.average.ema import ModelEMA, MultiEMA, SwitchEMA
from isobatch.average.engine import Report
from isobatch.average.layout import Storage
from isobatch.average.power import PowerEMA, Snapshot, exponent, synthesize
from isobatch.average.schedules import (
    MomentumSchedule,
    cosine_momentum,
    crowson_warmup,
    diffusers_warmup,
    ema_pytorch_warmup,
    mmengine_warmup,
    tensorflow_warmup,
    timm_warmup,
    ultralytics_warmup,
)
from isobatch.average.statistics import ObservedMean, recalibrate
from isobatch.average.uniform import LAWA, SWA
from isobatch.curves import CopyUntil, Debias, LinearRamp, Ramp, StepWarmup

__all__ = [
    "LAWA",
    "SWA",
    "CopyUntil",
    "Debias",
    "LinearRamp",
    "ModelAverage",
    "ModelEMA",
    "MomentumSchedule",
    "MultiEMA",
    "ObservedMean",
    "PowerEMA",
    "Ramp",
    "Report",
    "Snapshot",
    "StepWarmup",
    "Storage",
    "SwitchEMA",
    "cosine_momentum",
    "crowson_warmup",
    "diffusers_warmup",
    "ema_pytorch_warmup",
    "exponent",
    "mmengine_warmup",
    "recalibrate",
    "synthesize",
    "tensorflow_warmup",
    "timm_warmup",
    "trainable",
    "ultralytics_warmup",
]

_RENAMED = {"Horizons": MultiEMA, "UniformTail": SWA, "RecentMean": LAWA}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        now = _RENAMED[name]
        warn(f"isobatch.average.{name} is now {now.__name__}", DeprecationWarning)
        return now
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
