"""Tasks at the edge of what a verdict can say; `declare` in their options chooses what they state of their metric."""

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.nn import functional as F

from isobatch.tasks import Metric, Run, TensorSamples, seeded

DECLARATIONS = {
    "ratio": Metric("ratio", better="lower"),
    "percent": Metric("difference", better="higher", unit="percent"),
    "fraction": Metric("difference", better="higher", unit="fraction"),
    "nats": Metric("difference", better="lower", unit="nats", scale=1.0),
}


def declared(settings, name, default):
    kind = str(settings.options.get("declare", default))
    return {} if kind == "none" else {name: DECLARATIONS[kind]}


def split(x, y, held):
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[held:], order[:held]
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-8)
    x = torch.tensor(x, dtype=torch.float32)
    return x[train], y[train], x[test], y[test]


def cancer(settings, seed, offset=0.0):
    data = datasets.load_breast_cancer()
    x, y, x_held, y_held = split(data.data, torch.tensor(data.target).long(), 113)
    with seeded(seed):
        model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    kind = str(settings.options.get("metric", "loss"))

    def metrics(net):
        out = net(x_held)
        right = float((out.argmax(1) == y_held).float().mean())
        if kind == "loss":
            return {"loss": float(F.cross_entropy(out, y_held)) - offset}
        return {"accuracy": right * (100 if kind == "pct" else 1)}

    name, default = ("loss", "ratio") if kind == "loss" else ("accuracy", "percent" if kind == "pct" else "fraction")
    return Run(
        model,
        TensorSamples(x, y),
        lambda net, b: F.cross_entropy(net(b[0]), b[1]),
        metrics,
        declared=declared(settings, name, default),
    )


def diabetes(settings, seed):
    data = datasets.load_diabetes()
    y = (data.target - data.target.mean()) / data.target.std()
    x, y, x_held, y_held = split(data.data, torch.tensor(y, dtype=torch.float32)[:, None], 89)
    width, name = int(settings.options.get("width", 32)), str(settings.options.get("name", "loss"))
    with seeded(seed):
        model = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))
    return Run(
        model,
        TensorSamples(x, y),
        lambda net, b: F.mse_loss(net(b[0]), b[1]),
        lambda net: {name: float(F.mse_loss(net(x_held), y_held))},
        declared=declared(settings, name, "ratio"),
    )


def linear(settings, seed, *, shift, noise, hinge=False):
    with seeded(0):
        x = torch.randn(2048, 8)
        y = x @ torch.randn(8, 1) + shift + noise * torch.randn(2048, 1)
        if hinge:
            x = x + 3 * torch.sign(x[:, :1]) * torch.eye(8)[0]
            y = torch.sign(x[:, :1])
    with seeded(seed):
        model = nn.Linear(8, 1)

    def loss(net, batch):
        out = net(batch[0])
        return F.relu(1 - batch[1] * out).mean() if hinge else F.mse_loss(out, batch[1])

    return Run(
        model,
        TensorSamples(x[:1024], y[:1024]),
        loss,
        lambda net: {"loss": float(loss(net, (x[1024:], y[1024:])))},
        declared=declared(settings, "loss", "ratio"),
    )


def noiseless(settings, seed):
    """The loss goes to 0, and a step that is too large to infinity."""
    return linear(settings, seed, shift=float(settings.options.get("shift", 0.0)), noise=0.0)


def offset(settings, seed):
    """A target far from 0: the first loss is 100,000 times the last."""
    return linear(settings, seed, shift=float(settings.options.get("shift", 300.0)), noise=1.0)


def zero_loss(settings, seed):
    """Hinge loss on separable data: exactly 0 on held-out data after a while."""
    return linear(settings, seed, shift=0.0, noise=0.0, hinge=True)


def shifted_loss(settings, seed):
    """A loss reported minus a constant, as a log density is: it becomes negative."""
    return cancer(settings, seed, float(settings.options.get("c", 0.3)))


def rare(settings, seed):
    """One seed leaves the finite, at a batch or above it (0: at any)."""
    run = cancer(settings, seed)
    bad, at, inner, steps = (
        int(settings.options.get("bad", 3)),
        int(settings.options.get("at_batch", 32)),
        run.loss,
        [0],
    )

    def loss(net, batch):
        steps[0] += 1
        out = inner(net, batch)
        return out * float("nan") if seed == bad and len(batch[0]) >= at and steps[0] > 10 else out

    run.loss = loss
    return run


def constant(settings, seed):
    """A metric that nothing moves."""
    run = cancer(settings, seed)
    run.metrics = lambda net: {"loss": 1.0}
    return run


def dropout(settings, seed):
    """Dropout draws from torch's own generator, and the task seeds nothing of it."""
    run = cancer(settings, seed)
    run.model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))
    return run


def broken(settings, seed):
    """A loss that raises in the middle of a run."""
    run = cancer(settings, seed)
    steps, inner, after = [0], run.loss, int(settings.options.get("after", 5))

    def loss(net, batch):
        steps[0] += 1
        if steps[0] > after:
            raise RuntimeError("the disk went away")
        return inner(net, batch)

    run.loss = loss
    return run
