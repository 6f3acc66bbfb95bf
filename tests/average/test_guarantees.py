"""The page of guarantees: every test that it names exists; and lines of the averages that no other test holds."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from isobatch import ModelEMA
from isobatch.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:studies/)?tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_every_test_that_the_page_names_exists(file, name):
    assert f"def {name}(" in (ROOT / file).read_text()


def test_every_line_of_the_page_names_a_test():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| under")]
    assert len(lines) > 20
    assert not [line for line in lines if "tests/" not in line]


def test_a_skipped_step_is_not_counted():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ema = ModelEMA(model, half_life=10)
    ema.attach(optimizer, samples=8)
    for factor in (1.0, float("inf"), 1.0):
        scaler.scale(model(torch.ones(3, 2)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert ema.seen == 16


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_does_not_matter(fused):
    def run(watch):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        ema = ModelEMA(model, half_life=10)
        if watch:
            ema.attach(optimizer, samples=8)
        for j in range(5):
            model(torch.ones(3, 2) * j).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            if not watch:
                ema.update(samples=8)
        return ema.average()

    attached, called = run(True), run(False)
    assert all(torch.equal(t, called[n]) for n, t in attached.items())


def scripted(tmp_path):
    return torch.jit.script(nn.Linear(2, 2))


def lazy(tmp_path):
    return nn.LazyLinear(2)


def on_meta(tmp_path):
    return nn.Linear(2, 2, device="meta")


def float8(tmp_path):
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def sparse(tmp_path):
    model = nn.Module()
    model.w = nn.Parameter(torch.eye(2).to_sparse())
    return model


REFUSED = {scripted: r"torch\.jit", lazy: "no shape yet", on_meta: "meta device",
           float8: "float8.*select", sparse: "sparse_coo"}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", REFUSED)
def test_models_that_cannot_be_averaged_are_refused(make, tmp_path):
    with pytest.raises(InputError, match=REFUSED[make]):
        ModelEMA(make(tmp_path), half_life=10)
