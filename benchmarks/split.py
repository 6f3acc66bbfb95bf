"""How long does `isobatch verify split` take? A language model of ten million parameters on two threads of the CPU.

python -m benchmarks.split                # the trainer is right
python -m benchmarks.split --broken       # mean of means: single samples are looked at as well
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.split import Subject, pieces, split


class Model(nn.Module):
    """A transformer of 10 million parameters: width 320, 7 layers, 2,048 words."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(320, 8, 1280, dropout=0.1, batch_first=True)
        self.table, self.body = nn.Embedding(2048, 320), nn.TransformerEncoder(layer, 7, enable_nested_tensor=False)
        self.out = nn.Linear(320, 2048)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.out(self.body(self.table(words)))


def make(broken: bool = False) -> Subject:
    """Return a trainer: AdamW, clipping, a schedule, an average, ragged lengths, dropout."""
    words, lengths = torch.randint(0, 2048, (24, 33)), torch.tensor([32, 9, 20, 5, 28, 14, 32, 11] * 3)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))

    def update(batch: tuple[torch.Tensor, torch.Tensor], parts: int) -> float:
        total, tokens = 0.0, batch[1].sum()
        for text, ends in pieces(batch, parts):
            mask = torch.arange(32) < ends[:, None]
            losses = F.cross_entropy(model(text[:, :-1])[mask], text[:, 1:][mask], reduction="sum")
            loss = losses / (mask.sum() * parts if broken else tokens)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
        return total

    return Subject(model, update, (words, lengths), scheduler=scheduler, average=average)


def main() -> None:
    """Check, and print the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broken", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    began, used = time.perf_counter(), time.process_time()
    report = split(lambda: make(chosen.broken))
    size = sum(p.numel() for p in Model().parameters())
    spent, busy = time.perf_counter() - began, time.process_time() - used
    print(f"{size / 1e6:.1f}M parameters, {chosen.threads} threads: {spent:.1f} s, {busy:.1f} s of CPU")
    print(report.headline)


if __name__ == "__main__":
    main()
