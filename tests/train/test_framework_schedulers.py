"""SampleScheduler inside the trainers that people use; skipped where they are not installed."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from isobatch import SampleScheduler

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLES, BATCH, REFERENCE = 160, 32, 8


def parts(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cycle = OneCycleLR(optimizer, 1.0, total_steps=SAMPLES // REFERENCE)
    return optimizer, SampleScheduler(cycle, batch_size=REFERENCE, samples=BATCH)


def wanted():
    """The mean of torch's own rates, four reference steps at a time."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    cycle, rates = OneCycleLR(optimizer, 1.0, total_steps=SAMPLES // REFERENCE), []
    for step in range(SAMPLES // REFERENCE):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < SAMPLES // REFERENCE:
            cycle.step()
    share = BATCH // REFERENCE
    return [sum(rates[k : k + share]) / share for k in range(0, len(rates), share)]


def loader():
    return DataLoader(TensorDataset(torch.randn(SAMPLES, 4), torch.randn(SAMPLES, 1)), batch_size=BATCH)


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Linear(4, 1)
    optimizer, scheduler = parts(model)
    model, wrapped, batches, stepped = accelerator.prepare(model, optimizer, loader(), scheduler)
    found = []
    for x, y in batches:
        found.append(stepped.get_last_lr()[0])
        accelerator.backward((model(x) - y).square().mean())
        wrapped.step()
        stepped.step()
        wrapped.zero_grad()
    assert found == pytest.approx(wanted())
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))
    assert scheduler.seen == SAMPLES


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.rates = nn.Linear(4, 1), []

        def training_step(self, batch, index):
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            optimizer, scheduler = parts(self)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    net, trainer = Net(), lightning.Trainer(max_epochs=1, **quiet)
    trainer.fit(net, loader())
    assert net.rates == pytest.approx(wanted())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again, longer = Net(), lightning.Trainer(max_epochs=2, **quiet)
    longer.fit(again, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert longer.lr_scheduler_configs[0].scheduler.seen == 2 * SAMPLES


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x, labels=None):
            return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}

    data = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(SAMPLES)]

    def trainer():
        model = Net()
        arguments = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=BATCH, num_train_epochs=1, save_steps=3, logging_steps=1,
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        optimizer, scheduler = parts(model)
        made = transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler))
        return made, scheduler

    first, _ = trainer()
    first.train()
    second, resumed = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.seen == SAMPLES
    for one in (first, second):
        found = [row["learning_rate"] for row in one.state.log_history if "learning_rate" in row]
        # the log holds the rate of the step that was made; a resumed log begins with the stored rows
        assert found == pytest.approx(wanted(), rel=1e-3)
