"""isobatch: the same training run, at any batch size."""

__version__ = "0.1.0"
