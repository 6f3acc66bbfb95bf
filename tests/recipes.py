"""Recipes for tests: one whole recipe as text, and small changes of it."""

from isobatch import Recipe

TEXT = """
task = "digits"
data_size = 1437

[batch]
size = 8

[optimizer]
name = "sgd"
lr = 0.02

[schedule]
length = "30 epochs"
warmup = "1 epoch"
shape = "cosine"

[ema]
decay = 0.999
"""


def values(**parts):
    """The tables of a small recipe: a table is merged into the default one, and None leaves a key or table out."""
    whole = {
        "data_size": 1000,
        "batch": {"size": 8},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "schedule": {"length": "10 epochs", "warmup": "1 epoch", "shape": "cosine"},
        "ema": {"decay": 0.99},
    }
    for key, part in parts.items():
        merged = {**whole.get(key, {}), **part} if isinstance(part, dict) else part
        whole[key] = {k: v for k, v in merged.items() if v is not None} if isinstance(merged, dict) else merged
    return {key: part for key, part in whole.items() if part is not None}


def recipe(**parts):
    return Recipe.parse(values(**parts))
