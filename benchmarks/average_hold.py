"""Plain update or first-order hold: which comes closer to the averages of the run at the reference batch?

Digits, a small MLP, SGD without momentum, float64, same data order, learning rate scaled linearly with the batch. The
reference run updates its averages at every step of batch 4. Three comparisons at matched samples, means over seeds:
"path": the reference run's own weights, averaged only every kappa steps (the error of the average alone);
"weights": averages of the run at batch 4 kappa, distance to the reference averages, as the path's;
"loss": test loss of those averages minus the reference's.

Run from the repository's root: python benchmarks/average_hold.py --json FILE
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from isobatch.average import MultiEMA

BATCH, EPOCHS = 4, 16
RATES = (0.02, 0.004)
KAPPAS = (8, 64)
DECAYS = (0.95, 0.98, 0.995, 0.999)
MOMENTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
SEEDS = range(5)


def data() -> tuple[torch.Tensor, ...]:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    inputs = torch.tensor(digits.data[order] / 16.0)
    labels = torch.tensor(digits.target[order])
    return inputs[:1408], labels[:1408], inputs[1408:], labels[1408:]


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


def averages(model: nn.Module, kind: str, cadence: int = 1) -> MultiEMA:
    return MultiEMA(model, decays=DECAYS, batch_size=BATCH, kind=kind, cadence=cadence)


def flat(average: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in average.values()])


def run(seed: int, rate: float, kappa: int, sets: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Averages and losses at the moments, by name; at kappa 1 also those of its own path at longer strides."""
    x, y, x_test, y_test = sets
    model = build(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate * kappa)
    followed = {"plain": averages(model, "plain"), "hold": averages(model, "hold")}
    if kappa == 1:
        followed |= {f"{kind} {k}": averages(model, kind, k) for kind in ("plain", "hold") for k in KAPPAS}
    order = torch.cat(
        [torch.randperm(len(x), generator=torch.Generator().manual_seed(97 * seed + e)) for e in range(EPOCHS)]
    )
    total = len(order) // (BATCH * max(KAPPAS))
    stops = {max(1, round(m * total)) * max(KAPPAS) * BATCH: m for m in MOMENTS}
    found: dict[str, Any] = {}
    for part in order.split(BATCH * kappa):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        for average in followed.values():
            average.update(samples=len(part))
        moment = stops.get(int(followed["plain"].seen))
        if moment is not None:
            for name, average in followed.items():
                for decay, half_life in zip(DECAYS, average.half_lives, strict=True):
                    with average.applied(model, half_life), torch.no_grad():
                        loss = float(nn.functional.cross_entropy(model(x_test), y_test))
                    found[name, decay, moment] = flat(average.average(half_life)).clone(), loss
    found["start"] = flat({n: p.detach() for n, p in build(seed).named_parameters()})
    return found


def compare(reference: dict[Any, Any], large: dict[Any, Any], kappa: int) -> dict[Any, dict[str, float]]:
    found = {}
    for decay in DECAYS:
        for moment in MOMENTS:
            true, loss = reference["plain", decay, moment]
            scale = float((true - reference["start"]).norm())
            entry = {}
            for kind in ("plain", "hold"):
                own, _ = reference[f"{kind} {kappa}", decay, moment]
                other, other_loss = large[kind, decay, moment]
                entry[f"path {kind}"] = float((own - true).norm()) / scale
                entry[f"weights {kind}"] = float((other - true).norm()) / scale
                entry[f"loss {kind}"] = other_loss - loss
            found[decay, moment] = entry
    return found


def row(rate: float, kappa: int, place: tuple[float, float], seeds: list[dict[str, float]]) -> dict[str, float]:
    decay, moment = place
    means = {name: round(float(np.mean([s[name] for s in seeds])), 5) for name in seeds[0]}
    found = {"lr": rate, "kappa": kappa, "decay": decay, "kappa(1-decay)": round(kappa * (1 - decay), 3), "at": moment}
    print(found | means)
    return found | means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = data()
    rows: list[dict[str, float]] = []
    for rate in RATES:
        per_seed: dict[int, list[dict[Any, dict[str, float]]]] = {kappa: [] for kappa in KAPPAS}
        for seed in SEEDS:
            reference = run(seed, rate, 1, sets)
            for kappa in KAPPAS:
                per_seed[kappa].append(compare(reference, run(seed, rate, kappa, sets), kappa))
        for kappa, seeds in per_seed.items():
            rows += [row(rate, kappa, place, [s[place] for s in seeds]) for place in seeds[0]]
    if options.json:
        setting = {"batch": BATCH, "epochs": EPOCHS, "seeds": len(SEEDS), "torch": torch.__version__}
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        options.json.write_text(json.dumps({"date": when, "setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
