"""A softmax regression in float64 on digits, trained by recipes with [augment] and [adversary]."""

import torch
from tests.recipes import recipe
from torch import nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.train import Guard, Trainer


def parsed(**parts) -> Recipe:
    base = {
        "task": "digits", "data_size": None, "batch": {"size": 12}, "ema": None,
        "optimizer": {"name": "sgd", "lr": 0.5}, "schedule": {"length": "600 samples", "warmup": None, "shape": None},
    }  # fmt: skip
    return recipe(**{**base, **parts})


def softmax_regression() -> Run:
    """Ten rows of weights, no bias."""
    run = make_run(parsed(), 0)
    model = nn.Sequential(nn.Linear(64, 10, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(-0.2, 0.2, 640).double().sin().view(10, 64))
    x, y = run.samples.tensors
    return Run(model, TensorSamples(x.double(), y), lambda net, b: F.cross_entropy(net(b[0]), b[1]), lambda net: {})


def trainer(run: Run | None = None, *, patience: int = 0, **parts) -> Trainer:
    return Trainer(run or softmax_regression(), parsed(**parts), order_seed=3, guard=Guard(patience))


def mlp(**parts) -> Trainer:
    """The MLP of the digits in float64, with momentum and an average."""
    made = parsed(
        options={"width": 8},
        **{"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}, "ema": {"decay": 0.9}, **parts},
    )
    run = make_run(made, 0)
    run.model.double()
    run.samples = TensorSamples(*(t.double() if t.is_floating_point() else t for t in run.samples.tensors))
    return Trainer(run, made, order_seed=1, guard=Guard(1))
