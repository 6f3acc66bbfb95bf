"""A small Llama, its data, a Trainer that draws in order, and the same training by hand."""

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

import isobatch as ib

logging.set_verbosity_error()
logging.disable_progress_bar()


def llama(seed=0, tied=True):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, max_position_embeddings=16, **sizes))


class Texts(Dataset):
    def __init__(self, rows=54):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randint(50, (rows, 16), generator=g)
        self.lengths = torch.randint(3, 17, (rows,), generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        labels = self.x[place].clone()
        labels[torch.arange(16) >= self.lengths[place].unsqueeze(-1)] = -100
        return {"input_ids": self.x[place], "labels": labels}


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def arguments(folder, **changes):
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(**given | changes)


def token_loss(model, batch, tokens):
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum") / tokens


def by_hand(epochs=2, accumulate=3, half_life=50.0, rows=54, clip=0.5, skips=(), unit="samples", lr=0.1):
    """The loop of the Trainer written out: SGD with clipping, the mean over the tokens of each step."""
    model, data = llama(), Texts(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    ema, noise = ib.ModelEMA(model, half_life=half_life), ib.NoiseScale(model, every=1, unit="tokens")
    step = 0
    for _ in range(epochs):
        batches = [data[slice(at, at + 4)] for at in range(0, rows, 4)]
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            counts = [int(b["labels"][:, 1:].ne(-100).sum()) for b in group]
            for batch, count in zip(group, counts, strict=True):
                each = batch["labels"][:, 1:].ne(-100).sum(1).tolist()
                with noise.chunk(count, rows=[float(n) for n in each]):
                    token_loss(model, batch, sum(counts)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            noise.update(samples=sum(counts))
            seen = sum(len(b["input_ids"]) for b in group) if unit == "samples" else sum(counts)
            if step not in skips:
                optimizer.step()
                ema.update(samples=seen)
            optimizer.zero_grad()
            step += 1
    return model, ema, noise
