"""torchrun, as people call it: two processes write one result, and a smaller world takes the run up again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.jobs import TOML, final

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes, *words):
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "isobatch", "train"]
    found = subprocess.run(
        [sys.executable, *start, *words], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert found.returncode == 0, found.stderr
    return found


@pytest.mark.slow
def test_torchrun_trains_and_a_world_of_one_resumes(tmp_path):
    file, out = tmp_path / "recipe.toml", tmp_path / "out"
    file.write_text(TOML)
    found = torchrun(2, str(file), "--out", str(out), "--every", "240 samples", "--json")
    result = json.loads((out / "result.json").read_text())
    assert (result["seen"], result["steps"], result["finished"], result["exit_code"]) == (481, 21, True, 0)
    assert result["metrics"]["average"]["loss"] > 0
    assert json.loads(found.stdout)["seen"] == 481
    assert len((out / "log.jsonl").read_text().splitlines()) == 21 + 2 * 3
    assert final(out)["/world"] == 2
    torchrun(1, str(file), "--out", str(out), "--resume")
    assert json.loads((out / "result.json").read_text())["metrics"] == result["metrics"]
