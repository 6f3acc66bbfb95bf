"""The table "coming from another library", each row run beside the library itself where it is installed.

What stands in the right column of the page is what is run here, so page and test cannot come apart.
"""

import importlib
import math
import re
from pathlib import Path

import pytest
import torch
from tests.peers import peer
from torch import nn

from isobatch import average

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "model-averages.md"
ROWS = {
    there: here
    for there, here in re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text().split("## Coming from another")[1], re.M)
    if there not in ("there", "---")
}
B, STEPS = 8, 60


def row(start):
    found = [here for there, here in ROWS.items() if there.startswith(start)]
    assert len(found) == 1, start
    return found[0]


def ours(start, m, **words):
    """What the first code of a row's right column makes of a model."""
    code = re.search(r"`(ModelEMA\(.+?|SWA\(.+?|PowerEMA\(.+?)`", row(start))[1]
    return eval(code, {**vars(average), "math": math, "B": B, "m": m, **words})


def net(buffers=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if buffers else nn.Tanh(), nn.Linear(4, 2))


def walk(model, steps=STEPS):
    """Weights on a path of their own, one step at a time."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
        yield step


def agree(theirs, mine, tolerance=2e-6):
    found = mine.average() if isinstance(mine, average.ModelAverage) else mine
    gaps = [float((t.detach() - found[n]).abs().max()) for n, t in theirs.items() if n in found]
    assert len(gaps) == len(found)
    assert max(gaps) <= tolerance


def test_every_row_is_held_by_a_test_or_says_that_it_is_not():
    text = Path(__file__).read_text()
    unheld = [there for there in ROWS if not any(f'"{start}' in text for start in (there[:12], there[:20]))]
    assert not unheld


def test_torch_ema():
    model = net()
    swa = torch.optim.swa_utils
    theirs = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    mine = ours("torch `AveragedModel(m, multi", model, d=0.9)
    for _ in walk(model):
        theirs.update_parameters(model)
        mine.update(samples=B)
    agree(dict(theirs.module.named_parameters()), mine)


def test_torch_swa_and_its_batch_norm():
    model = net(buffers=True)
    theirs = torch.optim.swa_utils.AveragedModel(model)
    mine = average.SWA(model, start=20 * B)
    assert row("torch `AveragedModel(m)`, SWA").startswith("`SWA(m, start=...)`")
    for step in walk(model):
        if step >= 20:
            theirs.update_parameters(model)
        mine.update(samples=B)
    agree(dict(theirs.module.named_parameters()), mine)
    batches = [torch.randn(10, 3, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    torch.optim.swa_utils.update_bn(batches, theirs)
    made = mine.average_model()
    average.recalibrate(made, batches)
    torch.testing.assert_close(made[1].running_mean, theirs.module[1].running_mean)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("words", [{}, {"use_warmup": True, "warmup_power": 0.7}])
def test_timm(words, told):
    model = net()
    theirs = peer("timm.utils.model_ema").ModelEmaV3(model, decay=0.9, **words)
    mine = ours("timm `ModelEmaV3", model, d=0.9)
    if words and told:
        mine = average.ModelEMA(model, decay=0.9, batch_size=B, warmup=average.timm_warmup(warmup_power=0.7))
    elif told:
        assert "`warmup=CopyUntil(B + 1)`" in row("timm `ModelEmaV3")
        mine = average.ModelEMA(model, decay=0.9, batch_size=B, warmup=average.CopyUntil(B + 1))
    for step in walk(model):
        theirs.update(model, step=step if told else None)
        mine.update(samples=B)
    agree(dict(theirs.module.named_parameters()), mine)


@pytest.mark.parametrize("after", [0, 5, 100])
@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_ema_pytorch_at_every_step(beta, after):
    model = net()
    theirs = peer("ema_pytorch").EMA(model, beta=beta, update_after_step=after, update_every=1)
    mine = ours("ema-pytorch `EMA", model, d=beta, a=after, k=1)
    for _ in walk(model, 200):
        theirs.update()
        mine.update(samples=B)
    agree({n: p for n, p in theirs.ema_model.named_parameters() if p.requires_grad is not None}, mine, 1e-5)


@pytest.mark.parametrize("every", [2, 5, 10])
@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize("beta", [0.99, 0.9999])
def test_ema_pytorch_at_every_kth_step(beta, after, every):
    """Weights that tell the step: ours is applied one call earlier, so lags may differ by a step, and by no more."""
    model = nn.Linear(1, 1, bias=False).double()
    theirs = peer("ema_pytorch").EMA(model, beta=beta, update_after_step=after, update_every=every)
    mine = ours("ema-pytorch `EMA", model, d=beta, a=after, k=every)
    for t in range(1, 4002):
        with torch.no_grad():
            model.weight.fill_(float(t))
        theirs.update()
        mine.update(samples=B)
        if t in (201, 501, 1001, 4001):
            lag, own = t - theirs.ema_model.weight.item(), t - mine.average()["weight"].item()
            assert abs(own - lag) <= every if t < 1000 else abs(own - lag) <= 1.5


def test_ema_pytorch_writes_back():
    model, twin = net(), net()
    theirs = peer("ema_pytorch").EMA(
        model, beta=0.9, update_after_step=0, update_every=1, update_model_with_ema_every=20
    )
    warmup = average.ema_pytorch_warmup(update_after_step=0, batch_size=B)
    mine = average.ModelEMA(twin, decay=0.9, batch_size=B, warmup=warmup)
    assert "`SwitchEMA`" in row("ema-pytorch `EMA")
    switch = average.SwitchEMA(mine, every=20 * B)
    for _ in zip(walk(model, 20), walk(twin, 20), strict=True):
        theirs.update()
        switch.update(samples=B)
    theirs.update_model_with_ema()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_ema_pytorch_post_hoc_widths_are_not_ours():
    model = net()
    mine = average.PowerEMA(model)
    assert "so expect other averages than there" in row("ema-pytorch `PostHocEMA")
    assert mine.sigma_rels == (0.05, 0.1)


@pytest.mark.parametrize(
    "words", [{}, {"use_ema_warmup": True}, {"use_ema_warmup": True, "inv_gamma": 5.0, "power": 0.75}]
)
def test_diffusers(words):
    model = net()
    theirs = peer("diffusers.training_utils").EMAModel(model.parameters(), decay=0.9, **words)
    assert "`ModelEMA(m, decay=d, batch_size=B, warmup=diffusers_warmup(...))`" in row("diffusers `EMAModel")
    mine = average.ModelEMA(model, decay=0.9, batch_size=B, warmup=average.diffusers_warmup(**words))
    for _ in walk(model):
        theirs.step(model.parameters())
        mine.update(samples=B)
    agree(dict(zip(mine.average(), theirs.shadow_params, strict=True)), mine)


def test_torch_ema_of_another_author():
    model = net()
    theirs = peer("torch_ema").ExponentialMovingAverage(model.parameters(), 0.95)
    mine = ours("torch-ema `Exponential", model, d=0.95)
    for _ in walk(model):
        theirs.update()
        mine.update(samples=B)
    agree(dict(zip(mine.average(), theirs.shadow_params, strict=True)), mine)


class Recorded:
    """Feed of a Lightning run: the weights after each optimizer step."""

    def __init__(self, model, every, decay):
        self.lightning = peer("lightning.pytorch")
        self.weights = []
        recorded = self

        class Fit(self.lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = model

            def training_step(self, batch, index):
                return self.net(batch[0]).square().mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

            def on_train_batch_end(self, *_):
                recorded.weights.append({n: p.detach().clone() for n, p in self.net.named_parameters()})

        callbacks = importlib.import_module("lightning.pytorch.callbacks")
        self.callback = callbacks.EMAWeightAveraging(decay=decay, update_every_n_steps=every)
        self.module = Fit()

    def fit(self, steps, folder):
        data = torch.utils.data.TensorDataset(torch.randn(steps * B, 3, generator=torch.Generator().manual_seed(2)))
        trainer = self.lightning.Trainer(
            max_steps=steps, callbacks=[self.callback], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(self.module, torch.utils.data.DataLoader(data, batch_size=B))
        model = self.callback._average_model
        return {n.removeprefix("module.net."): p for n, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [1, 5])
def test_lightning(every, tmp_path):
    model = net()
    run = Recorded(model, every, 0.9)
    steps = 5 * every + 1 if every > 1 else 40
    theirs = run.fit(steps, tmp_path)
    twin = net()
    mine = ours("Lightning `EMAWeightAveraging", twin, d=0.9, k=every)
    # theirs is applied after the steps 0, k, 2k, ...; ours after k, 2k, ... calls: begin so that the two coincide
    for weights in run.weights[:1] * (every - 1) + run.weights:
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(weights[name])
        mine.update(samples=B)
    agree(theirs, mine)


def test_ultralytics():
    model = net()
    theirs = peer("ultralytics.utils.torch_utils").ModelEMA(model, 0.99, 20)
    mine = ours("ultralytics `ModelEMA", model, d=0.99, tau=20)
    for _ in walk(model):
        theirs.update(model)
        mine.update(samples=B)
    agree(dict(theirs.ema.named_parameters()), mine)


def test_half_life_in_images():
    """Row "EDM, half-life in images": decay 0.5 ** (batch / min(H, 0.05 seen)) by its script, after a long run."""
    model = nn.Linear(1, 1, bias=False).double()
    assert "warmup=Ramp(0.05)" in row("EDM, half-life in images")
    mine = average.ModelEMA(model, half_life=2_000, warmup=average.Ramp(0.05))
    theirs, seen = model.weight.detach().clone(), 0
    for step in range(20_000):
        with torch.no_grad():
            model.weight.fill_(step / 1000)
        seen += B
        theirs.lerp_(model.weight.detach(), 1 - 0.5 ** (B / min(2_000, 0.05 * seen)))
        mine.update(samples=B)
    assert mine.average()["weight"].item() == pytest.approx(theirs.item(), rel=1e-4)


def test_half_life_as_a_share_of_the_progress():
    """Row "torchtitan `half_life_fraction=f`": 2 ** (-1 / (f n)) at update n."""
    model = nn.Linear(1, 1, bias=False).double()
    mine = ours("torchtitan `half_life_fraction", model, f=0.1)
    theirs = model.weight.detach().clone()
    for n in range(1, 4_000):
        with torch.no_grad():
            model.weight.fill_(n / 1000)
        theirs.lerp_(model.weight.detach(), 1 - 2 ** (-1 / (0.1 * n)))
        mine.update(samples=B)
    assert mine.average()["weight"].item() == pytest.approx(theirs.item(), rel=2e-3)
