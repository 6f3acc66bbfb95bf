"""Published recipes: the settings that authors chose at each of their own batches, with source."""

from isobatch.published.registry import Gap, Published, load, names

__all__ = ["Gap", "Published", "load", "names"]
