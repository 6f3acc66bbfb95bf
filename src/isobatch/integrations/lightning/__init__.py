"""Lightning: average and noise scale as a callback, under automatic and manual optimization."""

from isobatch.installed import need

need("torch", "lightning")

from isobatch.integrations.lightning.callback import IsobatchCallback

__all__ = ["IsobatchCallback"]
