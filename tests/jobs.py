"""A small training job for tests, its final state, and the ways to end it early."""

import json
import os

import torch
from tests.recipes import recipe
from torch import nn

from isobatch.checkpoint import Checkpoints
from isobatch.tasks import make_run
from isobatch.train.job import Options, train

RECIPE = recipe(
    task="digits", data_size=1437, options={"width": 8}, batch={"size": 24}, ema={"decay": 0.9},
    optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0},
    schedule={"length": "481 samples", "warmup": "48 samples"},
)  # fmt: skip
TOML = """
task = "digits"
data_size = 1437
options = {width = 8}
batch = {size = 24}
optimizer = {name = "sgd", lr = 0.02, momentum = 0.9}
schedule = {length = "481 samples"}
ema = {decay = 0.9}
"""


def with_dropout(made, seed):
    one = make_run(made, seed)
    assert isinstance(one.model, nn.Sequential)
    one.model.append(nn.Dropout(0.2))
    return one


def start(out, *, on_step=None, made=RECIPE, **options):
    out.mkdir(parents=True, exist_ok=True)
    return train(made, Options(out, every=60, **options), on_step)


def final(out):
    """Every tensor and number of the newest checkpoint by name, random numbers included; they are verified."""
    flat = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}/{key}", item)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(f"{name}/{index}", item)
        else:
            flat[name] = value

    state = Checkpoints(out / "checkpoints").load(rank=0).state
    walk("", {**state, "rng": state["rng"]["torch"]})
    return flat


def same(out, wanted, within=0.0):
    got = final(out)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(got[name], value, rtol=0, atol=within, msg=name)
        else:
            assert got[name] == value, name


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def signalled(number, at):
    """Send this process a signal in its at-th step."""
    count = 0

    def on_step(*_):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)

    return on_step
