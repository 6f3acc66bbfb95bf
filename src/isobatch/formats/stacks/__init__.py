"""One file a format; their order is that of the documentation."""

from isobatch.formats.format import Format
from isobatch.formats.stacks import (
    detectron2,
    dfine,
    dino,
    hf,
    litgpt,
    mae,
    megatron,
    mmengine,
    nanogpt,
    neox,
    timm,
    ultralytics,
)

FORMATS: tuple[Format, ...] = (
    hf.FORMAT,
    nanogpt.FORMAT,
    litgpt.FORMAT,
    megatron.FORMAT,
    neox.NEOX,
    neox.DEEPSPEED,
    timm.FORMAT,
    dino.V1,
    dino.V2,
    dino.V3,
    mae.MAE,
    mae.MOCO,
    dfine.FORMAT,
    dfine.RFDETR,
    ultralytics.FORMAT,
    mmengine.FORMAT,
    detectron2.FORMAT,
)

__all__ = ["FORMATS"]
