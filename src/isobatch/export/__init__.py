"""A plan on its way out: as a recipe file, as code for a framework, and the table of every key of a recipe."""

from isobatch.export.key_table import Key, keys, keys_table
from isobatch.export.recipe_file import plan_toml, write_plan
from isobatch.export.snippets import SNIPPETS, snippet

__all__ = ["SNIPPETS", "Key", "keys", "keys_table", "plan_toml", "snippet", "write_plan"]
