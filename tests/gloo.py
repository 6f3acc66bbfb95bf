"""Worlds of forked gloo processes; each rank does the same action, leaves files behind or answers."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what ranks load on the way (DDP, FSDP2), loaded once before they fork
import torch.distributed.fsdp
import torch.distributed.tensor
from tests.crash import fork, wait
from torch import distributed as dist


def world(size: int, folder: Path, action: Callable[[int], object]) -> None:
    """Run action(rank) in `size` forked ranks that meet in a folder; fails when one of them fails."""
    meeting = folder / f"meeting-{os.urandom(4).hex()}"

    def main(rank: int) -> None:
        torch.set_num_threads(1)
        store = dist.FileStore(str(meeting), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=30))
        try:
            action(rank)
        finally:
            dist.destroy_process_group()

    pids = [fork(lambda rank=rank: main(rank)) for rank in range(size)]
    codes = [wait(pid) for pid in pids]
    assert codes == [0] * size, codes


def answers(size: int, folder: Path, action: Callable[[int], Any]) -> list[Any]:
    """Return what action(rank) returns in each of `size` ranks: plain values and tensors."""
    world(size, folder, lambda rank: torch.save(action(rank), folder / f"answer-{rank}.pt"))
    return [torch.load(folder / f"answer-{rank}.pt", weights_only=True) for rank in range(size)]
