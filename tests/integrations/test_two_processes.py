"""Two processes count, average and measure what one does with the same global batches."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.slow


def run(kind, folder, size):
    command = [sys.executable, "-m"]
    if size > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
    command += ["tests.integrations.ranks", kind, str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"ACCELERATE_USE_CPU": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return [torch.load(folder / f"{size}-{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize(
    ("kind", "package"), [("hf", "transformers"), ("lightning", "lightning"), ("accelerate", "accelerate")]
)
def test_two_processes_are_one(tmp_path, kind, package):
    pytest.importorskip(package)
    [one] = run(kind, tmp_path, 1)
    both = run(kind, tmp_path, 2)
    for rank in both:
        assert rank["numbers"][:2] == one["numbers"][:2]
        for name, tensor in one["average"].items():
            torch.testing.assert_close(rank["average"][name], tensor, rtol=1e-6, atol=1e-6)
    assert both[0]["numbers"] == both[1]["numbers"]
