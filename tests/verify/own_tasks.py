"""One task in many trainers: this package's loop, a plain loop, Accelerate, Lightning and Hugging Face."""

import threading

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.split import AccelerateLoop, LightningFit, Loop, Subject, TrainerFit, pieces
from isobatch.tasks import LOSS, Run, TensorSamples, seeded

DECLARED = {"loss": LOSS}


def parts(seed):
    """Model, training tensors and held-out metrics."""
    with seeded(0):
        x, first = torch.randn(160, 6), torch.randn(6, 3)
        y = ((x @ first).tanh() @ torch.randn(3, 1) + 0.2 * torch.randn(160, 1)).detach()
    with seeded(seed):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def metrics(net):
        return {"loss": float(F.mse_loss(net(x[128:]), y[128:]))}

    return model, x[:128], y[:128], metrics


def built(settings, model):
    """The optimizer that a script would make; its rate and decay are written by the recipe."""
    if settings.optimizer.name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    return torch.optim.AdamW([{"params": decayed}, {"params": [p for p in model.parameters() if p.ndim < 2]}], lr=1.0)


def run(settings, seed):
    model, x, y, metrics = parts(seed)
    return Run(model, TensorSamples(x, y), lambda net, b: F.mse_loss(net(b[0]), b[1]), metrics, declared=DECLARED)


def subject(settings, seed):
    model, x, y, metrics = parts(seed)
    optimizer = built(settings, model)

    def update(batch, count):
        for piece in pieces(batch, count):
            (F.mse_loss(model(piece[0]), piece[1]) * len(piece[0]) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, (x, y), metrics=metrics, declared=DECLARED)


def loop(settings, seed):
    model, x, y, metrics = parts(seed)
    optimizer = built(settings, model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # whatever it writes is overwritten

    def train(loader, accumulation):
        for index, (inputs, targets) in enumerate(loader):
            (F.mse_loss(model(inputs), targets) / accumulation).backward()
            if (index + 1) % accumulation == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    return Loop(model, train, (x, y), metrics=metrics, declared=DECLARED)


def accelerated(settings, seed):
    model, x, y, metrics = parts(seed)

    def train(accelerator, loader, model, optimizer):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(inputs), targets))
                optimizer.step()
                optimizer.zero_grad()

    return AccelerateLoop(model, train, (x, y), metrics=metrics, declared=DECLARED, optimizer=built(settings, model))


def lit(settings, seed):
    import lightning

    model, x, y, metrics = parts(seed)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, index):
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return built(settings, self.net)

    return LightningFit(Module(), (x, y), metrics=lambda module: metrics(module.net), declared=DECLARED)


class Head(nn.Module):
    """What a Hugging Face Trainer trains: a model that gives its own loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs=None, labels=None):
        out = self.net(inputs)
        return {"loss": F.mse_loss(out, labels), "logits": out}


def hugging(settings, seed):
    from transformers import Trainer, TrainingArguments

    model, x, y, metrics = parts(seed)
    data = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]

    def build(**given):
        optimizers = (built(settings, model), None)
        return Trainer(Head(model), TrainingArguments(**given), train_dataset=data, optimizers=optimizers)

    return TrainerFit(build, metrics=lambda head: metrics(head.net), declared=DECLARED)


def sentences(settings, seed):
    """A language model of transformers with its own optimizer and its own evaluation."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def rows(count, start):
        generator = torch.Generator().manual_seed(start)
        first = torch.randint(0, 16, (count,), generator=generator).tolist()
        return [{"input_ids": [(f + 3 * j) % 16 for j in range(6)]} for f in first]

    def collate(batch):
        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": ids}

    def build(**given):
        config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1, resid_pdrop=0, embd_pdrop=0,
                            attn_pdrop=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
        return Trainer(GPT2LMHeadModel(config), TrainingArguments(**given), train_dataset=rows(64, 0),
                       eval_dataset=rows(16, 1), data_collator=collate)  # fmt: skip

    return TrainerFit(build)


def two_steps(settings, seed):
    made = subject(settings, seed)
    update = made.update

    def twice(batch, count):
        update(batch, count)
        update(batch, count)

    made.update = twice
    return made


def no_metrics(settings, seed):
    made = subject(settings, seed)
    made.measure = None
    return made


def explodes(settings, seed):
    made = subject(settings, seed)
    update = made.update
    made.update = lambda batch, count: update(batch, count) or float("nan")
    return made


def hangs(settings, seed):
    """Waits at its third update for what never comes."""
    made = subject(settings, seed)
    update, calls, never = made.update, [], threading.Event()

    def waits(batch, count):
        update(batch, count)
        calls.append(1)
        if len(calls) == 3:
            never.wait()

    made.update = waits
    return made
