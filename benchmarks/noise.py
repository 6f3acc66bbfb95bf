"""What does measuring the noise scale cost a training step, and how soon is it identified?

    python benchmarks/noise.py --json benchmarks/results/noise.json

A byte transformer on one thread, batch 64, four epochs. Each pair is one step without and one with measuring, on copies
of one model with one batch, in random order, timed by the thread's processor time. `ratio` weighs the measured steps
(plain means) and the others (means without the extreme tenths) by how many there were, because single steps on a
shared machine scatter by 15%; `ratio_of_sums` is the plain total. `upper` is the 95% bound of `ratio` by a bootstrap
over pairs. The reference loops re-create how k-diffusion and AdaptDL measure, at every step, beside the same two
micro-batches without measuring; they need two chunks a step.
"""

import argparse
import copy
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from isobatch.noise import NoiseScale
from isobatch.plan import Recipe
from isobatch.report import write_result
from isobatch.tasks import make_run

BATCH, EPOCHS = 64, 4


class Loop:
    """A training loop without measuring: forward, backward, AdamW; parts > 1 accumulates."""

    def __init__(self, model: nn.Module, parts: int = 1):
        self.model, self.parts = copy.deepcopy(model), parts
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def backward(self, tokens: torch.Tensor) -> None:
        for part in tokens.split(len(tokens) // self.parts):
            (self.loss(part) / self.parts).backward()

    def measure(self, tokens: torch.Tensor) -> None:
        pass

    def step(self, tokens: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.backward(tokens)
        self.measure(tokens)
        self.optimizer.step()


class Isobatch(Loop):
    def __init__(self, model: nn.Module, parts: int = 1, **options):
        super().__init__(model, parts)
        self.noise = NoiseScale(self.model, self.optimizer, **options)
        self.verdicts: list[str] = []

    def measure(self, tokens: torch.Tensor) -> None:
        self.noise.update(samples=len(tokens))

    def look(self) -> None:
        """Note the verdict; outside the timed part."""
        self.verdicts.append(str(self.noise.estimate().verdict))
        self.noise.back()


class Halves(Isobatch):
    def backward(self, tokens: torch.Tensor) -> None:
        self.noise.halves(self.mean_loss, tokens[:, :-1], tokens[:, 1:])

    def mean_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())


class OneRead(Loop):
    """The limit: each gradient read once a step."""

    def measure(self, tokens: torch.Tensor) -> None:
        gradients = [p.grad for p in self.model.parameters()]
        self.square = torch.stack(torch._foreach_norm(gradients)).square().sum()


class KDiffusion(Loop):
    """Squared norm of each chunk's flat gradient, of the mean's, and `.item()` at every step; |G|^2 clamped at 1e-8."""

    def __init__(self, model: nn.Module):
        super().__init__(model, 2)
        self.signal = self.noise = 0.0

    def backward(self, tokens: torch.Tensor) -> None:
        self.small = []
        for part in tokens.split(len(tokens) // 2):
            found = torch.autograd.grad(self.loss(part), list(self.model.parameters()))
            bucket = torch.cat([g.flatten() for g in found])
            self.small.append(bucket.pow(2).sum())
            for p, g in zip(self.model.parameters(), found, strict=True):
                p.grad = g / 2 if p.grad is None else p.grad.add_(g, alpha=0.5)

    def measure(self, tokens: torch.Tensor) -> None:
        big = sum(p.grad.pow(2).sum() for p in self.model.parameters())
        small, big, n = torch.stack(self.small).mean().item(), big.item(), len(tokens)
        signal = (n * big - n / 2 * small) / (n / 2)
        self.signal = 0.9998 * self.signal + 0.0002 * signal
        self.noise = 0.9998 * self.noise + 0.0002 * (small - big) / (1 / n)
        self.scale = self.noise / max(self.signal, 1e-8)


class AdaptDL(Loop):
    """A hook for each parameter and chunk with squares in float64, preconditioned float32 copies, `.item()` a group."""

    def __init__(self, model: nn.Module):
        super().__init__(model, 2)
        self.local = torch.zeros((), dtype=torch.float64)
        for p in self.model.parameters():
            p.register_hook(self.hook(p))

    def hook(self, parameter: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def take(gradient: torch.Tensor) -> None:
            whitened = gradient / self.preconditioner(parameter)
            self.local += whitened.double().pow(2).sum()

        return take

    def preconditioner(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.optimizer.state.get(parameter)
        if not state or float(state["step"]) < 5:
            return torch.ones_like(parameter)
        return (state["exp_avg_sq"] / (1 - 0.99 ** float(state["step"]))).sqrt().add_(1e-8)

    def measure(self, tokens: torch.Tensor) -> None:
        grads = [p.grad.detach().float() / self.preconditioner(p) for p in self.model.parameters()]
        total = sum(g.double().pow(2).sum() for g in grads).item()
        local, self.local = self.local.item() * 2, torch.zeros((), dtype=torch.float64)
        self.scale = (local - total) / max(2 * total - local / 2, 1e-8)


def pairs(base: Loop, other: Loop, batches: list[torch.Tensor], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return processor seconds of each pair, shape (pairs, 2), and which of them were measured."""
    order = random.Random(seed)
    found = np.zeros((len(batches), 2))
    measured = np.ones(len(batches), dtype=bool)
    for i, tokens in enumerate(batches):
        if isinstance(other, Isobatch):
            measured[i] = other.noise.armed
        for side in order.sample((0, 1), 2):
            loop = (base, other)[side]
            if isinstance(loop, Isobatch):
                loop.noise.back()
            start = time.thread_time()
            loop.step(tokens)
            found[i, side] = time.thread_time() - start
        if isinstance(other, Isobatch):
            other.look()
    return found, measured


def ratio(times: np.ndarray, measured: np.ndarray) -> float:
    """Return the time with measuring over the time without; see the top."""
    extra = (times[:, 1] - times[:, 0])[measured].sum()
    rest = np.sort((times[:, 1] - times[:, 0])[~measured])
    if len(rest):
        extra += rest[len(rest) // 10 : len(rest) - len(rest) // 10].mean() * len(rest)
    return float(1 + extra / times[:, 0].sum())


def row(name: str, base: Loop, other: Loop, batches: list[torch.Tensor], total: int) -> dict:
    times, measured = pairs(base, other, batches)
    rng = np.random.default_rng(0)
    drawn = [ratio(times[i], measured[i]) for i in rng.integers(len(times), size=(4000, len(times)))]
    found = {
        "case": f"text, batch {BATCH}, {other.parts} chunk(s) a step",
        "contender": name,
        "ratio": round(ratio(times, measured), 4),
        "upper": round(float(np.quantile(drawn, 0.95)), 4),
        "ratio_of_sums": round(float(times[:, 1].sum() / times[:, 0].sum()), 4),
        "pairs": len(times),
        "step_ms": round(1000 * float(np.median(times[:, 0])), 2),
    }
    if isinstance(other, Isobatch):
        tenth = total // 10
        first = other.verdicts.index("identified") + 1 if "identified" in other.verdicts else None
        found["measurements"] = int(measured.sum())
        found["first_identified_at_share"] = None if first is None else round(first / total, 4)
        found["identified_at_10_percent"] = other.verdicts[tenth - 1] == "identified" if len(batches) >= tenth else None
        found["share_of_steps_identified"] = round(other.verdicts.count("identified") / len(batches), 3)
        found["estimate"] = str(other.noise.estimate())
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = make_run(Recipe.load("examples/text.toml"), 0)
    size = len(run.samples)
    total = EPOCHS * size // BATCH
    order = torch.cat([torch.randperm(size, generator=torch.Generator().manual_seed(e)) for e in range(EPOCHS)])
    batches = [run.samples[i][0].long() for i in order.split(BATCH)][: arguments.pairs]
    few, some = batches[:60], batches[:200]
    model = run.model
    warm = Loop(model)
    for tokens in batches[:3]:
        warm.step(tokens)
    contenders = {
        "isobatch rows, default budget": lambda n: row(n, Loop(model), Isobatch(model), batches, total),
        "isobatch chunks, default budget": lambda n: row(n, Loop(model, 2), Isobatch(model, 2), batches, total),
        "isobatch halves, default budget": lambda n: row(n, Loop(model), Halves(model), batches, total),
        "plain loop against itself": lambda n: row(n, Loop(model), Loop(model), some, total),
        "isobatch norm layers, default budget": lambda n: row(
            n, Loop(model), Isobatch(model, capture="norms"), batches, total
        ),
        "isobatch norm layers, all rows, 15 steps in a row before the tenth": lambda n: row(
            n,
            Loop(model),
            Isobatch(model, capture="norms", rows=BATCH, between=((total // 10 - 15) * BATCH, total // 10 * BATCH)),
            batches,
            total,
        ),
        "isobatch rows, every step": lambda n: row(n, Loop(model), Isobatch(model, every=1), few, total),
        "isobatch norm layers, every step": lambda n: row(
            n, Loop(model), Isobatch(model, every=1, capture="norms"), few, total
        ),
        "isobatch norm layers, all rows, every step": lambda n: row(
            n, Loop(model), Isobatch(model, every=1, capture="norms", rows=BATCH), batches[:60], total
        ),
        "isobatch chunks, every step": lambda n: row(n, Loop(model, 2), Isobatch(model, 2, every=1), few, total),
        "isobatch halves, every step": lambda n: row(n, Loop(model), Halves(model, every=1), few, total),
        "one read of the gradient, every step": lambda n: row(n, Loop(model), OneRead(model), few, total),
        "k-diffusion's way, every step": lambda n: row(n, Loop(model, 2), KDiffusion(model), few, total),
        "AdaptDL's way, every step": lambda n: row(n, Loop(model, 2), AdaptDL(model), few, total),
    }
    table = [make(name) for name, make in contenders.items() if not arguments.only or name in arguments.only]
    if arguments.json:
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "hardware": f"{platform.machine()}, 1 thread of a shared machine with 2 cores",
            "clock": "processor time of the thread",
            **run.facts,
        }
        write_result(arguments.json.parent, {**facts, "rows": table}, arguments.json.name)


if __name__ == "__main__":
    main()
