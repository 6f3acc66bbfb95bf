"""Out of memory: the global batch is kept, taken in smaller parts."""

import math
from dataclasses import replace

import pytest
import torch
from tests.gloo import world
from tests.jobs import RECIPE, final, lines, same, start, with_dropout

from isobatch.errors import InputError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import job
from isobatch.train.gradient import Accumulator


def small_memory(most, task, fails=lambda call: True):
    """A run in float64 whose loss has no memory for more than `most` samples, after the forward pass."""

    def make(made, seed):
        one = make_run(made.model_copy(update={"task": task}), seed)
        one.model.double()
        assert isinstance(one.samples, TensorSamples)
        x, y = one.samples.tensors
        healthy, calls = one.loss, 0

        def loss(model, batch):
            nonlocal calls
            calls += 1
            value = healthy(model, batch)
            if len(batch[0]) > most and fails(calls):
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
            return value

        return replace(one, samples=TensorSamples(x.double(), y), loss=loss, metrics=lambda net: {"loss": 0.0})

    return make


@pytest.mark.parametrize("micro", [None, 12])
@pytest.mark.parametrize("fails", [lambda call: True, lambda call: call == 2], ids=["always", "once"])
def test_a_batch_that_does_not_fit_is_taken_in_parts(fails, micro, tmp_path, monkeypatch):
    made = RECIPE.model_copy(update={"batch": RECIPE.batch.model_copy(update={"micro": micro})})
    for out, most in (("large", 24), ("small", 5)):
        monkeypatch.setattr(job, "make_run", small_memory(most, "digits", fails))
        assert start(tmp_path / out, made=made).steps == 21
    same(tmp_path / "small", final(tmp_path / "large"), within=1e-12)
    assert [line.get("batch") for line in lines(tmp_path / "small")] == [
        line.get("batch") for line in lines(tmp_path / "large")
    ]


def test_a_pass_that_failed_leaves_no_trace_in_batch_norm(tmp_path, monkeypatch):
    parts = RECIPE.model_dump()
    for out, most, micro in (("large", 24, 6), ("small", 6, None)):
        batch = {**parts["batch"], "micro": micro}
        made = RECIPE.parse({"task": "digits-cnn", "batch": batch} | {
            key: parts[key] for key in ("data_size", "optimizer", "schedule", "ema", "options")
        })  # fmt: skip
        monkeypatch.setattr(job, "make_run", small_memory(most, "digits-cnn"))
        start(tmp_path / out, made=made)
    same(tmp_path / "small", final(tmp_path / "large"), within=1e-12)


@pytest.mark.parametrize("short", [{1}, {0, 1}], ids=["one rank", "every rank"])
def test_ranks_run_out_of_memory_together(short, tmp_path, monkeypatch):
    optimizer = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    schedule = [["0 samples", 24], ["96 samples", 48], ["240 samples", 25]]
    batch = {"size": 24, "schedule": schedule}
    made = RECIPE.model_validate({**RECIPE.model_dump(), "optimizer": optimizer, "batch": batch})

    def ranked(rank):
        most = 5 if rank in short else 99
        make = small_memory(most, "digits")
        job.make_run = make
        start(tmp_path / "small", made=made)

    world(2, tmp_path, ranked)
    monkeypatch.setattr(job, "make_run", small_memory(99, "digits"))
    start(tmp_path / "large", made=made)
    got, wanted = final(tmp_path / "small"), final(tmp_path / "large")
    assert (got.pop("/world"), wanted.pop("/world")) == (2, 1)
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-12, msg=key)
        else:
            assert got[key] == value, key


@pytest.mark.parametrize("name", ["sgd", "invariant-adamw"])
def test_a_trial_of_memory_leaves_no_trace(name, tmp_path, monkeypatch):
    """Random numbers, running statistics and squares of gradients are those of a run that tried nothing."""
    optimizer = {"name": name, "lr": 1e-3, "weight_decay": 0.1}
    made = RECIPE.model_validate({**RECIPE.model_dump(), "optimizer": optimizer})

    def ranked(rank):
        job.make_run = with_dropout
        start(tmp_path / "tried", made=made)
        monkeypatch.setattr(Accumulator, "__init__", untried)
        start(tmp_path / "untried", made=made)

    def untried(self, *arguments):
        init(self, *arguments)
        self.fits = math.inf

    init = Accumulator.__init__
    world(2, tmp_path, ranked)
    same(tmp_path / "tried", final(tmp_path / "untried"))


def test_one_sample_that_does_not_fit_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "make_run", small_memory(0, "digits"))
    with pytest.raises(InputError, match="one sample does not fit into memory"):
        start(tmp_path)
