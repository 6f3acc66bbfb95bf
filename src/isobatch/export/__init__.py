"""A plan on its way out: as a recipe file, as code for a framework, and the table of every key of a recipe."""

from isobatch.export.keys import Key, keys, keys_table
from isobatch.export.recipe_file import plan_toml, write_plan

__all__ = ["Key", "keys", "keys_table", "plan_toml", "write_plan"]
