"""A Ray cluster of this machine."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.executors.engines import environment, task_of_users
from tests.executors.tasks_of_users import Found, Once, work

from isobatch.errors import InputError
from isobatch.executors import map_jobs, opened, width
from isobatch.plan import Recipe
from isobatch.verify.workers import Job, train_curve

ray = pytest.importorskip("ray", reason='Ray is no part of the dev extra, for its size: pip install "isobatch[ray]"')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own, on import and while it starts


@contextmanager
def cluster(monkeypatch, **options):
    """Two cores and one GPU, as Ray is told."""
    for name, value in environment(RAY_worker_niceness="0").items():  # nice workers starve on a busy machine
        monkeypatch.setenv(name, value)
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error", **options)
    try:
        yield
    finally:
        ray.shutdown()


def shared(job):
    """Which GPU a call sees, once four of them are there at the same time."""
    Path(job.folder, f"at-once-{job.number}").touch()
    until = time.monotonic() + 120
    while len(list(Path(job.folder).glob("at-once-*"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), len(list(Path(job.folder).glob("at-once-*")))


def test_a_killed_worker_changes_no_bit_a_poisoned_run_is_named_and_runs_share_a_gpu(tmp_path, monkeypatch):
    """One cluster for all, which takes seconds to start."""
    recipe, marks = task_of_users(tmp_path), tmp_path / "marks"
    marks.mkdir()
    with monkeypatch.context() as here:
        here.syspath_prepend(tmp_path)
        made = [Job("a", Recipe.load(recipe), seed, 0, (0, 256, 512)) for seed in range(3)]
        plain = [train_curve(job).values for job in made]
        here.setenv("MARKS", str(marks))
        with cluster(here), opened("ray") as executor:
            assert width(executor, None) == 2
            assert [one.values for one in map_jobs(train_curve, made, executor=executor)] == plain
            assert (marks / "1").exists()
            todo = [Once(n, n, str(tmp_path), 9 if n == 1 else 0) for n in range(3)]
            done: list[Found] = []
            with pytest.raises(InputError, match=r"^seed 1 .*ended from outside every time"):
                map_jobs(work, todo, executor=executor, on_done=done.append)
            assert sorted(one.number for one in done) == [0, 4]
            assert len(list(tmp_path.glob("1-*"))) == 3
            with opened("ray?cpus=0.5&gpus=0.25&memory_gb=0.1") as thin:
                assert width(thin, None) == 4
                seen = map_jobs(shared, [Once(n, n, str(tmp_path)) for n in range(4)], executor=thin)
                assert seen == [("0", 4)] * 4
            with pytest.warns(UserWarning, match="2 GPUs; this Ray cluster has 2 and 1"), opened("ray?gpus=2"):
                pass
