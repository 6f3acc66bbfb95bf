"""The programs of docs/trainers.md run, and gain at most 20 lines each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trainers.md").read_text()
PROGRAMS = re.findall(r"^```py(?:thon)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NAMED = {"".join(re.findall(r"^# (\w+)\.py", text)) or "loop": text for text in PROGRAMS}
NEEDS = {"loop": "torch", "hf": "transformers", "lit": "lightning", "acc": "accelerate", "shards": "torch"}


def test_five_programs_of_at_most_twenty_added_lines():
    assert len(PROGRAMS) == 5
    assert NAMED.keys() == NEEDS.keys()
    for text in PROGRAMS:
        added = re.findall(r"^ *# isobatch\n(.*?)^ *# end$", text, re.MULTILINE | re.DOTALL)
        lines = [line for part in added for line in part.splitlines() if line.strip()]
        assert 0 < len(lines) <= 20
        assert "isobatch" in " ".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_programs_run(name, tmp_path):
    pytest.importorskip(NEEDS[name])
    (tmp_path / f"{name}.py").write_text(NAMED[name])
    command = [sys.executable, f"{name}.py"]
    if name == "shards":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"{name}.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "shards":
        assert done.stdout.count("64 Is a larger batch worth it?") == 2
    else:
        assert done.stdout.count("Is a larger batch worth it?") == 1
    if name == "hf":
        assert (tmp_path / "averaged" / "model.safetensors").exists()
    if name == "lit":
        assert (tmp_path / "average.safetensors").exists()
