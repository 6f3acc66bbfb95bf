"""One file a format; their order is that of the documentation."""

from isobatch.formats.format import Format
from isobatch.formats.stacks import (
    composer,
    detectron2,
    dfine,
    diffusers,
    dino,
    edm,
    hf,
    lerobot,
    lightning,
    litgpt,
    mae,
    megatron,
    mmengine,
    nanochat,
    nanogpt,
    neox,
    olmo_core,
    open_clip,
    timm,
    torchtitan,
    torchtune,
    ultralytics,
    verl,
)
from isobatch.formats.stacks.others import OTHERS

FORMATS: tuple[Format, ...] = (
    hf.FORMAT,
    nanogpt.FORMAT,
    nanochat.FORMAT,
    litgpt.FORMAT,
    megatron.FORMAT,
    neox.NEOX,
    neox.DEEPSPEED,
    torchtitan.FORMAT,
    olmo_core.FORMAT,
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
    lightning.FORMAT,
    composer.FORMAT,
    edm.FORMAT,
    diffusers.FORMAT,
    open_clip.FORMAT,
    torchtune.FORMAT,
    verl.FORMAT,
    lerobot.FORMAT,
)
"""Every format that is read, in the order in which a file is tried."""

__all__ = ["FORMATS", "OTHERS"]
