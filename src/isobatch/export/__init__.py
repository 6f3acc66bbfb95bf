"""A plan on its way out: as a recipe file, as code, as a page; and the table of every key of a recipe."""

from isobatch.export.key_table import Key, keys, keys_table
from isobatch.export.plan_page import plan_page
from isobatch.export.recipe_file import plan_toml, plan_values, write_plan
from isobatch.export.snippets import SNIPPETS, snippet

__all__ = ["SNIPPETS", "Key", "keys", "keys_table", "plan_page", "plan_toml", "plan_values", "snippet", "write_plan"]
