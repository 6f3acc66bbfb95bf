"""Gradients as they are made: what wraps a model or an optimizer, and one set of hooks for all who look at chunks."""

from isobatch.installed import need

need("torch")

from isobatch.gradients.batch_rows import BatchRows
from isobatch.gradients.batches import mapped, rebuilt
from isobatch.gradients.compensated import Compiled, Piece
from isobatch.gradients.finite import all_finite, first_not_finite, may_be_finite
from isobatch.gradients.layer_hook import LayerHook
from isobatch.gradients.pass_norms import PassNorms
from isobatch.gradients.reductions import Reading, managing
from isobatch.gradients.rescale_check import RescaleCheck
from isobatch.gradients.shards import (
    Shards,
    address,
    dressed,
    fitted,
    in_place,
    local,
    own_gradient,
    piece,
    refuse_unspreadable,
    settle,
    sharded,
)
from isobatch.gradients.tap import (
    Member,
    Receiver,
    Tap,
    Watch,
    made_in_inference_mode,
    refuse_sparse,
    refuse_unwatchable,
)
from isobatch.gradients.triton_kernel import triton_for
from isobatch.gradients.wrappers import (
    ALONE,
    Ranks,
    bare_optimizer,
    canonical,
    process_group_of,
    refuse_stranger,
    unwrap,
    world_size,
)

__all__ = [
    "ALONE",
    "BatchRows",
    "Compiled",
    "LayerHook",
    "Member",
    "PassNorms",
    "Piece",
    "Ranks",
    "Reading",
    "Receiver",
    "RescaleCheck",
    "Shards",
    "Tap",
    "Watch",
    "address",
    "all_finite",
    "bare_optimizer",
    "canonical",
    "dressed",
    "first_not_finite",
    "fitted",
    "in_place",
    "local",
    "made_in_inference_mode",
    "managing",
    "mapped",
    "may_be_finite",
    "own_gradient",
    "piece",
    "process_group_of",
    "rebuilt",
    "refuse_sparse",
    "refuse_stranger",
    "refuse_unspreadable",
    "refuse_unwatchable",
    "settle",
    "sharded",
    "triton_for",
    "unwrap",
    "world_size",
]
