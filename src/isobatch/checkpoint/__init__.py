"""Checkpoints that are whole or absent: safetensors and JSON, hashed, renamed into place."""

from isobatch.installed import need
from isobatch.renamed import old_names

need("torch")

from isobatch.checkpoint.live import load_model, load_optimizer, model_state, optimizer_state
from isobatch.checkpoint.manifest import Loaded, load, verify
from isobatch.checkpoint.process import Preempted, Preemption, rng_state, set_rng_state
from isobatch.checkpoint.shards import Sharded, placed
from isobatch.checkpoint.store import Checkpoints
from isobatch.checkpoint.writer import StepFolder

__all__ = [
    "Checkpoints",
    "Loaded",
    "Preempted",
    "Preemption",
    "Sharded",
    "StepFolder",
    "load",
    "load_model",
    "load_optimizer",
    "model_state",
    "optimizer_state",
    "placed",
    "rng_state",
    "set_rng_state",
    "verify",
]

__getattr__ = old_names("isobatch.checkpoint", {"Step": "isobatch.checkpoint.writer.StepFolder"})
