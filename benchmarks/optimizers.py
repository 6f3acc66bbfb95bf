"""What the invariant optimizers cost beside torch's AdamW, and what their cheaper forms lose.

Run as `python benchmarks/optimizers.py --json FILE`. Times are ratios of whole training steps (processor time of
one thread), measured in turns: one step of each contender, in shuffled order, again and again, so that a busy machine
slows all of them alike.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import isobatch
from isobatch.optimizers import InvariantAdamW, layer_squares, split_backward

STOCK = "torch AdamW (foreach)"
LENGTH, VOCABULARY = 64, 256
DENSE_START = 57  # updates before variance_every=8 measures at every 8th only
FORMS = {
    "isobatch InvariantAdamW": {},
    "isobatch InvariantAdamW noise=factored": {"noise": "factored"},
    "isobatch InvariantAdamW noise=row": {"noise": "row"},
    "isobatch InvariantAdamW noise=tensor": {"noise": "tensor"},
    "isobatch InvariantAdamW variance_every=8": {"variance_every": 8},
    "isobatch InvariantAdamW noise=factored variance_every=8": {"noise": "factored", "variance_every": 8},
}


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 16
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Text(nn.Module):
    """Two layers over bytes; positions have the batch's shape, so that layer_squares can see through them."""

    def __init__(self, width: int):
        super().__init__()
        self.bytes, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, x):
        places = torch.arange(LENGTH).expand_as(x)
        return self.head(self.norm(self.blocks(self.bytes(x) + self.places(places))))

    def loss(self, x, y):
        return nn.functional.cross_entropy(self(x).flatten(0, 1), y.flatten())


def text_steps(width: int, micro: int, parts: int, *, whole: bool):
    """Return one training step a contender: the same model, data and number of rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, VOCABULARY, (micro * parts, LENGTH), generator=generator)
    y = x.roll(-1, 1)

    def fresh():
        torch.manual_seed(0)
        return Text(width)

    def stock(model):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, foreach=True)

        def step():
            optimizer.zero_grad()
            for part, target in [(x, y)] if whole else zip(x.split(micro), y.split(micro), strict=True):
                (model.loss(part, target) * (len(part) / len(x))).backward()
            optimizer.step()

        return step

    def invariant(model, feed, **form):
        optimizer = InvariantAdamW(model.parameters(), 1e-3, reference_batch=micro, **form)

        def step():
            optimizer.zero_grad()
            feed(model, optimizer)
            optimizer.step()

        return step

    def accumulate(model, optimizer):
        for part, target in zip(x.split(micro), y.split(micro), strict=True):
            with optimizer.chunk(len(part)):
                (model.loss(part, target) * (len(part) / len(x))).backward()

    def split(model, optimizer):
        split_backward(optimizer, model.loss, x, y)

    def layers(model, optimizer):
        with layer_squares(model, optimizer, batch=len(x)):
            model.loss(x, y).backward()

    steps = {STOCK: stock(fresh())}
    if whole:
        for name, feed in {"split_backward": split, "layer_squares": layers}.items():
            steps[f"isobatch {name}"] = invariant(fresh(), feed)
            steps[f"isobatch {name} variance_every=8"] = invariant(fresh(), feed, variance_every=8)
    else:
        for name, form in FORMS.items():
            steps[name] = invariant(fresh(), accumulate, **form)
    return steps


def ratios(case: str, steps, rounds: int, block: int = 8):
    """Time single steps in turns; the ratio is the median, over rounds of `block` steps, of time / stock's time."""
    order = list(steps)
    shuffle = random.Random(0).shuffle
    times = {name: [] for name in steps}
    for name, step in steps.items():
        for _ in range(DENSE_START if "variance_every" in name else 2):
            step()
    for _ in range(rounds):
        spent = dict.fromkeys(steps, 0.0)
        for _ in range(block):
            shuffle(order)
            for name in order:
                start = time.process_time()
                steps[name]()
                spent[name] += time.process_time() - start
        for name, total in spent.items():
            times[name].append(total / block)
    rows = []
    for name, measured in times.items():
        paired = [one / other for one, other in zip(measured, times[STOCK], strict=True)]
        low, middle, high = statistics.quantiles(paired, n=4) if name != STOCK else (1.0, 1.0, 1.0)
        rows.append(
            {
                "case": case,
                "contender": name,
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "milliseconds": round(1000 * statistics.median(measured), 2),
            }
        )
    return rows


def memory_and_wire():
    """Bytes beside AdamW's own for each parameter, and on the wire relative to the gradients, from real buffers."""
    rows = []
    for name, form in {STOCK: None, **FORMS}.items():
        torch.manual_seed(0)
        model = Text(64)
        weights = sum(p.numel() for p in model.parameters())
        gradients = sum(p.nbytes for p in model.parameters())
        sent = steady = peak = 0.0
        if form is not None:
            optimizer = InvariantAdamW(model.parameters(), 1e-3, reference_batch=1, **form)
            x = torch.randint(0, VOCABULARY, (2, LENGTH))
            split_backward(optimizer, model.loss, x, x.roll(-1, 1))
            every = form.get("variance_every", 1)
            sent = optimizer.chunks.nbytes / every
            squares = optimizer.chunks.nbytes
            optimizer.step()
            kept = sum(state["variance"].nbytes for state in optimizer.state.values() if "variance" in state)
            steady, peak = (kept or squares), squares + kept
        rows.append(
            {
                "case": "optimizer's bytes per parameter over AdamW's 8 (float32)",
                "contender": name,
                "ratio": round((8 + steady / weights) / 8, 4),
                "extra bytes": round(steady / weights, 4),
                "extra bytes while measuring": round(peak / weights, 4),
            }
        )
        ratio = round(1 + sent / gradients, 4)
        rows.append({"case": "DDP: bytes on the wire over gradients alone", "contender": name, "ratio": ratio})
    return rows


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return torch.tensor(x / 16 - 0.5)[order], torch.tensor(y)[order]


def digits_run(data, seed: int, reference: int, kappa: float, optimizer_of):
    """Train an MLP at a batch; return log held-out loss of raw and averaged weights at 16 matched samples."""
    (x, y), cut, samples = data, 1437, round(reference * kappa)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).double()
    names = [name for name, _ in model.named_parameters()]
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = optimizer_of(model)
    rng = np.random.default_rng(1000 + seed)
    order = torch.tensor(np.concatenate([rng.permutation(cut) for _ in range(31)]))
    curve, seen, total = [], 0, 30 * cut

    def loss(inputs, targets):
        return nn.functional.cross_entropy(model(inputs), targets)

    while seen < total:
        chosen = order[seen : seen + samples]
        optimizer.zero_grad()
        invariant = isinstance(optimizer, InvariantAdamW)
        with layer_squares(model, optimizer, batch=len(chosen)) if invariant else nullcontext():
            loss(x[chosen], y[chosen]).backward()
        optimizer.step()
        seen += samples
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - 0.999**kappa)
            if seen >= total * (len(curve) + 1) // 16:
                averaged = torch.func.functional_call(model, dict(zip(names, average, strict=True)), (x[cut:],))
                both = [loss(x[cut:], y[cut:]), nn.functional.cross_entropy(averaged, y[cut:])]
                curve.append([math.log(float(value)) for value in both])
    return np.array(curve)


def digits_errors(reference: int, kappa: float, lr: float, forms, seeds: int):
    """Worst gap in log held-out loss against the reference run, mean over seeds paired by initialisation."""
    data, betas, root = digits(), (0.9**kappa, 0.999**kappa), math.sqrt(kappa)

    def stock(rate, decay, eps):
        return lambda model: torch.optim.AdamW(model.parameters(), rate, betas, eps, decay, foreach=True)

    def invariant(form, scale=kappa, own=betas):
        return lambda model: InvariantAdamW(model.parameters(), lr * scale, own, reference_batch=reference, **form)

    contenders = {
        f"{STOCK} square root": stock(lr * root, 0.01 * root, 1e-8 / root),
        f"{STOCK} linear": stock(lr * kappa, 0.01, 1e-8),
        **{name: invariant(form) for name, form in forms.items()},
    }
    truth = [digits_run(data, seed, reference, 1, invariant({}, 1, (0.9, 0.999))) for seed in range(seeds)]
    rows = []
    for name, optimizer_of in contenders.items():
        runs = [digits_run(data, seed, reference, kappa, optimizer_of) for seed in range(seeds)]
        gaps = np.mean([run - other for run, other in zip(runs, truth, strict=True)], axis=0)
        raw, averaged = (float(gaps[np.abs(gaps[:, i]).argmax(), i]) for i in (0, 1))
        rows.append(
            {
                "case": f"digits, reference batch {reference}, kappa {kappa:g}: worst gap in log held-out loss",
                "contender": name,
                "ratio": round(math.exp(abs(averaged)), 4),
                "worst": {"average": round(averaged, 4), "raw": round(raw, 4)},
                "seeds": seeds,
            }
        )
    return rows


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width, micro in ((64, 4), (64, 1), (128, 4)):
        case = f"step: text transformer, width {width}, 4 micro-batches of {micro} x {LENGTH} bytes"
        rows += ratios(case, text_steps(width, micro, 4, whole=False), arguments.rounds)
    for micro in (4, 1):
        case = f"step: text transformer, width 64, one batch of 16 x {LENGTH} bytes, reference {micro}"
        rows += ratios(case, text_steps(64, micro, 16 // micro, whole=True), arguments.rounds)
    rows += memory_and_wire()
    sparse = {"isobatch InvariantAdamW variance_every=32": {"variance_every": 32}}
    rows += digits_errors(8, 16, 3e-4, {**FORMS, **sparse}, arguments.seeds)
    rows += digits_errors(32, 0.25, 6e-4, {"isobatch InvariantAdamW": {}}, arguments.seeds)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{processor()}, 1 thread of {os.cpu_count()}",
        "versions": {
            "isobatch": isobatch.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rows": rows,
    }
    for row in rows:
        print(row)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
