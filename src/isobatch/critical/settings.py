"""Columns of runs that other people recorded: names in one spelling, nested settings flat, and what two columns say."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isobatch.errors import InputError

BATCH = ("batch", "batch_size", "global_batch_size", "train_batch_size", "total_batch_size", "bs")
BATCH_TOKENS = ("batch_tokens", "tokens_per_batch", "tokens_per_step", "global_batch_tokens", "batch_size_tokens")
RUN = ("seed", "run", "run_id", "run_name", "id", "name")
_OF_ONE_PASS = ("batch_size", "train_batch_size", "bs")
_PASSES = (
    "gradient_accumulation_steps", "gradient_accumulation", "accumulate_grad_batches", "grad_accum_steps", "grad_accum",
    "accumulation_steps", "accum_iter", "world_size", "num_gpus", "n_gpus", "n_gpu", "num_devices", "num_processes",
)  # fmt: skip
_PREFIX = re.compile(r"^(config|summary|summary_metrics|params|metrics)[./_]+")


@dataclass(frozen=True)
class Several:
    """A name that stands in one row with several values, such as config.steps beside summary.steps.

    Args:
        told: each full name and its value, in the order of the row.
    """

    told: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " and ".join(f"{name} {value!r}" for name, value in self.told)


def whole_name(key: Any) -> str:
    """Return the name of a column in one spelling, with what stands before it.

    Args:
        key: as the file has it.

    Returns:
        Lower case, underscores.

    Example:
        >>> whole_name("config.Batch Size")
        'config.batch_size'
    """
    return re.sub(r"[\s\-]+", "_", str(key).strip().lower())


def spelled(key: Any) -> str:
    """Return the name of a column in one spelling.

    Args:
        key: as the file has it.

    Returns:
        Lower case, underscores, without config. and summary.

    Example:
        >>> spelled("config.Batch Size"), spelled("val/loss")
        ('batch_size', 'val/loss')
    """
    return _PREFIX.sub("", whole_name(key))


def flat(row: Mapping[str, Any], chosen: Collection[str] = ()) -> dict[str, Any]:
    """Return a row with nested settings and summary beside the rest, and names in one spelling.

    Args:
        row: of a file.
        chosen: full names that a user gave; such a one counts before others of the same short name.

    Returns:
        The row. Names that fall together with different values are a `Several`, which no number is read from.

    Example:
        >>> flat({"config": {"batch_size": {"value": 8}}, "summary": {"Steps": 20}})
        {'batch_size': 8, 'steps': 20}
        >>> str(flat({"config.steps": 100, "summary.steps": 20})["steps"])
        'config.steps 100 and summary.steps 20'
        >>> flat({"config.steps": 100, "summary.steps": 20}, {"summary.steps"})
        {'steps': 20}
    """
    told: dict[str, list[tuple[str, Any]]] = {}
    for name, cell in _leaves(row, ""):
        told.setdefault(spelled(name), []).append((name, cell))
    found: dict[str, Any] = {}
    for key, cells in told.items():
        own = [one for one in cells if one[0] in chosen] or [one for one in cells if not blank(one[1])] or cells[:1]
        found[key] = own[0][1] if all(_alike(own[0][1], cell) for _, cell in own) else Several(tuple(own))
    return found


def _leaves(row: Mapping[str, Any], before: str) -> Iterable[tuple[str, Any]]:
    for key, cell in row.items():
        name = before + whole_name(key)
        if isinstance(cell, Mapping) and set(cell) != {"value"}:
            yield from _leaves(cell, f"{name}.")
        else:
            yield name, cell["value"] if isinstance(cell, Mapping) else cell


def _alike(one: Any, two: Any) -> bool:
    if number(one) is not None or number(two) is not None:
        return number(one) == number(two)
    return str(one) == str(two)


def blank(cell: Any) -> bool:
    """Whether a cell is empty.

    Args:
        cell: of a row.

    Returns:
        The answer.
    """
    return cell is None or (isinstance(cell, str) and not cell.strip())


def number(cell: Any) -> float | None:
    """Return a number of a history; None for gaps, NaN and texts, which trackers write between evaluations.

    Args:
        cell: of a row.

    Returns:
        The number, None where there is none.

    Example:
        >>> number("3"), number("NaN"), number(True), number(10**400)
        (3.0, None, None, None)
    """
    if isinstance(cell, bool) or cell is None:
        return None
    try:
        found = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def told_once(cell: Any, where: str) -> Any:
    """Return a cell, unless several columns of its name say different things.

    Args:
        cell: of a row from `flat`.
        where: of the cell, for the message.

    Returns:
        The cell.

    Raises:
        InputError: a `Several`.
    """
    if isinstance(cell, Several):
        names = list(dict.fromkeys(name for name, _ in cell.told))
        way = "rename one of them"
        if len(names) > 1:
            way = f"name the column that counts by its full name, {' or '.join(names)}"
        raise InputError(f"{where} is {cell}; {way}")
    return cell


def told_number(cell: Any, where: str) -> float | None:
    """Return the number of a cell of a history, None for gaps, NaN and texts without digits.

    Args:
        cell: of a row from `flat`.
        where: of the cell, for the message.

    Returns:
        The number, None where there is none.

    Raises:
        InputError: a `Several`, or digits in another writing than a decimal point's: passing such cells over would
            count a run by the few that happen to be readable.

    Example:
        >>> told_number("2.5", "loss"), told_number("NaN", "loss"), told_number("", "loss")
        (2.5, None, None)
    """
    found = number(told_once(cell, where))
    if found is None and isinstance(cell, str) and re.search(r"\d", cell):
        try:
            float(cell)  # beyond every float: no number, and no other writing either
        except ValueError:
            raise InputError(
                f"{where} is {cell!r}, which is no number as it is written; write 1234.5, without a decimal comma, "
                "signs between thousands, or a unit"
            ) from None
    return found


def check_whole_batch(column: str, row: Mapping[str, Any], where: str) -> None:
    """Refuse a batch that may be what one device takes in one pass of several.

    Args:
        column: of the batch, found by its name.
        row: of the run, from `flat`.
        where: the run, for the message.

    Raises:
        InputError: such a column beside accumulation or several devices.
    """
    if column not in _OF_ONE_PASS:
        return
    for key in _PASSES:
        times = number(row.get(key))
        if times is not None and times > 1:
            raise InputError(
                f"{where}: {column} stands beside {key} {times:g}, so that it may be what one device takes in one "
                f"pass; where it is all samples of an update, name it as the batch (--batch {column}), else add a "
                "column global_batch_size"
            )
