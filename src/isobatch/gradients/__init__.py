"""Gradients as they are made: what wraps a model or an optimizer, and one set of hooks for all who look at chunks."""

from isobatch.gradients.wrappers import (
    ALONE,
    Ranks,
    bare_optimizer,
    canonical,
    process_group_of,
    unwrap,
    world_size,
)

__all__ = [
    "ALONE",
    "Ranks",
    "bare_optimizer",
    "canonical",
    "process_group_of",
    "unwrap",
    "world_size",
]
