"""What averages and noise scales cost on a GPU, against the memory limit and against torch.

    python benchmarks/gpu.py average --device cuda --json average.json     # and so for every part below

`average`: milliseconds of an update for 25 million to a billion parameters in 160 tensors (as many as fit): ModelEMA
of float32 and of bfloat16 weights and three horizons, by plain PyTorch and by the Triton kernel, torch's
AveragedModel, a bare foreach lerp; times are those of device events, beside them the share of the bandwidth of a plain
copy, measured in the same rounds. `graph`: the
compiled rule, decay in a device tensor, called and replayed from a CUDA graph, against the rule.
`offload`: a training step alone, with an average beside it, with one on the CPU and with one there whose copies
overlap, and the copy of the weights alone: what of it is hidden. `noise`: a training step without and with a noise
scale at its default budget, and with every step measured. `step`: the same with average and noise
scale through a SampleClock. Contenders take turns in random order; figures are medians of rounds.
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
from isobatch.average import MultiEMA, Storage
from isobatch.gradients.compensated import blended


class Bench:
    def __init__(self, device: str, smoke: bool):
        self.device, self.smoke = torch.device(device), smoke
        self.rounds, self.repeats = (3, 2) if smoke else (21, 20)

    def seconds(self, action: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            for _ in range(self.repeats):
                action()
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1000 / self.repeats
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
    for width in (8,) if bench.smoke else (560, 1037, 1768, 2500, 3535):
        model, narrow = bench.net(width, 80), bench.net(width, 80).bfloat16()
        count = sum(p.numel() for p in model.parameters())
        if bench.device.type == "cuda" and 72 * count > torch.cuda.mem_get_info()[0]:
            rows.append({"parameters": count, "left out": "the memory of the device does not hold the contenders"})
            continue
        three = MultiEMA(model, half_lives=[1e5, 1e6, 1e7])
        ema, low = ib.ModelEMA(model, half_life=1e6), ib.ModelEMA(narrow, half_life=1e6)
        kernel = Storage(compiled="triton")  # moves parameters into one buffer, so of models of its own
        low_kernel = ib.ModelEMA(bench.net(width, 80).bfloat16(), half_life=1e6, storage=kernel)
        three_kernel = MultiEMA(bench.net(width, 80), half_lives=[1e5, 1e6, 1e7], storage=kernel)
        peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        weights = [p.detach() for p in model.parameters()]
        held = [w.clone() for w in weights]
        flat = torch.zeros(2, count, device=bench.device)
        contenders: dict[str, tuple[Callable[[], object], int]] = {
            "copy": (lambda flat=flat: flat[0].copy_(flat[1]), 8),
            "ModelEMA": (lambda ema=ema: ema.update(samples=128), 12),
            "ModelEMA, bfloat16 weights": (lambda low=low: low.update(samples=128), 10),
            "bfloat16 weights, Triton": (lambda low=low_kernel: low.update(samples=128), 10),
            "three horizons": (lambda three=three: three.update(samples=128), 28),
            "three horizons, Triton": (lambda three=three_kernel: three.update(samples=128), 28),
            "AveragedModel": (lambda peer=peer, model=model: peer.update_parameters(model), 12),
            "foreach lerp": (lambda held=held, weights=weights: torch._foreach_lerp_(held, weights, 0.001), 12),
        }
        found = bench.medians({name: action for name, (action, _) in contenders.items()})
        speed = {name: contenders[name][1] * count / ms / 1e6 for name, ms in found.items()}
        share = {name: round(value / speed["copy"], 3) for name, value in speed.items()}
        copied = round(speed["copy"], 1)
        rows.append({"parameters": count, "milliseconds": found, "copy, GB/s": copied, "share of a copy": share})
    return rows


def graph(bench: Bench) -> list[dict]:
    size, count = (256, 3) if bench.smoke else (25_000_000, 3)
    averages = [torch.zeros(size, device=bench.device) for _ in range(count)]
    weights = torch.randn(size, device=bench.device).bfloat16()
    shares = torch.zeros(2, count, device=bench.device)
    rule = blended if bench.smoke else torch.compile(blended, fullgraph=True)

    def move() -> None:
        rule(averages, [], None, weights, shares)

    move()
    replay: Callable[[], object] = move
    if bench.device.type == "cuda":
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            move()
        replay = recorded.replay
    for average in averages:
        average.zero_()
    expected = [torch.zeros(size, dtype=torch.float64, device=bench.device) for _ in range(count)]
    for decay in (0.9, 0.99, 0.999):  # one recording, whatever the decay
        shares[1] = torch.tensor([1 - decay**k for k in range(1, count + 1)])
        replay()
        for k, value in enumerate(expected):
            value.lerp_(weights.double(), float(shares[1, k]))
    error = max(float((a.double() - e).abs().max()) for a, e in zip(averages, expected, strict=True))
    found = bench.medians({"called": move, "replayed": replay})
    return [{"elements": size, "horizons": count, "milliseconds": found, "largest error": error}]


def offload(bench: Bench) -> list[dict]:
    contenders = {}
    places = {
        "step alone": None,
        "average beside it": Storage(device=bench.device),
        "average on the CPU": Storage(device="cpu"),
        "average on the CPU, overlapped": Storage(device="cpu", overlap=True),
    }
    for name, storage in places.items():
        model = bench.net(16 if bench.smoke else 2048, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ema = ib.ModelEMA(model, half_life=1e6, storage=storage) if storage is not None else None
        x = torch.randn(8 if bench.smoke else 4096, 16 if bench.smoke else 2048, device=bench.device)

        def step(model=model, optimizer=optimizer, ema=ema, x=x) -> None:
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(samples=len(x))

        contenders[name] = step
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    host = torch.empty(len(weights), pin_memory=bench.device.type == "cuda")
    contenders["copy of the weights alone"] = lambda: host.copy_(weights, non_blocking=True)
    found = bench.medians(contenders)
    more = {name: round(found[name] - found["step alone"], 4) for name in places if name.startswith("average on")}
    return [{"parameters": len(weights), "milliseconds": found, "more than the step": more}]


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
    "graph": graph,
    "offload": offload,
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
