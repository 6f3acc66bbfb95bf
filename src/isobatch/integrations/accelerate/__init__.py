"""Accelerate: average and noise scale in a loop of one's own that an Accelerator drives."""

from isobatch.installed import need

need("torch", "accelerate")

from isobatch.integrations.accelerate.helper import IsobatchHelper

__all__ = ["IsobatchHelper"]
