"""The running numbers of a noise scale: what a checkpoint holds of them, and what they say when they are read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.noise.capture import Mode
from isobatch.noise.columns import Columns
from isobatch.noise.estimate import Identification, NoiseEstimate, judge, undefined
from isobatch.noise.half_batches import sum_in_disguise
from isobatch.noise.history import History, Read
from isobatch.noise.independence import Independence, judge_pairs
from isobatch.noise.measured_step import NO_PASS
from isobatch.noise.statistic import Moments

CHANGED = (
    "the gradients were changed between backward and update() by more than one factor (element-wise clipping, "
    "gradients of an earlier step, or an average over ranks that is not known here: give the DistributedDataParallel "
    "model or process_group=)"
)
NOT_FINITE = "something in them was not finite"
LEAST_COVERAGE = 0.5


@dataclass
class Progress:
    """How far a measurement is.

    Args:
        mode: which chunks are looked at next.
        caveats: what must be said beside every estimate.
        seen: samples on the clock.
        measured_at: samples on the clock at the last measurement.
        turn: counts measurements.
        trusted: by parameter, which ones rows can be believed for; None before that was checked.
        coverage: share of the trainable parameters that is looked at, before trust.
        expected: the noise scale to expect after a change of temperature.
        reason: why the last step gave nothing.
        trained: names of the parameters that the history is about; None where that is not known.
        pairs: what pairs of steps gave, see `independence`.
    """

    mode: Mode
    caveats: tuple[str, ...] = ()
    seen: float = 0.0
    measured_at: float = 0.0
    turn: int = 0
    trusted: dict[Tensor, Tensor] | None = None
    coverage: float = 1.0
    expected: float | None = None
    reason: str = ""
    trained: list[str] | None = None
    pairs: list[Tensor] = field(default_factory=list)

    def tensors(self, columns: Columns) -> dict[str, Tensor]:
        """Return the tensors of a state.

        Args:
            columns: name parameters.

        Returns:
            By name.
        """
        out = {f"trusted/{columns.name_of(p)}": trust for p, trust in (self.trusted or {}).items()}
        return out | ({"pairs": torch.stack(self.pairs)} if self.pairs else {})

    def clock(self, *, armed: bool) -> dict[str, Any]:
        """Return the plain values of a state.

        Args:
            armed: whether the present step is measured.

        Returns:
            JSON values.
        """
        plain = ("seen", "measured_at", "turn", "mode", "coverage", "expected", "reason", "trained")
        return {name: getattr(self, name) for name in plain} | {"armed": armed}

    def load(self, tensors: Mapping[str, Tensor], clock: Mapping[str, Any], columns: Columns) -> None:
        """Take over a state that fits.

        Args:
            tensors: of the state.
            clock: from `clock`.
            columns: name parameters.
        """
        parameters: dict[str, Tensor] = {columns.name_of(p): p for p in columns.model.parameters()}
        device = next(iter(parameters.values())).device
        trusted = {
            parameters[name]: tensors[f"trusted/{name}"].detach().to(device, copy=True)
            for name in parameters
            if f"trusted/{name}" in tensors
        }
        self.trusted = trusted or None
        self.pairs = list(tensors["pairs"].detach().to(device, copy=True)) if "pairs" in tensors else []
        for name in ("seen", "measured_at", "turn", "mode", "coverage", "expected", "reason"):
            setattr(self, name, clock[name])
        self.trained = clock.get("trained")


@dataclass(frozen=True)
class Terms:
    """How an estimate is worded.

    Args:
        level: coverage of intervals.
        unit: what the clock counts.
        data_size: D, where the |G|^2 of a finite data set is meant.
        capture: what was asked for.
    """

    level: float
    unit: str
    data_size: float | None
    capture: Mode


def checked(state: Any, ours: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values of a state, or refuse what is none, or one of another kind of measurement.

    Args:
        state: what is to be loaded.
        ours: settings.

    Returns:
        Tensors by name, and values.

    Raises:
        InputError: no state of a noise scale; else the first setting that differs, with both values.
    """
    values = state.get("values") if isinstance(state, Mapping) else None
    if not isinstance(values, Mapping) or not {"settings", "history", "clock", "pace"} <= values.keys():
        raise InputError("this is no state of a NoiseScale; give what its state_dict() returned")
    for key, mine in ours.items():
        theirs = values["settings"].get(key)
        if theirs != mine:
            raise InputError(
                f"the state was kept with {key}={theirs!r}, this NoiseScale has {key}={mine!r}; build it alike, or "
                "start a new estimate"
            )
    return state["tensors"], dict(values)


def report(progress: Progress, history: History, columns: Columns, terms: Terms) -> NoiseEstimate:
    """Return the noise scale as of now; the history is read from the device.

    Args:
        progress: how far it is.
        history: what was measured.
        columns: the whole model and its parts.
        terms: how it is worded.

    Returns:
        The whole model's estimate, with its parts and caveats.
    """
    read = history.read(progress.seen, len(columns), terms.data_size)
    disguise = sum_in_disguise(read.traces, read.batches)
    if disguise:
        found = undefined(disguise, level=terms.level, measurements=read.measurements)
    elif read.measurements + read.excluded == 0:
        found = undefined(progress.reason or "nothing has been measured yet", level=terms.level)
    else:
        found = _of_column(history, read, 0, terms)
    share = _share(progress, columns)
    told = _caveats(progress, history, terms, share)
    said, names = _doubts(found, judge_pairs(progress.pairs), share, terms)
    parts = {name: _of_column(history, read, i, terms) for i, name in enumerate(columns.names) if i}
    if said:
        found, parts = _in_doubt(found, said), {name: _in_doubt(part, said) for name, part in parts.items()}
    return replace(found, caveats=(*told, *names), parts=MappingProxyType(parts))


def _of_column(history: History, read: Read, column: int, terms: Terms) -> NoiseEstimate:
    trace, signal = read.means[column]
    return judge(
        Moments(float(signal), float(trace)),
        read.spreads[column],
        span=read.span,
        measurements=read.measurements,
        longest=history.longest,
        level=terms.level,
        unit=terms.unit,
        excluded=read.excluded,
        why_excluded=CHANGED if read.changed * 2 > read.excluded else NOT_FINITE,
    )


def _doubts(found: NoiseEstimate, pairs: Independence, share: float, terms: Terms) -> tuple[str, tuple[str, ...]]:
    """Return why an estimate may not be used for all its narrow interval, and what to add to its caveats."""
    if found.verdict == Identification.UNDEFINED:
        return "", ()
    if pairs.dependent:
        told = (
            f"two steps in a row differ {pairs.ratio:.3g} times as much as independent samples would (95% interval "
            f"{pairs.low:.3g} to {pairs.high:.3g}): the samples of a step depend on each other (documents in order, "
            "video, rollouts: shuffle them, or count each group of them as one; or ranks that read the same ones), or "
            "the weights move too fast"
        )
        return "the samples of a step depend on each other", (told,)
    if found.verdict != Identification.IDENTIFIED:
        return "", ()
    if terms.capture not in ("norms", "buckets") and share < LEAST_COVERAGE:
        return f"only {share:.1%} of the trainable parameters can be seen", ()
    if not pairs.known:
        told = (
            f"two steps in a row differ {pairs.ratio:.3g} times as much as independent samples would (95% interval "
            f"{pairs.low:.3g} to {pairs.high:.3g}): samples may depend on their neighbours, or the weights move fast"
        )
        return "it is not yet known whether the samples of a step are independent", (told,)[: math.isfinite(pairs.high)]
    return "", ()


def _in_doubt(found: NoiseEstimate, why: str) -> NoiseEstimate:
    if found.verdict == Identification.UNDEFINED:
        return found
    return replace(
        found,
        verdict=Identification.NOT_IDENTIFIED,
        low=0.0,
        high=math.inf,
        sentence=f"noise scale not identified: {why}",
        needed_samples=None,
    )


def _share(progress: Progress, columns: Columns) -> float:
    """Return which share of the trainable parameters rows are believed for."""
    if progress.trusted is None or progress.mode not in ("rows", "norms"):
        return progress.coverage if progress.mode in ("rows", "norms") else 1.0
    everything = _count(columns.trainable())
    believed = _count(p for p, trust in progress.trusted.items() if float(trust) > 0)
    return min(progress.coverage, believed / everything) if everything else 1.0


def _caveats(progress: Progress, history: History, terms: Terms, share: float) -> tuple[str, ...]:
    told = list(progress.caveats)
    if share < 1:
        told.append(f"of {share:.1%} of the trainable parameters: the rows of the others cannot be told apart")
    if progress.reason and progress.reason != NO_PASS and history.cells:
        told.append(f"the last step gave no measurement: {progress.reason}")
    if progress.expected is not None:
        told.append(f"about {progress.expected:.4g} {terms.unit} were expected after the change of temperature")
    return tuple(told)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)
