"""Tasks that do what a task should not; `trick` in their options chooses which."""

import os
import random
import sys
import threading

import numpy as np
import torch
from torch import nn

from isobatch.tasks import Metric, Run, TensorSamples, seeded

RATIO = Metric("ratio", better="lower")
POINTS = Metric("difference", better="higher", unit="percent")
ACTS = ("prints", "threads", "dtype", "deterministic", "exits", "exits with 0", "draws", "dies", "one thread")


class Odd:
    """Metrics by the number of evaluations and steps so far."""

    def __init__(self, trick, seed, batch):
        self.trick, self.seed, self.batch, self.looked, self.steps = trick, seed, batch, 0, 0

    def __call__(self, net, loss):
        self.looked += 1
        late, large = self.looked > 20, self.batch > 4
        act = getattr(self, self.trick.replace(" ", "_"), None)
        return {"loss": loss} if act is None else act(loss, late, large)

    def scalars(self, loss, late, large):
        return {"loss": (np.float32, torch.tensor, lambda v: torch.tensor([v]), str)[self.looked % 4](loss)}

    def none(self, loss, late, large):
        return {"loss": None if late else loss}

    def nested(self, loss, late, large):
        return {"loss": {"mean": loss}} if late else {"loss": loss}

    def empty(self, loss, late, large):
        return {} if late else {"loss": loss}

    def list(self, loss, late, large):
        return [loss] if late else {"loss": loss}

    def vanishes(self, loss, late, large):
        return {"aux": 1.0} if late else {"loss": loss, "aux": 1.0}

    def appears(self, loss, late, large):
        return {"loss": loss, "aux": 1.0} if late else {"loss": loss}

    def another_at_the_large_batch(self, loss, late, large):
        return {"nll": loss} if large else {"loss": loss}

    def overflows_at_the_large_batch(self, loss, late, large):
        return {"loss": 10.0**400 if large and late else loss}

    def numbered(self, loss, late, large):
        return {0: loss}

    def other_is_nan_at_the_large_batch(self, loss, late, large):
        return {"loss": loss, "aux": float("nan") if large and late else 1.0}

    def aux_is_never_a_number(self, loss, late, large):
        return {"loss": loss, "aux": float("nan")}

    def dollars(self, loss, late, large):
        return {r"$\frac{x}$ <b>&[red]": loss}

    def still_but_for_noise(self, loss, late, large):
        return {"loss": 1.0 + 1e-4 * random.random()}

    def explodes_at_the_large_batch(self, loss, late, large):
        return {"loss": 1e30 * loss if large and self.looked == 12 else loss}


DECLARED = {
    "another at the large batch": {"loss": RATIO, "nll": RATIO},
    "numbered": {0: RATIO},
    "dollars": {r"$\frac{x}$ <b>&[red]": RATIO},
    "declares a word": {"loss": "ratio"},
    "declares a list": ["loss"],
    "declares nothing": None,
}
TWO = {"loss": Metric("ratio", better="lower", headline=True), "aux": RATIO}


def act(trick, seed):
    """What a task does to the process that it runs in."""
    if trick == "prints":
        sys.stdout.write("a task that talks\n")
    elif trick == "threads":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif trick == "dtype" and seed == 1:
        torch.set_default_dtype(torch.float64)
    elif trick == "deterministic" and seed == 1:
        torch.use_deterministic_algorithms(mode=True)
    elif trick == "one thread":
        torch.set_num_threads(1 + seed % 2)
    elif trick.startswith("exits") and seed == 2:
        sys.exit(0 if trick == "exits with 0" else "no data here")
    elif trick == "dies" and seed == 2:
        os._exit(0)
    elif trick == "draws":
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002


def make(settings, seed):
    """A linear model on noisy targets, with a trick."""
    trick, width = str(settings.options.get("trick", "")), int(settings.options.get("width", 4))
    with seeded(0):
        x = torch.randn(256, width)
        y = x @ torch.randn(width, 1) + 0.5 * torch.randn(256, 1)
    if trick in ACTS:
        act(trick, seed)
    with seeded(seed):
        model = nn.Linear(width, 1)
    odd = Odd(trick, seed, settings.batch.size)
    dtype = model.weight.dtype
    x, y = x.to(dtype), y.to(dtype)

    def loss(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    def metrics(net):
        return odd(net, float(loss(net, (x[128:], y[128:]))))

    declared = DECLARED.get(
        trick, TWO if "aux" in trick or "other" in trick or trick in ("vanishes", "appears") else {"loss": RATIO}
    )
    facts = {"count": 3, 4: torch.tensor(2)} if trick == "facts" else {}
    return Run(model, TensorSamples(x[:128], y[:128]), loss, metrics, facts, declared=declared)
