"""One file a format; their order is that of the documentation."""

from isobatch.formats.format import Format
from isobatch.formats.stacks import hf, litgpt, megatron, nanogpt, neox

FORMATS: tuple[Format, ...] = (
    hf.FORMAT,
    nanogpt.FORMAT,
    litgpt.FORMAT,
    megatron.FORMAT,
    neox.NEOX,
    neox.DEEPSPEED,
)

__all__ = ["FORMATS"]
