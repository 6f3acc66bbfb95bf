"""Does an average that is moved inside the optimizer's step pay? A prototype, against step and average apart.

Run from the repository's root: python benchmarks/fused_average.py --json FILE [--rounds 21]
For SGD, SGD with momentum and AdamW on ResNet-50's tensors, one thread, CPU time, all contenders in turns: torch's own
optimizer and ModelEMA; the same step compiled, then ModelEMA; step and average in one compiled pass. Beside them what
the bytes of memory allow: a pass of step and average apart against one that reads the new weights from registers.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from average_contenders import LEFT_TO_THE_LOOP
from average_models import resnet50
from torch import Tensor, nn

from isobatch.average import ModelEMA

LEARNING_RATE, SHARE = 1e-6, 1e-3
# optimizer: (how many states, bytes a weight of its own pass)
KINDS = {"SGD": (0, 12), "SGD with momentum": (1, 20), "AdamW": (2, 28)}
AVERAGE, SAVED = 12, 4  # bytes a weight of an average's pass, and of the weights that a fused one need not read again


def stepped(weights: Tensor, gradient: Tensor, states: list[Tensor], rate: Tensor) -> Tensor:
    """One step of the optimizer that has so many states; returns the new weights."""
    move = gradient
    if len(states) == 1:
        move = states[0] * 0.9 + gradient
        states[0].copy_(move)
    elif states:
        first = torch.lerp(states[0], gradient, 0.1)
        second = states[1] * 0.999 + 0.001 * gradient * gradient
        states[0].copy_(first)
        states[1].copy_(second)
        move = first / (second.sqrt() + 1e-8) + 0.01 * weights
    new = weights - rate * move
    weights.copy_(new)
    return new


def fused(
    weights: Tensor, gradient: Tensor, states: list[Tensor], average: Tensor, rate: Tensor, share: Tensor
) -> None:
    new = stepped(weights, gradient, states, rate)
    average.copy_(average + share * (new - average))


def alone(weights: Tensor, gradient: Tensor, states: list[Tensor], rate: Tensor) -> None:
    stepped(weights, gradient, states, rate)


def torch_optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    momentum = 0.9 if kind != "SGD" else 0.0
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=momentum, fused=True)


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = resnet50()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def contenders(kind: str) -> dict[str, Callable[[], object]]:
    made: dict[str, Callable[[], object]] = {}
    model = model_with_gradients()
    optimizer, ema = torch_optimizer(kind, model), ModelEMA(model, half_life=1e6, storage=LEFT_TO_THE_LOOP)
    made["torch's fused optimizer alone"] = optimizer.step
    made["torch's fused optimizer, then ModelEMA"] = lambda: (optimizer.step(), ema.update(samples=256))

    def bound() -> tuple[nn.Module, list[tuple[Tensor, Tensor, list[Tensor], Tensor]]]:
        model = model_with_gradients()
        rows = []
        for p in model.parameters():
            w, g = p.data.view(-1).data, p.grad.view(-1).data
            rows.append((w, g, [torch.zeros_like(w) for _ in range(KINDS[kind][0])], w.clone()))
        return model, rows

    rate, share = torch.tensor(LEARNING_RATE), torch.tensor(SHARE)
    one = torch.compile(fused, fullgraph=True, dynamic=True)
    _, together = bound()

    def both() -> None:
        for w, g, states, average in together:
            one(w, g, states, average, rate, share)

    made["step and average in one compiled pass"] = both
    step = torch.compile(alone, fullgraph=True, dynamic=True)
    second, apart = bound()
    after = ModelEMA(second, half_life=1e6, storage=LEFT_TO_THE_LOOP)

    def stepwise() -> None:
        for w, g, states, _ in apart:
            step(w, g, states, rate)
        after.update(samples=256)

    made["compiled step, then ModelEMA"] = stepwise
    return made


def measure(kind: str, rounds: int) -> dict[str, object]:
    torch._dynamo.reset()
    actions = contenders(kind)
    for action in actions.values():
        action()
        action()
    order, found = random.Random(0), {name: [] for name in actions}
    for _ in range(rounds):
        for name in order.sample(list(actions), len(actions)):
            start = time.thread_time()
            actions[name]()
            found[name].append(time.thread_time() - start)
    usual = found["torch's fused optimizer, then ModelEMA"]
    rows = {}
    for name, values in found.items():
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(values, usual, strict=True)], n=4)
        rows[name] = {
            "milliseconds": round(1e3 * statistics.median(values), 2),
            "ratio": round(ratio, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    own = KINDS[kind][1]
    return {"optimizer": kind, "memory allows": round((own + AVERAGE - SAVED) / (own + AVERAGE), 3), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    load, rows = os.getloadavg()[0], []
    for kind in KINDS:
        rows.append(measure(kind, given.rounds))
        print(json.dumps(rows[-1], indent=1), flush=True)
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "rounds": given.rounds}
    loads = [round(load, 2), round(os.getloadavg()[0], 2)]
    if given.json is not None:
        given.json.write_text(json.dumps(about | {"load_average": loads, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
