"""One process of a run with two: python -m tests.integrations.ranks KIND FOLDER, under torchrun or alone."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def hf(folder):
    from tests.integrations.test_hf import IsobatchCallback, trained

    world = int(os.environ.get("WORLD_SIZE", "1"))
    callback = IsobatchCallback(50, noise={"every": 1}, quiet=True)
    trained(
        folder,
        callback,
        rows=48,
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=3,
        **({"ddp_backend": "gloo"} if world > 1 else {}),
    )
    return callback


def lightning(folder):
    from tests.integrations.test_lightning import Net, ours, pl
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    world = int(os.environ.get("WORLD_SIZE", "1"))
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    rows = TensorDataset(x, x.sum(1))
    rank = int(os.environ.get("RANK", "0"))
    sampler = DistributedSampler(rows, world, rank, shuffle=False)
    data = DataLoader(rows, 8 // world, sampler=sampler)
    callback = ours()
    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(
        default_root_dir=folder,
        use_distributed_sampler=False,
        max_epochs=4,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        accumulate_grad_batches=3,
        callbacks=[callback],
        **silent,
    )
    trainer.fit(Net(), data)
    return callback


def accelerate(folder):
    import tests.integrations.test_accelerate as own
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    own.fresh = lambda **changes: Accelerator(cpu=True, **changes)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    own.loader = lambda: DataLoader(TensorDataset(x, x.sum(1)), 8 // world)
    return own.Loop(accumulate=3).train(4).helper


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    found = globals()[kind](folder / "run")
    estimate = found.noise.estimate()
    numbers = [found.ema.seen, found.noise.seen, estimate.measurements, estimate.trace, estimate.gradient_squared]
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    torch.save({"numbers": numbers, "average": dict(found.ema.average())}, folder / f"{size}-{rank}.pt")
