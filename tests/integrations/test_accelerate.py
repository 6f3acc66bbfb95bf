"""The helper in a loop with a real Accelerator against the loop written out by hand."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tests.integrations.notes import Notes, check

import isobatch as ib
from isobatch.errors import InputError
from isobatch.integrations import export
from isobatch.integrations.accelerate import IsobatchHelper


def fresh(**changes):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(cpu=True, **changes)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loader(rows=54):
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), 8)


def loss(model, batch):
    return (model(batch[0]).squeeze(-1) - batch[1]).square().mean()


class Tracker:
    """One of the Accelerator's."""

    name = "notes"

    def __init__(self):
        self.told = []

    def log(self, values, step=None, **_):
        self.told.append((step, values))


class Loop:
    def __init__(self, *, scaler=None, accumulate=4, clip=0.5, **settings):
        self.accelerator = fresh(gradient_accumulation_steps=accumulate)
        self.accelerator.scaler = scaler
        model = net()
        parts = self.accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.05), loader())
        self.model, self.optimizer, self.loader = parts
        given = {"half_life": 60, "noise": {"every": 1}} | settings
        self.helper = IsobatchHelper(self.accelerator, self.model, self.optimizer, **given)
        self.clip = clip

    def train(self, epochs):
        for _ in range(epochs):
            for batch in self.loader:
                with self.accelerator.accumulate(self.model), self.helper.micro(len(batch[0])):
                    self.accelerator.backward(loss(self.model, batch))
                    if self.accelerator.sync_gradients and self.clip:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self


def by_hand(epochs=8, accumulate=4, clip=0.5, scale=1.0):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    ema, noise = ib.ModelEMA(model, half_life=60), ib.NoiseScale(model, every=1)
    for _ in range(epochs):
        batches = list(loader())
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            for batch in group:
                (loss(model, batch) / accumulate).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            rows = sum(len(batch[0]) for batch in group)
            noise.update(samples=rows)
            if any((p.grad * scale).isinf().any() for p in model.parameters()):
                scale *= 2.0**-112
            else:
                optimizer.step()
                ema.update(samples=rows)
            optimizer.zero_grad()
    return ema, noise


def same(helper, ema, noise, tolerance=1e-6):
    assert (helper.ema.seen, helper.noise.seen) == (ema.seen, noise.seen)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(helper.ema.average()[name], tensor, rtol=tolerance, atol=tolerance)
    mine, theirs = helper.noise.estimate(), noise.estimate()
    assert (mine.measurements, mine.excluded) == (theirs.measurements, theirs.excluded)
    assert mine.trace == pytest.approx(theirs.trace, rel=tolerance)
    assert mine.gradient_squared == pytest.approx(theirs.gradient_squared, rel=tolerance)


def test_the_helper_is_the_loop_by_hand(capsys):
    notes, own = Notes(), Tracker()
    run = Loop(log=notes, log_every=5)
    run.accelerator.trackers = [own]
    run.train(8)
    same(run.helper, *by_hand())
    assert run.helper.finish() in capsys.readouterr().out
    check(notes, run.helper.clock, 60)
    assert [step for step, _ in own.told] == [5, 10, 15, 16]  # its own axis, with the samples beside
    assert [values for _, values in own.told] == [values for _, values in notes.told]
    raw = copy.deepcopy(run.model.state_dict())
    with run.helper.evaluation():
        for name, tensor in run.helper.ema.average().items():
            assert torch.equal(run.model.state_dict()[name], tensor)
    assert all(torch.equal(raw[name], tensor) for name, tensor in run.model.state_dict().items())


def test_a_checkpoint_in_mid_epoch_goes_on(tmp_path):
    run = Loop().train(3)
    run.accelerator.save_state(str(tmp_path))
    again = Loop()
    again.accelerator.load_state(str(tmp_path))
    again.train(5)
    same(again.helper, *by_hand())


@pytest.mark.slow
@pytest.mark.parametrize("skips", [False, True])
def test_everything_at_once_is_still_the_loop_by_hand(tmp_path, skips):
    """Accumulation by 4, an uneven last batch, clipping or a skipped step, evaluation, an end in mid-epoch."""
    scale = 2.0**127 if skips else 1.0

    def loop():
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-112) if skips else None
        return Loop(scaler=scaler, clip=None if skips else 0.5)

    def part(run, batches):
        for batch in batches:
            with run.accelerator.accumulate(run.model), run.helper.micro(len(batch[0])):
                run.accelerator.backward(loss(run.model, batch))
                if run.accelerator.sync_gradients and run.clip:
                    run.accelerator.clip_grad_norm_(run.model.parameters(), run.clip)
                run.optimizer.step()
                run.optimizer.zero_grad()
            with run.helper.evaluation(), torch.no_grad():
                loss(run.model, batch)

    run = loop()
    part(run, (batch for place, batch in enumerate(run.loader) if place < 4))
    run.accelerator.save_state(str(tmp_path))
    again = loop()
    again.accelerator.load_state(str(tmp_path))
    part(again, again.accelerator.skip_first_batches(again.loader, 4))
    part(again, again.loader)
    ema, noise = by_hand(2, clip=None if skips else 0.5, scale=scale)
    assert (again.helper.ema.seen, again.helper.noise.seen) == (ema.seen, noise.seen)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(again.helper.ema.average()[name], tensor, rtol=1e-6, atol=1e-6)
    if not skips:
        same(again.helper, ema, noise)


def test_steps_that_a_scaler_skips_move_no_average():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-112)
    run = Loop(scaler=scaler, clip=None, accumulate=1).train(2)
    ema, _ = by_hand(2, 1, None, scale=2.0**127)
    assert run.helper.clock.skips == 1
    assert run.helper.ema.seen == ema.seen < 108
    assert run.helper.clock.drawn == 108
    for name, tensor in ema.average().items():
        torch.testing.assert_close(run.helper.ema.average()[name], tensor, rtol=1e-5, atol=1e-6)


def test_epochs_weights_and_trackers(tmp_path):
    run = Loop(half_life="2 epochs", dataloader=loader(), noise=False, accumulate=1)
    assert run.helper.ema.half_life == 108
    tokens = Loop(half_life="100 tokens", noise=False, accumulate=1)
    for batch in tokens.loader:
        with tokens.accelerator.accumulate(tokens.model), tokens.helper.micro(len(batch[0]), 3.0 * len(batch[0])):
            tokens.accelerator.backward(loss(tokens.model, batch))
            tokens.optimizer.step()
            tokens.optimizer.zero_grad()
    assert tokens.helper.ema.seen == 162


def test_a_step_outside_of_the_block_is_refused():
    run = Loop(accumulate=1)
    batch = next(iter(run.loader))
    with pytest.raises(InputError, match="inside micro"), run.helper.micro(8):
        run.accelerator.backward(loss(run.model, batch))
    with pytest.raises(InputError, match="nothing to do"):
        IsobatchHelper(run.accelerator, run.model, run.optimizer)


def test_checkpoints_of_a_sharded_model_are_refused_and_an_evaluation_is_no_steps_time(tmp_path, monkeypatch):
    run = Loop()
    ended = run.helper.noise.pace._ended = -1.0
    with run.helper.evaluation():
        pass
    assert run.helper.noise.pace._ended > ended
    monkeypatch.setattr(export, "sharded", lambda tensor: True)
    with pytest.raises(InputError, match=r"sharded.*torch\.distributed\.checkpoint"):
        run.accelerator.save_state(str(tmp_path))
