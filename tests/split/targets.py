"""Trainers as files on a command line: right, wrong, and misbehaving."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from isobatch.split import Subject, pieces


def trainer(
    scale=lambda piece, batch, parts: len(piece) / len(batch), rows=24, wrap=lambda net: net, before=lambda: None
):
    x, net = torch.randn(rows, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net = wrap(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            before()
            loss = net(piece).square().mean() * scale(piece, batch, parts)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(net, update, x)


def good():
    return trainer()


def bad(settings, seed):
    return trainer(lambda piece, batch, parts: 1.0)


def raises():
    raise RuntimeError("no data here")


def update_raises():
    def fail():
        raise ValueError("a shape that does not fit")

    return trainer(before=fail)


def other_data():
    made = trainer()
    made.samples = torch.tensor([[int.from_bytes(os.urandom(3), "big") / 2**24] * 3 for _ in range(24)])
    return made


def not_deterministic():
    def drift():
        return (time.time_ns() % 1000003) / 1000003

    return trainer(lambda piece, batch, parts: drift())


def needs_gpu():
    return trainer(wrap=lambda net: net.to("cuda"))


def too_large():
    return trainer(before=lambda: torch.empty(2**58))


def hangs():
    return trainer(before=lambda: time.sleep(1000))


def killed():
    return trainer(before=lambda: os.kill(os.getpid(), signal.SIGKILL))


STARTED = []


def untidy():
    """Prints in every way there is, and leaves a thread and a program behind."""
    sys.stdout.write("by Python\n")
    print("past what stands for stdout", file=sys.__stdout__, flush=True)
    os.write(1, b"past Python\n")
    if not STARTED:
        threading.Thread(target=time.sleep, args=(1000,)).start()
        STARTED.append(subprocess.Popen(["sleep", "98765"], start_new_session=True))
    return trainer()


def few_rows():
    return trainer(rows=5)


def never_splits():
    made = trainer()
    update = made.update
    made.update = lambda batch, parts: update(batch, 1)
    return made


def nothing():
    return 3


def data_parallel():
    return trainer(wrap=wrapped)


def wrapped(net):
    return DistributedDataParallel(net) if dist.is_initialized() else net


def never_synchronised_in_parts():
    x, net = torch.randn(24, 3), wrapped(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            with net.no_sync() if parts > 1 and dist.is_initialized() else nullcontext():
                (net(piece).square().mean() * len(piece) / len(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, x)


def one_rank_fails():
    def fail():
        if dist.is_initialized() and dist.get_rank() == 1:
            raise ValueError("rank one is sick")

    return trainer(wrap=wrapped, before=fail)


def data_parallel_sums():
    """A sum over the processes where a mean is wanted."""

    def scale(piece, batch, parts):
        return len(piece) / len(batch) * (dist.get_world_size() if dist.is_initialized() else 1)

    return trainer(scale, wrap=wrapped)


def ranks_apart():
    return trainer()


def waits_for_all_that_were_launched():
    """A script as it stands: where torchrun says that there are others, it meets them."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return data_parallel()


def sharded():
    def shard(net):
        if dist.is_initialized():
            fully_shard(net)
        return net

    return trainer(wrap=shard)


def one_rank_hangs():
    def stop():
        if dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(1000)

    return trainer(wrap=wrapped, before=stop)
