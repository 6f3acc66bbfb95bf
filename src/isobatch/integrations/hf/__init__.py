"""HF Trainer, and the trainers of TRL that are built on it."""

from isobatch.installed import need

need("torch", "transformers")

from isobatch.integrations.hf.callback import IsobatchCallback
from isobatch.integrations.hf.mixin import IsobatchTrainerMixin

__all__ = ["IsobatchCallback", "IsobatchTrainerMixin"]
