"""Names of finished runs: everything that decides a run, and nothing that a later version adds."""

from dataclasses import asdict, dataclass, replace

import pytest
from tests.recipes import recipe

from isobatch.verify import cells
from isobatch.verify.workers import Job


def test_defaults_stay_out_of_a_name_so_that_a_new_field_keeps_finished_runs():
    job = Job("arm", recipe(task="digits", optimizer={"lr": 0.1}), 0, 0, (0, 8))
    values = cells.recipe_values(job.recipe)
    assert values["optimizer"] == {"name": "sgd", "lr": 0.1}
    assert "augment" not in values
    others = [
        replace(job, recipe=recipe(task="digits", optimizer={"lr": 0.2})),
        replace(job, seed=1),
        replace(job, stream=1),
        replace(job, stops=(0, 16)),
        replace(job, device="cuda"),
    ]
    assert len({cells.name(one) for one in [job, *others]}) == 6
    assert cells.name(replace(job, arm="another name")) == cells.name(job)


@dataclass
class Doubled:
    number: int


def double(number: int) -> Doubled:
    return Doubled(2 * number)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_kept_under_names_that_only_this_process_can_make(workers, tmp_path):
    def run():
        found = cells.run_all(
            double,
            [3, 4],
            tmp_path,
            name=lambda job: f"{job}.json",
            read=lambda values: Doubled(**values),
            workers=workers,
        )
        return [asdict(one)["number"] for one in found or ()]

    assert run() == run() == [6, 8]
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["3.json", "4.json"]


def test_two_tasks_of_a_study_may_have_the_same_reference(tmp_path):
    short = recipe(task="digits", data_size=1437, schedule={"length": "64 samples", "warmup": "8 samples"})
    groups = [[Job(arm, short, seed, 0, (0, 64)) for seed in (0, 1)] for arm in ("16x base", "64x base")]
    for _ in range(2):
        found = cells.train_all(groups, tmp_path, workers=1)
        assert {arm: [curve.seed for curve in runs] for arm, runs in found.items()} == {
            "16x base": [0, 1],
            "64x base": [0, 1],
        }
        assert found["16x base"][0].values == found["64x base"][0].values
