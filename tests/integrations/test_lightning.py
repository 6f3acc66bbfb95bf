"""The callback in a real Lightning Trainer against the loop written out by hand."""

import copy
import gc
import logging
import warnings
import weakref

import pytest
import torch
from torch import nn

pytest.importorskip("lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tests.integrations.notes import Notes, check

import isobatch as ib
from isobatch.average import CopyUntil
from isobatch.errors import InputError
from isobatch.integrations import export
from isobatch.integrations.lightning import IsobatchCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*(num_workers|many workers|logging interval|litlogger|ckpt_path|val_dataloader)"
    ),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own, with this torch
]


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.validated = []

    def loss(self, batch):
        return (self.net(batch[0]).squeeze(-1) - batch[1]).square().mean()

    def training_step(self, batch, place):
        return self.loss(batch)

    def validation_step(self, batch, place):
        self.validated.append(float(self.loss(batch)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(rows=54, seed=0):
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1)), 8)


def fit(folder, callback, module=None, *, checkpoint=None, others=(), data=None, **changes):
    given = {"default_root_dir": folder, "max_epochs": 4, "accelerator": "cpu", "devices": 1, "logger": False,
             "enable_progress_bar": False, "enable_model_summary": False,
             "enable_checkpointing": any(isinstance(o, ModelCheckpoint) for o in others)}  # fmt: skip
    module = module or Net()
    trainer = pl.Trainer(**given | changes, callbacks=[callback, *others])
    trainer.fit(module, data or loader(), loader(16, 1), ckpt_path=checkpoint, weights_only=True)
    return module, trainer


def by_hand(epochs=4, accumulate=1, clip=None, half_life=60.0, scale=1.0):
    module = Net()
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    ema, noise = ib.ModelEMA(module, half_life=half_life), ib.NoiseScale(module, every=1)
    for _ in range(epochs):
        batches = list(loader())
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            for batch in group:
                (module.loss(batch) / accumulate).backward()
            rows = sum(len(batch[0]) for batch in group)
            noise.update(samples=rows)
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            if any((p.grad * scale).isinf().any() for p in module.parameters()):
                scale *= 2.0**-112
            else:
                optimizer.step()
                ema.update(samples=rows)
            optimizer.zero_grad()
    return module, ema, noise


def ours(**changes):
    return IsobatchCallback(60, noise={"every": 1}, quiet=True, **changes)


def same(callback, ema, noise, tolerance=1e-6):
    assert (callback.ema.seen, callback.noise.seen) == (ema.seen, noise.seen)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=tolerance, atol=tolerance)
    mine, theirs = callback.noise.estimate(), noise.estimate()
    assert (mine.measurements, mine.excluded) == (theirs.measurements, theirs.excluded)
    assert mine.trace == pytest.approx(theirs.trace, rel=tolerance)
    assert mine.gradient_squared == pytest.approx(theirs.gradient_squared, rel=tolerance)


@pytest.mark.parametrize("lends", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_averages_of_one_fit_go_on_from_a_checkpoint(tmp_path, lends):
    def two():
        words = ["average" if place == lends else "raw" for place in range(2)]
        return [
            IsobatchCallback(h, evaluate=w, quiet=True, name=n)
            for h, w, n in zip((60, 9), words, ("", "b"), strict=True)
        ]

    first = two()
    _, trainer = fit(tmp_path, first[0], others=[first[1]], max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = two()
    fit(tmp_path, again[0], others=[again[1]], max_epochs=4, checkpoint=tmp_path / "half.ckpt")
    for callback, half_life in zip(again, (60.0, 9.0), strict=True):
        _, ema, _ = by_hand(half_life=half_life)
        assert callback.ema.seen == ema.seen
        for name, tensor in ema.average().items():
            torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", ["evaluate", "export"])
def test_two_averages_for_one_place_are_refused_before_the_fit(tmp_path, word):
    one, other = (IsobatchCallback(h, quiet=True, name=str(h), **{"evaluate": "raw", word: "average"}) for h in (60, 9))
    with pytest.raises(InputError, match=f'2 callbacks would give .* take {word}="raw" in the others'):
        fit(tmp_path, one, others=[other])


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (4, 0.5)])
def test_the_callback_is_the_loop_by_hand_with_validation_in_between(tmp_path, accumulate, clip):
    callback = ours()
    module, _ = fit(tmp_path, callback, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    _, ema, noise = by_hand(accumulate=accumulate, clip=clip)
    same(callback, ema, noise)
    with torch.no_grad():
        raw = [float(module.loss(batch)) for batch in loader(16, 1)]
        with callback.ema.applied(module):
            averaged = [float(module.loss(batch)) for batch in loader(16, 1)]
    assert module.validated[-2:] == averaged != raw


def test_a_resume_goes_on_as_if_nothing_had_happened(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(tmp_path, ours(), others=[keep], max_epochs=2)
    callback = ours()
    fit(tmp_path, callback, checkpoint=str(tmp_path / "last.ckpt"))
    same(callback, *by_hand()[1:])


class Resumable:
    """A loader that knows its place, as Lightning asks for in the middle of an epoch."""

    def __init__(self):
        self.batches, self.at = list(loader()), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.at %= len(self.batches)
        while self.at < len(self.batches):
            self.at += 1
            yield self.batches[self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_resume_in_the_middle_of_an_epoch(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=10, save_top_k=-1, filename="{step}")
    fit(tmp_path, ours(), others=[keep], max_epochs=2, data=Resumable())
    callback = ours()
    fit(tmp_path, callback, checkpoint=str(tmp_path / "step=10.ckpt"), data=Resumable())
    same(callback, *by_hand()[1:])


def loaded(module):
    module.load_state_dict(Net().state_dict())
    return module


BETWEEN = {  # what becomes of a module between two fits of one callback, and whether it is the same run afterwards
    "nothing": (lambda module: module, True),
    "another dtype and back": (lambda module: module.double().float(), True),
    "other weights": (loaded, False),
    "another module": (lambda module: Net(), False),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_second_fit_of_the_same_model_goes_on(tmp_path, name):
    between, goes_on = BETWEEN[name]
    callback = ours()
    module, _ = fit(tmp_path, callback, max_epochs=1, limit_val_batches=0)
    average, measured = callback.ema, weakref.ref(callback.noise)
    fit(tmp_path, callback, between(module), max_epochs=1, limit_val_batches=0)
    gc.collect()
    assert measured() is None, "it would go on measuring"
    assert (callback.ema is average) is goes_on
    _, ema, _ = by_hand(epochs=2 if goes_on else 1)
    assert callback.clock.seen == callback.ema.seen == ema.seen
    assert callback.noise.seen == 54
    for key, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[key], tensor, rtol=1e-6, atol=1e-6)


class Stumbles(Net):
    def training_step(self, batch, place):
        if place == 3 and not self.trainer.current_epoch and self.trainer.max_epochs == 1:
            raise ValueError("stumbled")
        return super().training_step(batch, place)


def test_a_fit_after_one_that_failed_goes_on_and_counts_epochs_by_its_own_data(tmp_path):
    callback, module = IsobatchCallback("2 epochs", quiet=True, export="average"), Stumbles()
    with pytest.raises(ValueError, match="stumbled"):
        fit(tmp_path, callback, module, max_epochs=1, limit_val_batches=0)
    assert (callback.ema.seen, callback.ema.half_life) == (24, 108)
    fit(tmp_path, callback, module, max_epochs=2, limit_val_batches=0, data=loader(40))
    assert (callback.ema.seen, callback.ema.half_life) == (24 + 80, 80)
    average = callback.ema.average()
    assert all(torch.equal(tensor, average[name]) for name, tensor in module.state_dict().items())
    fit(tmp_path, callback, module, max_epochs=1, limit_val_batches=0, limit_train_batches=2)
    assert callback.ema.seen == 24 + 80 + 16


def halving(optimizer):
    return ib.SampleScheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), batch_size=8)


class Scheduled(Net):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        return [optimizer], [self.wrap(halving(optimizer))]


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"scheduler": s}, lambda s: {"scheduler": s, "interval": "step", "frequency": 2},
])  # fmt: skip
def test_a_scheduler_that_would_be_stepped_once_an_epoch_is_refused(tmp_path, wrap):
    with pytest.raises(InputError, match=r'"interval": "step"'):
        fit(tmp_path, IsobatchCallback(60, quiet=True), Scheduled(wrap), max_epochs=1)


class Rows(Net):
    """Notes the rows that it trains on; two steps a batch under manual optimization."""

    def __init__(self, optimizers=1):
        super().__init__()
        self.automatic_optimization, self.trained, self.count = optimizers == 1, [], optimizers

    def training_step(self, batch, place):
        self.trained += batch[0][:, 0].tolist()
        for optimizer in () if self.automatic_optimization else self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        return self.loss(batch) if self.automatic_optimization else None

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.05) for _ in range(self.count)][: self.count]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")
@pytest.mark.parametrize(("data", "optimizers", "after", "again"), [
    (loader, 1, 3, True),
    (loader, 2, 4, True),  # eight steps in an epoch of eight batches: Lightning takes it for the end of one
    (loader, 1, 8, False),
    (Resumable, 1, 3, False),
], ids=["plain", "two optimizers", "end of an epoch", "a loader that knows its place"])  # fmt: skip
def test_a_resume_that_takes_rows_again_is_told(tmp_path, data, optimizers, after, again):
    rows = [x[0].item() for x in loader(64).dataset.tensors[0]]
    made = (lambda: data(64)) if data is loader else data
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=after * optimizers, save_top_k=-1, filename="{step}")
    fit(tmp_path, IsobatchCallback(60, quiet=True), Rows(optimizers), others=[keep], max_epochs=1, data=made())
    module, place = Rows(optimizers), tmp_path / f"step={after * optimizers}.ckpt"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(
            tmp_path,
            IsobatchCallback(60, quiet=True),
            module,
            checkpoint=str(place),
            max_epochs=2 if after == 8 else 1,
            data=made(),
        )
    told = [one for one in said if "are trained on again" in str(one.message)]
    assert len(told) == again
    assert all(one.filename == __file__ for one in told)
    left = 8 * (8 - after) if after < 8 else 64
    if data is loader:
        assert module.trained == (rows[:left] if again else rows)
    else:
        assert module.trained[0] == loader().dataset.tensors[0][8 * after, 0]


@pytest.mark.parametrize("export", ["raw", "average"])
def test_what_a_checkpoint_and_the_module_hold_afterwards(tmp_path, export):
    callback = ours(export=export)
    keep = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    module, _ = fit(tmp_path, callback, others=[keep], max_epochs=2)
    raw, ema, _ = by_hand(epochs=2)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    wanted = raw.state_dict() if export == "raw" else ema.average()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(stored["state_dict"][name], wanted[name])
        torch.testing.assert_close(tensor, wanted[name])
    again = ours(export=export)
    fit(tmp_path, again, checkpoint=str(tmp_path / "last.ckpt"))
    same(again, *by_hand()[1:])


def test_steps_that_a_scaler_skips_move_no_average(tmp_path):
    callback = ours()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-112)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    fit(tmp_path, callback, plugins=[plugin])
    _, ema, _ = by_hand(scale=2.0**127)
    assert callback.clock.skips == 1
    assert callback.ema.seen == ema.seen < 4 * 54
    for name, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=1e-5, atol=1e-6)


class Broken(Net):
    def validation_step(self, batch, place):
        if self.trainer.global_step:
            raise ValueError("broken")


def test_an_exception_in_validation_gives_the_raw_weights_back(tmp_path):
    callback, module = ours(), Broken()
    with pytest.raises(ValueError, match="broken"):
        fit(tmp_path, callback, module)
    for name, tensor in by_hand(epochs=1)[0].state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor)
    callback.state_dict()


class Leaves(Net):
    """Leaves batches out, as Lightning allows."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def training_step(self, batch, place):
        return None if place in self.out else super().training_step(batch, place)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize(("accumulate", "out", "seen"), [(3, (1,), 46), (1, (2, 6), 40), (3, (3, 4, 5), 30)])
def test_batches_without_a_loss_are_not_counted(tmp_path, accumulate, out, seen):
    callback = ours()
    fit(tmp_path, callback, Leaves(out), accumulate_grad_batches=accumulate, max_epochs=1, limit_val_batches=0)
    assert callback.ema.seen == callback.noise.seen == seen
    assert callback.clock.steps == -(-7 // accumulate)


@pytest.mark.slow
@pytest.mark.parametrize("skips", [False, True])
def test_everything_at_once_is_still_the_loop_by_hand(tmp_path, skips):
    """Accumulation by 3, an uneven last batch, clipping or a skipped step, validation, an end in mid-epoch."""
    scale = 2.0**127 if skips else 1.0

    def changes():
        found = {"accumulate_grad_batches": 3, "val_check_interval": 2, "max_epochs": 2}
        if not skips:
            return found | {"gradient_clip_val": 0.5}
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-112)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        return found | {"plugins": [plugin]}

    keep = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(tmp_path, ours(), others=[keep], data=Resumable(), **changes())
    first = min(tmp_path.glob("step=*.ckpt"), key=lambda file: int(file.stem.split("=")[1]))
    callback = ours()
    fit(tmp_path, callback, checkpoint=str(first), data=Resumable(), **changes())
    _, ema, noise = by_hand(2, 3, None if skips else 0.5, scale=scale)
    assert (callback.ema.seen, callback.noise.seen) == (ema.seen, noise.seen)
    for name, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=1e-6, atol=1e-6)
    if not skips:
        same(callback, ema, noise)


class Players(pl.LightningModule):
    def __init__(self, every=1):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.g, self.d, self.every = nn.Linear(8, 8), nn.Linear(8, 1), every

    def training_step(self, batch, place):
        x, _ = batch
        for number, optimizer in enumerate(self.optimizers()):
            self.toggle_optimizer(optimizer)
            fake = self.g(x) if number == 0 else self.g(x).detach()
            loss = self.d(fake).mean() if number == 0 else -self.d(fake).square().mean()
            self.manual_backward(loss / self.every)
            if (place + 1) % self.every == 0:
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return torch.optim.SGD(self.g.parameters(), 0.01), torch.optim.SGD(self.d.parameters(), 0.01)


@pytest.mark.parametrize("every", [1, 3])
def test_manual_optimization_with_two_optimizers_counts_each_sample_once(tmp_path, every):
    callback, module = ours(), Players(every)
    fit(tmp_path, callback, module, data=loader(48), limit_val_batches=0)
    assert callback.ema.seen == callback.clock.drawn == 4 * 48
    assert [noise.seen for noise in callback.clock.noises] == [4 * 48] * 2
    measured = [noise.estimate().measurements > 0 for noise in callback.clock.noises]
    # without micro-batches the second player's layers are used in the first one's turn too: rows cannot be told apart
    assert measured == [True, every > 1]
    assert callback.clock.steps == 4 * 6 // every


class ScheduledPlayers(Players):
    def training_step(self, batch, place):
        super().training_step(batch, place)
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self):
        optimizers = super().configure_optimizers()
        return list(optimizers), [halving(one) for one in optimizers]


def test_the_schedulers_of_all_optimizers_get_the_samples_of_each_step(tmp_path):
    callback, module = ours(), ScheduledPlayers()
    fit(tmp_path, callback, module, data=loader(20), max_epochs=1, limit_val_batches=0)
    assert [scheduler.seen for scheduler in callback.clock.schedulers] == [20, 20]  # 8, 8 and 4


def test_the_average_is_lightnings_own_at_its_own_settings(tmp_path):
    own = EMAWeightAveraging(decay=0.9)
    mine = IsobatchCallback(decay=0.9, batch_size=8, average={"warmup": CopyUntil(1)}, evaluate="raw", quiet=True)
    fit(tmp_path, mine, others=[own], data=loader(56), max_epochs=2, limit_val_batches=0)
    for name, tensor in mine.ema.average().items():
        torch.testing.assert_close(own._average_model.module.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_logger_and_the_last_line(tmp_path, capsys):
    notes = Notes()
    callback = IsobatchCallback("2 epochs", noise={"every": 1}, log=notes)
    fit(tmp_path, callback, logger=CSVLogger(tmp_path), log_every_n_steps=2, max_epochs=2)
    metrics = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "isobatch/half_life" in metrics
    assert "isobatch/noise_scale" in metrics
    assert callback.ema.half_life == 108
    assert callback.sentence in capsys.readouterr().out
    check(notes, callback.clock, 108)


def test_weights_under_their_own_names_in_one_file(tmp_path):
    callback = ours()
    module, _ = fit(tmp_path, callback, max_epochs=1)
    from safetensors.torch import load_file

    stored = load_file(callback.save_average(tmp_path / "average.safetensors"))
    fresh = Net()
    fresh.load_state_dict(stored)
    for name, tensor in callback.ema.average().items():
        assert torch.equal(copy.deepcopy(dict(fresh.named_parameters())[name]), tensor)
    assert module.training is not None


@pytest.mark.parametrize(("given", "why"), [
    ({}, "nothing to do"),
    ({"half_life": "1e6 tokens"}, "count=lambda"),
    ({"half_life": 1, "export": "both"}, "must be"),
])  # fmt: skip
def test_refusals(given, why):
    with pytest.raises(InputError, match=why):
        IsobatchCallback(**given)


def test_checkpoints_of_a_sharded_module_are_refused(tmp_path, monkeypatch):
    callback = ours()
    fit(tmp_path, callback, max_epochs=1)
    monkeypatch.setattr(export, "sharded", lambda tensor: True)
    with pytest.raises(InputError, match=r"sharded.*torch\.distributed\.checkpoint"):
        callback.state_dict()
    assert ours().state_dict() == {}
