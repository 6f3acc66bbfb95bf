"""The batch as a function of samples seen: stages, ramps between points, and the exact samples of any step."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Self

from isobatch.control.limits import multiples_near
from isobatch.errors import InputError
from isobatch.units import whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isobatch.recipe import RecipeData

FORMS = ("linear", "geometric")
MOST_STAGES = 10_000
"""Stages that one ramp may have; beyond, its grain is finer than any run can use."""


@dataclass(frozen=True)
class BatchSchedule:
    """Global batch as a step function of samples seen.

    A step that begins at `seen` takes the batch of the stage that holds `seen`, whole: a stage takes effect at the
    first step boundary at or after its start. So the samples of every step follow from the stages alone, a resume
    needs no seek, and only the last step of a run is cut to fit. A skipped step does not move `seen`, so it is tried
    again with the same batch on other samples.

    Args:
        stages: pairs (first sample, batch); the first starts at 0, the starts rise.

    Raises:
        InputError: no stage, a start that does not rise, or a batch that is not a positive whole number.

    Example:
        >>> schedule = BatchSchedule(((0, 8), (20, 16)))
        >>> schedule.at(0), schedule.next_change(0), schedule.step_range(3), schedule.steps(length=50)
        (8, 24, range(24, 40), 5)

    References:
        arXiv 2307.13813 (progressive scaling: the batch changes in the run, every setting follows its rule).
    """

    stages: tuple[tuple[int, int], ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())
    _begins: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())
    _first: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        stages = _checked(self.stages)
        begins, first = [0], [0]
        for (_, batch), (start, _) in pairwise(stages):
            steps = max(0, -(-(start - begins[-1]) // batch))
            begins.append(begins[-1] + steps * batch)
            first.append(first[-1] + steps)
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "_starts", tuple(start for start, _ in stages))
        object.__setattr__(self, "_begins", tuple(begins))
        object.__setattr__(self, "_first", tuple(first))

    @classmethod
    def from_recipe(cls, recipe: RecipeData) -> Self:
        """Return the schedule of a recipe: its batch.schedule, or its one batch.

        Args:
            recipe: the recipe.

        Returns:
            The schedule.
        """
        return cls(recipe.batch_stages())

    @classmethod
    def per_epoch(cls, batches: Sequence[int], data_size: int) -> Self:
        """Return the schedule of progressive scaling: a batch for each epoch, the last one for the rest of the run.

        Args:
            batches: B_1, B_2, ..., one an epoch.
            data_size: samples in an epoch.

        Returns:
            The schedule.

        Raises:
            InputError: no epoch, or a batch or data size that is not a positive whole number.

        Example:
            >>> BatchSchedule.per_epoch([8, 8, 128], data_size=1437).at(3000)
            128

        References:
            arXiv 2307.13813.
        """
        size = whole("data_size", data_size)
        return cls(tuple((epoch * size, batch) for epoch, batch in enumerate(batches)))

    @classmethod
    def ramps(cls, points: Sequence[tuple[int, int]], *, form: str = "linear", grain: int = 1) -> Self:
        """Return the schedule that runs from point to point in whole multiples of a grain.

        Between (s0, B0) and (s1, B1) the batch moves on by one grain where B0 + (B1-B0)*(s-s0)/(s1-s0) (linear), or
        B0*(B1/B0)**((s-s0)/(s1-s0)) (geometric), has reached the next multiple; at s1 it is B1. It stays there.

        Args:
            points: pairs (sample, batch); the first at sample 0, the samples rise. Equal batches are a plateau.
            form: linear or geometric.
            grain: what every batch is a multiple of, such as devices x micro.

        Returns:
            The schedule.

        Raises:
            InputError: a form that does not exist, a batch that is no multiple of the grain, or too many stages.

        Example:
            >>> BatchSchedule.ramps([(0, 8), (100, 8), (300, 32)], grain=8).stages
            ((0, 8), (167, 16), (234, 24), (300, 32))
        """
        if form not in FORMS:
            raise InputError(f"form={form!r} must be one of {', '.join(FORMS)}")
        corners, step = _checked(points), whole("grain", grain)
        for _, batch in corners:
            if batch % step:
                near = multiples_near(batch, step)
                raise InputError(f"batch={batch} must be a multiple of grain={step}; nearest: {near}")
        stages = dict(corners[:1])
        for left, right in pairwise(corners):
            stages.update(_ramp(left, right, form, step))
        return cls(tuple(stages.items()))

    def at(self, seen: int) -> int:
        """Return the batch of a step that begins at `seen`.

        Args:
            seen: samples of applied updates, not negative.

        Returns:
            The global batch, uncut.
        """
        return self.stages[self._stage(seen)][1]

    def next_change(self, seen: int) -> int | None:
        """Return where the first step of another batch begins, for a run whose next step begins at `seen`.

        Args:
            seen: samples of applied updates.

        Returns:
            Samples, or None when the batch stays.
        """
        index = self._stage(seen)
        batch, position = self.stages[index][1], seen
        while index + 1 < len(self.stages):
            position += -(-(self.stages[index + 1][0] - position) // batch) * batch
            index = self._stage(position)
            if self.stages[index][1] != batch:
                return position
        return None

    def step_range(self, step: int, length: int | None = None) -> range:
        """Return the samples of a step, counted from 0, of a run that began at sample 0.

        Args:
            step: which step, from 0.
            length: samples of the whole run, at which the last step is cut; uncut unless given.

        Returns:
            The samples on the clock `seen`.

        Raises:
            InputError: a step below 0, or beyond the run.
        """
        number = whole("step", step, 0)
        index = bisect_right(self._first, number) - 1
        batch = self.stages[index][1]
        start = self._begins[index] + (number - self._first[index]) * batch
        if length is None:
            return range(start, start + batch)
        if start >= whole("length", length):
            raise InputError(f"step={number} must be in [0, {self.steps(length) - 1}], the run of {length} samples")
        return range(start, min(start + batch, length))

    def step_of(self, sample: int) -> int:
        """Return the step that covers a sample, in a run that began at sample 0.

        Args:
            sample: position on the clock, not negative.

        Returns:
            The step, counted from 0.
        """
        position = whole("sample", sample, 0)
        index = bisect_right(self._begins, position) - 1
        return self._first[index] + (position - self._begins[index]) // self.stages[index][1]

    def steps(self, length: int) -> int:
        """Return how many steps a run has; the last one may be smaller.

        Args:
            length: samples of the whole run.

        Returns:
            Steps.
        """
        return self.step_of(whole("length", length) - 1) + 1

    def _stage(self, seen: int) -> int:
        return bisect_right(self._starts, whole("seen", seen, 0)) - 1


def _checked(stages: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if not stages:
        raise InputError("a batch schedule needs at least one stage: (0, batch)")
    if any(not isinstance(stage, tuple | list) or len(stage) != 2 for stage in stages):
        raise InputError(f"stages={stages!r} must be pairs (first sample, batch): ((0, 8), (1000, 128))")
    pairs = tuple((whole("start", start, 0), whole("batch", batch)) for start, batch in stages)
    if pairs[0][0] != 0:
        raise InputError(f"the first stage starts at {pairs[0][0]}, it must start at 0; add (0, batch) before it")
    for (left, _), (right, batch) in pairwise(pairs):
        if right <= left:
            raise InputError(f"the stage ({right}, {batch}) must start after {left}; give the stages in rising order")
    return pairs


def _ramp(left: tuple[int, int], right: tuple[int, int], form: str, grain: int) -> list[tuple[int, int]]:
    (start, first), (stop, last) = left, right
    count, span = abs(last - first) // grain, stop - start
    if count > MOST_STAGES:
        raise InputError(f"the ramp from {first} to {last} has {count} stages, at most {MOST_STAGES}; raise the grain")
    up = 1 if last > first else -1
    stages = []
    for index in range(1, count + 1):
        batch = first + up * index * grain
        if form == "linear":
            offset = -(-index * span // count)
        else:
            share = math.log(batch / first) / math.log(last / first)
            # A rounding error in the logarithm must not move the start of a stage by a sample.
            offset = span if index == count else math.ceil(share * span * (1 - 1e-12))
        stages.append((start + offset, batch))
    return stages
