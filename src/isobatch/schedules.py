"""The old name of `isobatch.curves`."""

from isobatch.renamed import old_names

_CURVES = ("SHAPES", "AutoWU", "DecaySchedule", "Growth", "Look", "Staircase", "interval_for")

__all__ = ["__getattr__"]
__getattr__ = old_names(
    __name__,
    {**{name: f"isobatch.curves.{name}" for name in _CURVES}, "AdaScale": "isobatch.control.AdaScale"},
    {"Legw": 'a recipe with rules.lr = "legw": recipe.staircase(batch) and recipe.at(batch)'},
)
