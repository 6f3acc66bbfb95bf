"""Checkpoints that are whole or absent: safetensors and JSON, hashed, renamed into place."""

from isobatch.installed import need

need("torch")

from isobatch.checkpoint.live import load_model as load_model
from isobatch.checkpoint.live import load_optimizer as load_optimizer
from isobatch.checkpoint.live import model_state as model_state
from isobatch.checkpoint.live import optimizer_state as optimizer_state
from isobatch.checkpoint.manifest import Loaded as Loaded
from isobatch.checkpoint.manifest import load as load
from isobatch.checkpoint.manifest import verify as verify
from isobatch.checkpoint.process import Preempted as Preempted
from isobatch.checkpoint.process import Preemption as Preemption
from isobatch.checkpoint.process import rng_state as rng_state
from isobatch.checkpoint.process import set_rng_state as set_rng_state
from isobatch.checkpoint.store import Checkpoints as Checkpoints
from isobatch.checkpoint.writer import Step as Step
