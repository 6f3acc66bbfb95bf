import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import batch_schedule as slow

from isobatch.control import BatchSchedule
from isobatch.curves import SHAPES, Staircase
from isobatch.errors import InputError

STAGES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=6).map(
    lambda gaps: tuple((sum(gap for gap, _ in gaps[1 : i + 1]), batch) for i, (_, batch) in enumerate(gaps))
)


def test_known_steps():
    schedule = BatchSchedule(((0, 8), (20, 16), (50, 4)))
    assert [schedule.step_range(k) for k in range(6)] == [
        range(0, 8),
        range(8, 16),
        range(16, 24),  # begins before 20, so it keeps its batch
        range(24, 40),
        range(40, 56),
        range(56, 60),
    ]
    assert [schedule.at(seen) for seen in (0, 19, 20, 49, 50, 10**9)] == [8, 8, 16, 16, 4, 4]
    assert [schedule.next_change(seen) for seen in (0, 16, 20, 24, 40, 56)] == [24, 24, 52, 56, 56, None]
    assert [schedule.step_of(sample) for sample in (0, 23, 24, 55, 56, 60)] == [0, 2, 3, 4, 5, 6]
    assert schedule.steps(57) == 6
    assert schedule.step_range(5, length=57) == range(56, 57)


def test_a_stage_that_no_step_begins_in_is_passed_over():
    schedule = BatchSchedule(((0, 100), (10, 3), (20, 7)))
    assert [schedule.step_range(k) for k in range(3)] == [range(0, 100), range(100, 107), range(107, 114)]
    assert schedule.next_change(0) == 100
    assert schedule.at(15) == 3  # a resume inside it is another run


def test_equal_batches_are_no_change():
    schedule = BatchSchedule(((0, 8), (16, 8), (32, 16)))
    assert schedule.next_change(0) == 32


@settings(max_examples=100, deadline=None)
@given(stages=STAGES, length=st.integers(1, 400))
def test_steps_tile_the_run_and_are_those_of_the_walk(stages, length):
    schedule, steps = BatchSchedule(stages), slow.walk(stages, length)
    assert schedule.steps(length) == len(steps)
    assert [schedule.step_range(k, length) for k in range(len(steps))] == steps
    assert [sample for step in steps for sample in step] == list(range(length))
    assert [schedule.step_of(sample) for sample in range(length)] == [k for k, step in enumerate(steps) for _ in step]


@settings(max_examples=100, deadline=None)
@given(stages=STAGES, at=st.integers(0, 40))
def test_a_resume_at_any_step_gives_the_same_samples(stages, at):
    whole, resumed = BatchSchedule(stages), BatchSchedule(tuple(stages))
    seen = whole.step_range(at).start
    for step in range(at, at + 20):
        assert range(seen, seen + resumed.at(seen)) == whole.step_range(step)
        change = whole.next_change(seen)
        later = next((k for k in range(step, step + 200) if len(whole.step_range(k)) != resumed.at(seen)), None)
        assert change == (None if later is None else whole.step_range(later).start)
        seen += resumed.at(seen)


@settings(max_examples=100, deadline=None)
@given(
    stages=STAGES,
    reference=st.integers(1, 12),
    shape=st.sampled_from(list(SHAPES)),
    warmup=st.integers(0, 90),
    cut=st.integers(1, 40),
)
def test_the_sum_of_lr_over_any_whole_steps_does_not_depend_on_the_batches(stages, reference, shape, warmup, cut):
    staircase = Staircase(length=250.0, warmup=float(warmup), shape=shape, stair=float(reference))
    per_sample = slow.lr_per_sample(staircase, reference, 2000)
    schedule, total = BatchSchedule(stages), 0.0
    for step in range(cut):
        samples = schedule.step_range(step)
        total += len(samples) / reference * staircase.mean(samples.start, samples.stop)
    assert total == pytest.approx(float(sum(per_sample[: samples.stop])), rel=1e-12)


RAMP = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 20), st.integers(1, 80), st.integers(1, 4))


@settings(max_examples=100, deadline=None)
@given(ramp=RAMP, form=st.sampled_from(["linear", "geometric"]))
def test_ramps_hold_the_multiple_of_the_grain_that_the_line_has_reached(ramp, form):
    first, last, start, span, grain = ramp
    first, last, stop = first * grain, last * grain, start + span
    points = [(start, first), (stop, last)] if start == 0 else [(0, first), (start, first), (stop, last)]
    schedule = BatchSchedule.ramps(points, form=form, grain=grain)
    line = slow.linear_ramp if form == "linear" else slow.geometric_ramp
    for seen in range(stop + 3):
        assert schedule.at(seen) == line(first, last, start, stop, grain, seen)


def test_ramps_run_through_every_point_up_and_down():
    schedule = BatchSchedule.ramps([(0, 64), (1000, 256), (2000, 256), (3000, 128)], form="geometric", grain=64)
    assert schedule.stages == ((0, 64), (500, 128), (793, 192), (1000, 256), (2416, 192), (3000, 128))


def test_progressive_scaling_is_a_batch_an_epoch():
    schedule = BatchSchedule.per_epoch([8, 8, 128], data_size=1437)
    assert [schedule.at(seen) for seen in (0, 1436, 2873, 2874, 10**6)] == [8, 8, 8, 128, 128]
    # 2874 samples by 8 are 359.25 steps, so the first large step begins at 2880.
    assert schedule.next_change(0) == 2880


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchSchedule(()), "at least one stage"),
        (lambda: BatchSchedule(((5, 8),)), r"starts at 5, it must start at 0; add \(0, batch\)"),
        (lambda: BatchSchedule(((0, 8), (0, 4))), r"\(0, 4\) must start after 0"),
        (lambda: BatchSchedule(((0, 0),)), "batch=0 must be at least 1"),
        (lambda: BatchSchedule(((0, -8),)), "batch=-8 must be at least 1"),
        (lambda: BatchSchedule(((0, True),)), "batch=True must be a whole number"),
        (lambda: BatchSchedule(((0, 8.0),)), "batch=8.0 must be a whole number"),
        (lambda: BatchSchedule(((0, float("nan")),)), "batch=nan must be a whole number"),
        (lambda: BatchSchedule(((0.5, 8),)), "start=0.5 must be a whole number"),
        (lambda: BatchSchedule((8, 16)), "must be pairs"),
        (lambda: BatchSchedule(((0, 8),)).at(-1), "seen=-1 must be at least 0"),
        (lambda: BatchSchedule(((0, 8),)).step_range(-1), "step=-1 must be at least 0"),
        (lambda: BatchSchedule(((0, 8),)).step_range(3, length=24), r"step=3 must be in \[0, 2\]"),
        (lambda: BatchSchedule(((0, 8),)).steps(0), "length=0 must be at least 1"),
        (lambda: BatchSchedule.per_epoch([], 10), "at least one stage"),
        (lambda: BatchSchedule.per_epoch([8], 0), "data_size=0 must be at least 1"),
        (lambda: BatchSchedule.ramps([(0, 8), (9, 12)], grain=8), "batch=12 must be a multiple of grain=8; nearest: 8"),
        (lambda: BatchSchedule.ramps([(0, 8), (9, 16)], form="cubic"), "form='cubic' must be one of linear, geometric"),
        (lambda: BatchSchedule.ramps([(0, 1), (10**9, 10**6)]), "999999 stages, at most 10000; raise the grain"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_batches_may_be_huge():
    schedule = BatchSchedule(((0, 10**12), (10**15, 10**18)))
    assert schedule.step_range(1000) == range(10**15, 10**15 + 10**18)
    assert schedule.step_of(10**15) == 1000
