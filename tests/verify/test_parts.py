"""The parts of a comparison: stops and marks, arms, jobs in processes, curves."""

import math
import multiprocessing
import os
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.executors import as_done, map_jobs
from isobatch.plan import scaled
from isobatch.verify import arms
from isobatch.verify.campaign import Campaign
from isobatch.verify.comparison import run
from isobatch.verify.design import design_of, looks_of, sizes, stops_for
from isobatch.verify.workers import Job, train_curve

UNCLIPPED = ("lr-only", "ema-only", "unscaled")  # of a recipe without a clip
QUADRATIC = {
    "task": "quadratic",
    "data_size": 256,
    "optimizer": {"lr": 0.015},
    "schedule": {"length": "512 samples", "warmup": "0 samples"},
    "options": {"dimension": 2, "noise": 0.01},
}


@settings(max_examples=200)
@given(steps=st.floats(20, 5000), batches=st.lists(st.integers(1, 512), min_size=1, max_size=3))
def test_stops_rise_from_zero_with_ten_marks_on_whole_steps_where_possible(steps, batches):
    length = math.ceil(steps * max(batches))
    stops, marks = stops_for(length, *batches)
    assert stops[0] == 0
    assert all(a < b for a, b in pairwise(stops))
    assert len(marks) == 10
    assert marks[-1] == len(stops) - 1
    assert stops[-1] <= length
    common = math.lcm(*batches) * 20 <= length
    step = math.lcm(*batches) if common else max(batches)
    assert all(stop % step == 0 for stop in stops)
    assert all(0 <= length * (k + 1) / 10 - stops[mark] < step + 1 for k, mark in enumerate(marks))


@pytest.mark.parametrize(
    ("length", "batches", "left"), [(1, (8,), 0), (19, (1,), 19), (512, (8, 600), 0), (999, (8, 50), 19)]
)
def test_a_batch_that_the_stops_would_cut_is_refused(length, batches, left):
    message = f"batch {max(batches)} leaves {left} steps in a run of {length} samples; 10 marks need at least 20"
    with pytest.raises(InputError, match=message):
        stops_for(length, *batches)


def test_the_arms_leave_out_what_their_names_say():
    made = recipe(optimizer={"momentum": 0.9, "weight_decay": 0.1}, batch_norm={"momentum": 0.1})
    found = arms(made, 32)
    plan, old = made.at(32).recipe, made.optimizer
    assert list(found) == ["reference", "plan", *UNCLIPPED]
    assert found["reference"] == made
    assert found["plan"] == plan
    assert (found["lr-only"].optimizer, found["lr-only"].ema.decay) == (plan.optimizer, 0.99)
    assert (found["ema-only"].optimizer, found["ema-only"].ema) == (old, plan.ema)
    assert (found["unscaled"].optimizer, found["unscaled"].ema.decay) == (old, 0.99)
    for name in UNCLIPPED:
        assert found[name].batch.size == 32
        assert found[name].schedule == plan.schedule


def test_an_unscaled_half_life_keeps_its_decay_per_update():
    made = recipe(ema={"decay": None, "half_life": "800 samples", "every": 2})
    assert arms(made, 32)["unscaled"].ema.decay == pytest.approx(0.5 ** (16 / 800))
    assert arms(made, 32)["unscaled"].half_life == pytest.approx(3200)


def test_without_an_average_only_what_differs_is_trained():
    assert list(arms(recipe(ema=None), 32)) == ["reference", "plan", "unscaled"]
    assert list(arms(recipe(), 32, ())) == ["reference", "plan"]
    with pytest.raises(InputError, match="ablate='lr' must be among lr-only, ema-only, unscaled"):
        arms(recipe(), 32, ("lr",))


def test_the_invariant_plan_stands_beside_the_square_root():
    found = arms(recipe(optimizer={"name": "adamw", "lr": 1e-3}), 32, (), "invariant")
    assert found["plan"].optimizer.name == "invariant-adamw"
    assert found["square root"].optimizer.name == "adamw"


def job(arm="plan", seed=0, stream=0, **parts):
    return Job(arm, recipe(**{**QUADRATIC, **parts}), seed, stream, (0, 64, 256, 512))


def test_arms_share_the_initial_weights_and_nothing_of_the_order():
    one, other, again = (train_curve(job(stream=s)) for s in (0, 1, 0))
    assert one.values["raw"]["loss"][0] == other.values["raw"]["loss"][0]
    assert one.values["raw"]["loss"][1] != other.values["raw"]["loss"][1]
    assert one.values == again.values
    assert one.steps == 64
    assert one.facts["data"].startswith("noisy quadratic")
    seeds = {job(seed=seed, stream=stream).order_seed for seed in range(50) for stream in range(6)}
    assert len(seeds) == 300


def test_a_diverged_run_ends_in_nan_with_its_reason():
    curve = train_curve(job(optimizer={"lr": 1e30}))
    loss = curve.values["raw"]["loss"]
    assert loss[0] > 0
    assert math.isnan(loss[-1])
    assert len(loss) == 4
    assert "samples" in curve.stopped


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    seen = []
    assert map_jobs(math.sqrt, [1, 4, 9, 16], workers=workers, on_done=seen.append) == [1, 2, 3, 4]
    assert sorted(seen) == [1, 2, 3, 4]


def test_the_error_of_a_job_arrives():
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        map_jobs(math.sqrt, [1, -4], workers=2)
    jobs = [job(task="nowhere_at_all:make")] * 2
    with pytest.raises(InputError, match="task='nowhere_at_all:make' cannot be imported"):
        map_jobs(train_curve, jobs, workers=2)


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupt_leaves_no_process_behind():
    def interrupt(_):
        raise KeyboardInterrupt

    before, began = set(multiprocessing.active_children()), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        map_jobs(time.sleep, [0.0, 60.0, 60.0, 60.0], workers=2, on_done=interrupt)
    left = {process.pid for process in set(multiprocessing.active_children()) - before}
    # the pool's own thread reaps them too, and whoever comes second is told that its child still lives: ask the system
    while any(map(exists, left)) and time.monotonic() - began < 30:
        time.sleep(0.05)
    assert not any(map(exists, left))


@pytest.mark.parametrize(("more", "message"), [
    ({"seeds": 7}, "seeds=7 must be at least 8"),
    ({"seeds": 8.5}, r"seeds=8\.5 must be a whole number"),
    ({"seeds": (20, 10)}, r"seeds=20\.\.10 must rise"),
    ({"seeds": (4, 10)}, "seeds=4 must be at least 8"),
    ({"seed_from": -1}, "seed_from=-1 must be at least 0"),
    ({"margin": 0.0}, r"margin=0 must be in \(0, 0.25\]"),
    ({"margin": math.nan}, r"margin=nan must be in \(0, 0.25\]"),
    ({"margin": 5.0}, "a wider one would call different runs the same"),
    ({"metric": "accuracy"}, "has no metric 'accuracy'; its metrics: loss"),
    ({"allow_failures": -1}, "allow_failures=-1 must be at least 0"),
    ({"allow_failures": 5}, "allow_failures=5 must be at most half of the seeds, 4"),
    ({"workers": 0}, "workers=0 must be at least 1"),
    ({"ablate": ("ema",)}, "ablate='ema' must be among"),
    ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
    ({"budget": 1e-9}, "estimated .* minutes exceed the budget of 0.0; raise --budget, lower --seeds"),
])  # fmt: skip
def test_a_run_is_refused_before_training(more, message, monkeypatch, tmp_path):
    def trained(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr("isobatch.verify.campaign.train_curve", trained)
    monkeypatch.setenv("ISOBATCH_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=message):
        run(recipe(**QUADRATIC), 16, **{"seeds": 8, "workers": 1, **more})
    assert not list(tmp_path.iterdir())


def test_the_estimate_grows_with_the_jobs_and_bounds_the_seeds(monkeypatch, tmp_path):
    work = Campaign(workers=1)
    probes = work.probe([job()])
    one = work.seconds(probes, [job()])
    assert 0 < one < 60
    many = [replace(job(seed=seed), stops=(0, 5120)) for seed in range(40)]
    assert work.seconds(probes, many) > one
    monkeypatch.setattr(Campaign, "seconds", lambda self, probes, jobs: float(len(jobs)))
    monkeypatch.setenv("ISOBATCH_CACHE", str(tmp_path))
    found = run(recipe(**QUADRATIC), 16, workers=1, ablate=(), budget=2 * 9.5)
    assert found.seeds == tuple(range(9))
    with pytest.raises(InputError, match="exceed the budget"):
        run(recipe(**QUADRATIC), 16, workers=1, ablate=(), budget=2 * 7.5, seed_from=50)


def test_jobs_of_a_design_give_every_arm_the_seeds_and_an_order_of_its_own():
    design = design_of(recipe(**QUADRATIC), 16, 8, seed_from=3)
    jobs = design.jobs(range(3, 5))
    assert {(j.arm, j.seed) for j in jobs} == {(arm, seed) for arm in design.arms for seed in (3, 4)}
    assert len({j.order_seed for j in jobs}) == len(jobs)
    assert [j.recipe.batch.size for j in jobs] == sorted(j.recipe.batch.size for j in jobs)
    assert design.controls == UNCLIPPED


@pytest.mark.parametrize(("seeds", "least", "most"), [(8, 8, 8), (20, 20, 20), ((10, 40), 10, 40), ((8, 8), 8, 8)])
def test_looks_lie_between_the_numbers_that_were_asked_for(seeds, least, most):
    looks = looks_of(seeds)
    assert (looks.seeds[0], looks.seeds[-1]) == (least, most)


def test_whoever_stops_reading_results_ends_the_processes():
    before = set(multiprocessing.active_children())
    made = as_done(time.sleep, [0.0, 60.0, 60.0], workers=2)
    assert next(made) == (0, None)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 30
    left = {process.pid for process in set(multiprocessing.active_children()) - before}
    while any(map(exists, left)) and time.monotonic() - began < 30:
        time.sleep(0.05)
    assert not any(map(exists, left))


def test_a_recipe_whose_batch_switches_is_compared_with_the_run_that_does_not():
    made = recipe(batch={"size": 8, "schedule": [["0 samples", 8], ["400 samples", 32]]})
    found = arms(made, 8)
    assert list(found) == ["reference", "plan", "naive"]
    assert found["reference"].batch.schedule is None
    assert found["plan"].batch.schedule == found["naive"].batch.schedule == made.batch.schedule
    assert scaled(found["plan"], 32).half_life == pytest.approx(made.half_life)
    assert scaled(found["naive"], 32).half_life == pytest.approx(4 * made.half_life)
    assert scaled(found["naive"], 32).lr == scaled(found["plan"], 32).lr
    assert [sizes(arm) for arm in found.values()] == [{8}, {8, 32}, {8, 32}]
    assert list(arms(made, 8, ())) == ["reference", "plan"]
