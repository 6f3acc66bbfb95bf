"""Two sets of tensors, compared by name."""

import warnings
from collections.abc import Mapping

from torch import Tensor

from isobatch.errors import InputError


def match_names(what: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse two sets of tensors that differ in names or shapes.

    Args:
        what: what `given` is, for the message.
        wanted: tensors that are averaged here.
        given: tensors offered.

    Raises:
        InputError: names the difference, with both shapes.

    Example:
        >>> match_names("model", {}, {})
    """
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise InputError(f"the {what} does not match the average: missing {missing[:5]}, unexpected {extra[:5]}")
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise InputError(f"{name!r} has shape {tuple(given[name].shape)} in the {what}, {tuple(tensor.shape)} here")


def tell_changes(before: set[str], after: set[str]) -> None:
    """Warn when tensors joined or left the model, because their averages start or end with them.

    Args:
        before: names that were averaged.
        after: names that are.

    Example:
        >>> tell_changes({"weight"}, {"weight"})
    """
    added, removed = sorted(after - before), sorted(before - after)
    if added or removed:
        warnings.warn(
            f"the model's tensors changed: averages of {added[:5]} start at their present values, averages of "
            f"{removed[:5]} were dropped",
            stacklevel=5,
        )
