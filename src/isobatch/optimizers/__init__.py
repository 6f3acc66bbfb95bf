"""Optimizers: the invariant Adam family, and a thin catalogue of others."""

from isobatch.optimizers.catalogue import CATALOGUE, Row, build
from isobatch.optimizers.settings import bind, write_settings

__all__ = ["CATALOGUE", "Row", "bind", "build", "write_settings"]
