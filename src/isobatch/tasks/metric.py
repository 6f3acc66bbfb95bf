"""What a task says of its metrics: how two values compare, which way is better, which one is judged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from isobatch.errors import InputError

RANGES = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0)}
"""Units that bring their range, and so their scale."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Metric:
    """How the values of one held-out metric compare.

    Args:
        kind: "ratio" for positive values that are compared in logarithms (a loss, a perplexity), "difference" for
            values that are subtracted (an accuracy, a log density, anything that may be 0 or negative).
        better: "lower" or "higher".
        unit: of a difference: "percent" (0 to 100), "fraction" (0 to 1), or any other word with a scale.
        scale: of a difference: how far the metric moves in a whole run, in its unit; margins are shares of it.
        headline: whether this is the metric that is judged, where a task declares several.

    Raises:
        InputError: an unknown kind or direction, or a difference without a unit or a scale.

    Example:
        >>> Metric("ratio", better="lower").scale is None
        True
        >>> Metric("difference", better="higher", unit="percent").scale
        100.0
    """

    kind: Literal["ratio", "difference"]
    better: Literal["lower", "higher"]
    unit: str = ""
    scale: float | None = None
    headline: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("ratio", "difference"):
            raise InputError(f'Metric kind={self.kind!r} must be "ratio" or "difference"')
        if self.better not in ("lower", "higher"):
            raise InputError(f'Metric better={self.better!r} must be "lower" or "higher"')
        if self.kind == "ratio":
            if self.unit or self.scale is not None:
                raise InputError('a "ratio" metric has no unit and no scale: it is compared in logarithms; remove them')
            return
        if not self.unit:
            raise InputError(
                'a "difference" metric needs unit="percent", unit="fraction", or another unit with scale=: how far the '
                "metric moves in a whole run"
            )
        known = RANGES.get(self.unit)
        if known is not None:
            if self.scale not in (None, known[1]):
                raise InputError(f"scale={self.scale:g} contradicts unit={self.unit!r}, which is {known[1]:g}; drop it")
            object.__setattr__(self, "scale", known[1])
        elif self.scale is None or not math.isfinite(self.scale) or self.scale <= 0:
            raise InputError(
                f"unit={self.unit!r} needs scale=, a positive number: how far the metric moves in a whole run "
                f"(now {self.scale})"
            )

    def check(self, name: str, value: float, where: str) -> None:
        """Refuse a finite value that the declaration rules out.

        Args:
            name: of the metric.
            value: what was measured; values that are not finite are a run's failure, not the declaration's.
            where: of the value, for the message.

        Raises:
            InputError: a ratio of 0 or less, or a value outside the range of its unit.
        """
        if not math.isfinite(value):
            return
        if self.kind == "ratio" and value <= 0:
            raise InputError(
                f"{name} is {value:g} {where}, and a ratio needs values above 0: declare it as "
                f'Metric("difference", better="{self.better}", unit=..., scale=...)'
            )
        low, high = RANGES.get(self.unit, (-math.inf, math.inf))
        if not low <= value <= high + _ROUNDING * abs(high):
            other = "percent" if self.unit == "fraction" and value > 1 else "unit of your own with scale="
            raise InputError(
                f"{name} is {value:g} {where}, outside {low:g} to {high:g} of unit={self.unit!r}: "
                f"correct the metric, or declare the {other}"
            )


LOSS = Metric("ratio", better="lower", headline=True)
"""A loss: compared by ratio, lower is better, and the headline of a task."""
PERCENT = Metric("difference", better="higher", unit="percent")
"""An accuracy or other share in percent: compared by difference, higher is better."""


def declarations(task: str, declared: Any) -> dict[str, Metric]:
    """Return what a task declares, once it is a name and a Metric each.

    Args:
        task: for the message.
        declared: as the task wrote it.

    Returns:
        Metrics by name.

    Raises:
        InputError: anything else.
    """
    if not isinstance(declared, Mapping) or not all(isinstance(one, Metric) for one in declared.values()):
        raise InputError(
            f"task={task!r} has declared={declared!r}; it must be a dict from the names of its metrics to Metric "
            'objects, such as {"loss": Metric("ratio", better="lower")}'
        )
    return dict(declared)


def undeclared(task: str, name: str) -> InputError:
    """Return the error for a metric without a declaration, with the two lines to write.

    Args:
        task: that measures it.
        name: of the metric.

    Returns:
        The error.
    """
    return InputError(
        f"task={task!r} does not declare its metric {name!r}, so no verdict would mean anything; write in it:\n"
        "    from isobatch.tasks import Metric\n"
        f'    Run(..., declared={{"{name}": Metric("ratio", better="lower")}})\n'
        'for positive values compared in logarithms; else Metric("difference", better="higher", unit="percent"), '
        'unit="fraction", or another unit with scale='
    )


def headline(
    task: str, declared: Mapping[str, Metric], measured: Mapping[str, float], wanted: str | None = None
) -> str:
    """Return the metric that is judged, once every measured one is declared and starts where its kind allows.

    Args:
        task: that measures them, for the messages.
        declared: by name.
        measured: values of the first evaluation, by name.
        wanted: a metric asked for by name.

    Returns:
        The name.

    Raises:
        InputError: a metric that is not declared or not measured, a first value that its declaration rules out, or
            several metrics without a headline.
    """
    if not measured:
        raise InputError(f"task={task!r} measures nothing; its metrics must return at least one value")
    for name, value in measured.items():
        if name not in declared:
            raise undeclared(task, name)
        declared[name].check(name, value, "before training")
    if wanted is not None and wanted not in measured:
        raise InputError(f"task={task!r} has no metric {wanted!r}; its metrics: {', '.join(measured)}")
    chosen = wanted or _headline(task, declared, measured)
    if not math.isfinite(measured[chosen]):
        raise InputError(f"{chosen} is {measured[chosen]:g} before training; correct the metric of task={task!r}")
    return chosen


def _headline(task: str, declared: Mapping[str, Metric], measured: Mapping[str, float]) -> str:
    first = [name for name in measured if declared[name].headline]
    if len(measured) == 1:
        first = list(measured)
    if len(first) != 1:
        raise InputError(
            f"task={task!r} declares {len(first) or 'no'} headline among {', '.join(measured)}; "
            "set headline=True on the one that is judged"
        )
    return first[0]
