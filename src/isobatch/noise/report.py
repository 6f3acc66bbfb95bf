"""The running estimate, read: averages, verdicts by column, and what must be said beside them."""

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from isobatch.noise.armed import NO_PASS
from isobatch.noise.coupling import sum_in_disguise
from isobatch.noise.estimate import NoiseEstimate, judge, undefined
from isobatch.noise.history import Read
from isobatch.noise.statistic import Moments

if TYPE_CHECKING:
    from isobatch.noise.scale import NoiseScale


def report(noise: "NoiseScale") -> NoiseEstimate:
    """Return the noise scale as of now.

    Args:
        noise: the running measurement; its history is read from the device.

    Returns:
        The whole model's estimate, with its parts and caveats.
    """
    read = noise.history.read(noise.seen, len(noise.columns), noise.data_size)
    disguise = sum_in_disguise(read.traces, read.batches)
    if disguise:
        found = undefined(disguise, level=noise.level, measurements=read.measurements)
    elif read.measurements + read.excluded == 0:
        found = undefined(noise.reason or "nothing has been measured yet", level=noise.level)
    else:
        found = _of_column(noise, read, 0)
    parts = {name: _of_column(noise, read, i) for i, name in enumerate(noise.columns.names) if i}
    return replace(found, caveats=_caveats(noise), parts=MappingProxyType(parts))


def _of_column(noise: "NoiseScale", read: Read, column: int) -> NoiseEstimate:
    trace, signal = read.means[column]
    return judge(
        Moments(float(signal), float(trace)),
        read.spreads[column],
        span=read.span,
        measurements=read.measurements,
        longest=noise.history.longest,
        level=noise.level,
        unit=noise.unit,
        excluded=read.excluded,
    )


def _caveats(noise: "NoiseScale") -> tuple[str, ...]:
    told = list(noise.caveats)
    if noise.trusted is not None and noise.mode in ("rows", "norms"):
        everything = sum(p.numel() for p in noise.columns.trainable())
        believed = sum(p.numel() for p, trust in noise.trusted.items() if float(trust) > 0)
        share = min(noise.coverage, believed / everything)
        if share < 1:
            told.append(f"of {share:.1%} of the trainable parameters: the rows of the others cannot be told apart")
    if noise.reason and noise.reason != NO_PASS and noise.history.cells:
        told.append(f"the last step gave no measurement: {noise.reason}")
    if noise.expected is not None:
        told.append(f"about {noise.expected:.4g} {noise.unit} were expected after the change of temperature")
    return tuple(told)
