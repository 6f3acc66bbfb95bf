"""Rows of the fault table that no other file holds: 7 on ranks, 10, 16, 17 and 20 in a job, 22, and 37 in a job."""

import math
import signal
import threading

import pytest
import torch
from tests.gloo import world
from tests.jobs import RECIPE, final, same, signalled, start
from tests.recipes import recipe
from torch import nn
from torch.nn import functional as F

from isobatch.average import ModelEMA
from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError, NonFiniteError
from isobatch.noise import NoiseScale
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.train import SampleScheduler, Trainer, job


def test_a_signal_to_one_rank_saves_all_ranks_at_the_same_step(tmp_path):  # row 7
    def ranked(rank):
        outcome = start(tmp_path / "out", on_step=signalled(signal.SIGTERM, 5) if rank == 1 else None)
        (tmp_path / f"{rank}").write_text(f"{outcome.seen} {outcome.finished}")

    world(2, tmp_path, ranked)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["120 False"] * 2
    assert final(tmp_path / "out")["/clock/seen"] == 120


def test_a_run_that_stops_inside_an_accumulation_goes_on_at_the_last_whole_step(tmp_path, monkeypatch):  # row 10
    made = RECIPE.model_validate({**RECIPE.model_dump(), "batch": {"size": 24, "micro": 8}})
    assert start(tmp_path / "whole", made=made).finished
    for passes in (3 * 6 + 1, 3 * 6 + 2, 3 * 11 + 3):
        calls, step = 0, Run.step

        def stops(self, *arguments, last=passes, healthy=step):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return healthy(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "step", stops)
            with pytest.raises(KeyboardInterrupt):
                start(tmp_path / f"{passes}", made=made)
        assert final(tmp_path / f"{passes}")["/clock/drawn"] % 24 == 0
        start(tmp_path / f"{passes}", made=made, resume=True)
        same(tmp_path / f"{passes}", final(tmp_path / "whole"))


LENGTHS = [5, 1, 7, 0, 0, 3, 2, 6]


def ragged(lengths=LENGTHS):
    """Sequences of which only the first tokens count; the loss is the mean over those of a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(lengths), 7, 3, generator=generator, dtype=torch.double)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    torch.manual_seed(1)
    net = nn.Linear(3, 1).double()

    def loss(model, batch):
        return model(batch[0])[batch[1]].square().mean()  # over no token: not a number

    return Run(
        net, TensorSamples(x, mask), loss, lambda model: {"loss": 1.0}, counts=lambda batch: float(batch[1].sum())
    )


def ragged_trainer(micro=None, lengths=LENGTHS, **parts):
    batch = {"size": 8, "micro": micro}
    return Trainer(ragged(lengths), recipe(data_size=8, batch=batch, ema=None, optimizer={"lr": 0.1}, **parts))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_ragged_tokens_and_masked_micro_batches_give_the_gradient_of_the_whole_batch(micro):  # row 16
    whole, parts = ragged_trainer(), ragged_trainer(micro)
    for size in (8, 8, 5):  # the last one is smaller
        assert whole.step(size).loss == pytest.approx(parts.step(size).loss, rel=1e-12)
        torch.testing.assert_close(parts.run.model.weight.grad, whole.run.model.weight.grad, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.run.model.weight, whole.run.model.weight, rtol=1e-12, atol=0)


def test_a_batch_in_which_nothing_counts_changes_nothing():  # row 16
    one = ragged_trainer(2, lengths=[0] * 8)
    before = one.run.model.weight.clone()
    assert one.step().loss == 0
    assert (one.seen, one.drawn) == (8, 8)
    assert torch.equal(one.run.model.weight, before)


def test_ragged_tokens_over_ranks_are_one_batch(tmp_path):  # rows 13, 16
    def ranked(rank):
        one = ragged_trainer(2)
        for size in (8, 8, 5, 1):
            one.step(size)
        torch.save(one.run.model.weight.detach(), tmp_path / f"{rank}")

    world(3, tmp_path, ranked)
    alone = ragged_trainer()
    for size in (8, 8, 5, 1):
        alone.step(size)
    for rank in range(3):
        weight = torch.load(tmp_path / f"{rank}")
        torch.testing.assert_close(weight, alone.run.model.weight.detach(), rtol=1e-12, atol=0)


def test_counts_beside_what_measures_by_samples_are_refused():
    with pytest.raises(InputError, match="counts weighs micro-batches"):
        Trainer(ragged(), recipe(data_size=8, ema=None, optimizer={"name": "invariant-adamw"}))


def test_a_run_that_turns_bad_stops_and_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):  # row 20
    def spoiled(made, seed):
        one = make_run(made, seed)
        x, y = one.samples.tensors
        x = x.clone()
        x[Trainer(make_run(made, seed), made).order.indices(200, 1237)] = math.nan
        one.samples = TensorSamples(x, y)
        return one

    monkeypatch.setattr(job, "make_run", spoiled)
    with pytest.raises(
        NonFiniteError, match=r"stopped at step 9 with 192 samples seen: .*first bad gradient: 0\.weight"
    ):
        start(tmp_path, patience=3)
    kept = final(tmp_path)
    assert (kept["/clock/seen"], kept["/clock/skipped"]) == (192, 0)
    assert all(bool(torch.isfinite(v).all()) for v in kept.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("change", [lambda t: t.flip(0), lambda t: t[:-1], lambda t: torch.cat([t, t[:1]])])
def test_a_job_is_not_resumed_on_other_data(change, tmp_path, monkeypatch):  # row 17
    start(tmp_path, on_step=signalled(signal.SIGTERM, 3))
    before = final(tmp_path)

    def other(made, seed):
        one = make_run(made, seed)
        one.samples = TensorSamples(*map(change, one.samples.tensors))
        return one

    with monkeypatch.context() as patch:
        patch.setattr(job, "make_run", other)
        with pytest.raises(InputError, match=r"(data|order) is .* in its checkpoint and .* here; resume with"):
            start(tmp_path, resume=True)
    same(tmp_path, before)
    assert start(tmp_path, resume=True).finished


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_has_not_happened_for_anybody(fused):  # row 22
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused, foreach=not fused)
    scheduler = SampleScheduler(torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8), batch_size=4)
    ema, noise = ModelEMA(net, half_life=16), NoiseScale(net, optimizer, every=1, rows=4)
    watched = ModelEMA(net, half_life=4000)
    watched.watch(optimizer)
    scheduler.attach(optimizer, 4)
    ema.attach(optimizer, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        before = [p.detach().clone() for p in net.parameters()], optimizer.param_groups[0]["lr"], ema.seen
        state = {name: value.clone() for name, value in ema.average().items()}
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(net(torch.randn(4, 2)), torch.ones(4, 1))).backward()
        if step == 3:
            net.weight.grad[0, 1] = math.inf
        noise.update(samples=4)
        scaler.step(optimizer)
        scaler.update()
        moved = ema.seen != before[2]
        assert moved == (step != 3)
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before[0], strict=True)) != moved
        assert (optimizer.param_groups[0]["lr"] != before[1]) == moved
        assert torch.equal(ema.average()["weight"], state["weight"]) != moved
        if moved:
            watched.update(samples=4)
    assert ema.seen == scheduler.seen == watched.seen == 20
    assert watched.report().warnings == ()
    assert noise.estimate().excluded == 1
    assert float(optimizer.state[net.weight]["step"]) == 5


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_in_a_callback_of_the_user_is_shown_and_closes_everything(asynchronous, tmp_path):  # row 37
    before = threading.active_count(), signal.getsignal(signal.SIGTERM)

    def on_step(step, seen, length):
        if seen == 96:
            raise LookupError("in the callback")

    with pytest.raises(LookupError, match="in the callback"):
        start(tmp_path / "cut", on_step=on_step, asynchronous=asynchronous)
    assert (threading.active_count(), signal.getsignal(signal.SIGTERM)) == before
    with Checkpoints(tmp_path / "cut" / "checkpoints") as store:  # the lock is free
        assert store.latest().seen == 72
    start(tmp_path / "whole")
    start(tmp_path / "cut", resume=True)
    same(tmp_path / "cut", final(tmp_path / "whole"))
