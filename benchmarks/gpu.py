"""What averages and noise scales cost on a GPU, against the memory limit and against torch.

    python benchmarks/gpu.py average --device cuda --json average.json
    python benchmarks/gpu.py noise --device cuda --json noise.json
    python benchmarks/gpu.py step --device cuda --json step.json

`average`: milliseconds of an update for 25 and 86 million parameters in 160 tensors: ModelEMA, torch's AveragedModel,
a bare foreach lerp, and the gigabytes a second that 12 bytes a parameter come to. `noise`: a training step without and
with a noise scale at its default budget, and with every step measured. `step`: the same with average and noise scale
through a SampleClock. Contenders take turns in random order; figures are medians of rounds.
"""

import argparse
import datetime
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isobatch as ib


class Bench:
    def __init__(self, device: str, smoke: bool):
        self.device, self.smoke = torch.device(device), smoke
        self.rounds, self.repeats = (3, 2) if smoke else (21, 20)

    def seconds(self, action: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(self.repeats):
            action()
        self.wait()
        return (time.perf_counter() - started) / self.repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def medians(self, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
        order, found = random.Random(0), {name: [] for name in contenders}
        for action in contenders.values():
            self.seconds(action)
        for _ in range(self.rounds):
            for name in order.sample(list(contenders), len(contenders)):
                found[name].append(1e3 * self.seconds(contenders[name]))
        return {name: round(statistics.median(times), 4) for name, times in found.items()}

    def net(self, width: int, depth: int) -> nn.Module:
        torch.manual_seed(0)
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.GELU())]
        return nn.Sequential(*layers, nn.Linear(width, 1)).to(self.device)


def average(bench: Bench) -> list[dict]:
    rows = []
    for width in (8,) if bench.smoke else (560, 1037):
        model = bench.net(width, 80)
        count = sum(p.numel() for p in model.parameters())
        ema, peer = ib.ModelEMA(model, half_life=1e6), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        weights = [p.detach() for p in model.parameters()]
        held = [w.clone() for w in weights]
        found = bench.medians({
            "ModelEMA": lambda ema=ema: ema.update(samples=128),
            "AveragedModel": lambda peer=peer, model=model: peer.update_parameters(model),
            "foreach lerp": lambda held=held, weights=weights: torch._foreach_lerp_(held, weights, 0.001),
        })  # fmt: skip
        speed = {name: round(12 * count / ms / 1e6, 1) for name, ms in found.items()}
        rows.append({"parameters": count, "milliseconds": found, "gigabytes a second": speed})
    return rows


def stepper(bench: Bench, how: str) -> Callable[[], object]:
    model = bench.net(16 if bench.smoke else 2048, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    x = torch.randn(2, 8 if bench.smoke else 256, 16 if bench.smoke else 2048, device=bench.device)
    noise = ib.NoiseScale(model, optimizer, every=1 if how == "every step" else None) if how != "bare" else None
    ema = ib.ModelEMA(model, half_life=1e6) if how == "average and noise" else None
    clock = ib.SampleClock(average=ema, noise=noise)

    def step() -> None:
        for part in x:
            with clock.micro(len(part)):
                model(part).square().mean().div(len(x)).backward()
        clock.ready()
        optimizer.step()
        optimizer.zero_grad()
        clock.applied()

    def bare() -> None:
        for part in x:
            model(part).square().mean().div(len(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return bare if how == "bare" else step


def steps(bench: Bench, contenders: tuple[str, ...]) -> list[dict]:
    found = bench.medians({how: stepper(bench, how) for how in contenders})
    return [{"milliseconds a step": found, "ratio": {how: round(ms / found["bare"], 4) for how, ms in found.items()}}]


PARTS = {
    "average": average,
    "noise": lambda bench: steps(bench, ("bare", "budget", "every step")),
    "step": lambda bench: steps(bench, ("bare", "average and noise")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="smallest sizes")
    given = parser.parse_args()
    bench = Bench(given.device, given.smoke)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    about = {"date": datetime.date.today().isoformat(), "hardware": name, "torch": torch.__version__}
    result = {"part": given.part, **about, "smoke": given.smoke, "rows": PARTS[given.part](bench)}
    print(json.dumps(result, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
