"""The loop of the page under torchrun: three nodes on a ring, their average and noise scale inside each node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
import isobatch as ib
from isobatch.decentralized import graphs
from isobatch.decentralized import Decentralized

dist.init_process_group("gloo")
rank, nodes = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = torch.nn.Linear(4, 1).double()
data = torch.Generator().manual_seed(rank)
optimizer = Decentralized(
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), graphs.ring(nodes).lazy(), method="decentlam"
)
ema, noise = ib.ModelEMA(model, half_life=500), ib.NoiseScale(model)
for _ in range(60):
    x = torch.randn(16, 4, generator=data, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + rank + torch.randn(16, 1, generator=data, dtype=torch.float64)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    noise.update(samples=16)
    optimizer.step()
    ema.update(samples=16 * nodes)
estimate = noise.estimate()
with optimizer.averaged():
    bias = model.bias.item()
found = {"bias": bias, "metrics": optimizer.metrics(), "measurements": estimate.measurements, "reason": estimate.reason}
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(found, file, default=str)
optimizer.close()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_three_nodes_under_torchrun_agree_on_the_mean_of_their_answers(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(SCRIPT)
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=3",
        str(file),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert len({one["bias"] for one in found}) == 1  # the exact average is one model
    assert found[0]["bias"] == pytest.approx(1.0, abs=0.3)  # the mean of the nodes' answers 0, 1, 2
    assert all(one["measurements"] > 2 for one in found), found
