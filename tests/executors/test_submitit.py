"""submitit: its local executor in processes of their own, and what is asked of Slurm."""

import os
import re
import signal
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from tests.executors.tasks_of_users import Found, Once, work

from isobatch.errors import InputError, WorkerLost
from isobatch.executors import map_jobs, opened, slurm

pytest.importorskip("submitit")

SBATCH = """#!/bin/sh
cp "$1" "$SEEN"
echo "Submitted batch job 7"
"""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_jobs_bring_back_their_result_their_error_or_their_loss(tmp_path):
    with opened(f"slurm:cluster=local,folder={tmp_path}", workers=3) as executor:
        fine, wrong, lost = executor.submit(pow, 2, 5), executor.submit(int, "a"), executor.submit(die)
        assert fine.result(120) == 32
        with pytest.raises(ValueError, match="invalid literal"):
            wrong.result(120)
        with pytest.raises(WorkerLost, match=r"job \d+: no result; its log"):
            lost.result(120)


def slurm_of(folder, monkeypatch):
    """Stand-ins for Slurm's commands; the file that the last job was asked by."""
    (folder / "bin").mkdir()
    for name in ("srun", "sbatch", "sacct", "scancel"):
        (folder / "bin" / name).write_text(SBATCH if name == "sbatch" else "#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    return folder / "seen"


@pytest.mark.parametrize(("words", "device", "asked"), [
    ("partition=gpu,gpus=1,cpus=4,memory_gb=16,minutes=120,account=us", "cpu",
     {"partition": "gpu", "gpus-per-node": "1", "cpus-per-task": "4", "mem": "16GB", "time": "120", "account": "us"}),
    ("partition=gpu", "cuda", {"gpus-per-node": "1", "cpus-per-task": "1", "time": "60"}),
    ("partition=cpu", "cpu", {"cpus-per-task": "1"}),
    ("gpus=0,gres=shard:1", "cuda", {"gres": "shard:1"}),
])  # fmt: skip
def test_what_a_run_takes_is_asked_of_slurm(tmp_path, monkeypatch, words, device, asked):
    seen = slurm_of(tmp_path, monkeypatch)
    began = time.monotonic()
    with opened(f"slurm:{words},folder={tmp_path / 'logs'}", device=device) as executor:
        executor.submit(pow, 2, 5)
        until = time.monotonic() + 20
        while not seen.is_file() and time.monotonic() < until:
            time.sleep(0.02)
    assert time.monotonic() - began < 20  # what Slurm never ends is cancelled when the block is left
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", seen.read_text(), re.M))
    assert asked.items() <= found.items()
    assert ("gpus-per-node" in found) == ("gpus-per-node" in asked)


def test_jobs_of_two_calls_whose_numbers_are_the_same_do_not_find_each_others_results(tmp_path):
    seen = set()
    for _ in range(2):
        with opened(f"slurm:cluster=local,folder={tmp_path}") as executor:
            seen.add(executor._jobs.folder)
    assert len(seen) == 2
    assert {path.parents[1] for path in seen} == {tmp_path}


@pytest.mark.parametrize(("states", "fine"), [
    (["RUNNING", "COMPLETED"], True),
    (["PREEMPTED", "PENDING", "RUNNING", "PREEMPTED", "RUNNING", "COMPLETED"], True),  # twice, and queued again
    (["RUNNING", "PREEMPTED"], False),  # cancelled by it, which submitit takes for a pause
    (["RUNNING", "NODE_FAIL"], False),
])  # fmt: skip
def test_a_job_that_was_preempted_is_waited_for_or_lost_and_never_runs_beside_its_successor(
    tmp_path, monkeypatch, states, fine
):
    monkeypatch.setattr(slurm, "_POLL", 0.001)
    monkeypatch.setattr(slurm, "_GRACE", 0.01)
    monkeypatch.setattr(slurm, "_QUEUED", 0.05)
    left, cancelled, result = list(states), [], tmp_path / "result"

    def done():
        state = left.pop(0) if len(left) > 1 else left[0]
        if state == "COMPLETED":
            result.touch()
        return state in ("COMPLETED", "NODE_FAIL")

    class Job(SimpleNamespace):
        state = property(lambda self: left[0])

    job = Job(
        job_id="7", done=done, cancel=lambda check: cancelled.append(7),
        paths=SimpleNamespace(result_pickle=result, stderr=tmp_path / "log"),
        _get_outcome_and_result=lambda: ("success", (True, 9)),
    )  # fmt: skip
    executor = slurm.SubmititExecutor(SimpleNamespace(submit_array=lambda calls: [job]), 1)
    with nullcontext() if fine else pytest.raises(WorkerLost, match="job 7: no result"):
        assert executor.submit(pow, 3, 2).result(20) == 9
    executor.shutdown()
    assert cancelled == ([] if fine else [7])


def test_a_share_of_a_gpu_is_no_word_of_slurm(tmp_path, monkeypatch):
    slurm_of(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"gpus=0.25 must be a whole number.*gres=shard:1"), opened("slurm:gpus=0.25"):
        raise AssertionError


@pytest.mark.slow
def test_a_poisoned_run_is_named_while_the_others_come_in(tmp_path):
    (tmp_path / "tries").mkdir()
    made = [Once(n, n, str(tmp_path / "tries"), 9 if n == 1 else 0) for n in range(3)]
    done: list[Found] = []
    began = time.monotonic()
    with (
        opened(f"slurm:cluster=local,folder={tmp_path / 'logs'}", workers=2) as executor,
        pytest.raises(InputError, match=r"^seed 1 .*ended from outside every time"),
    ):
        map_jobs(work, made, executor=executor, on_done=done.append)
    assert sorted(one.number for one in done) == [0, 4]
    assert len(list((tmp_path / "tries").glob("1-*"))) == 3
    assert time.monotonic() - began < 90  # three starts of Python with torch, one after another
