"""Checks of the Triton kernel without a GPU, in a process of their own, because Triton decides when it is loaded.

With TRITON_INTERPRET=1 Triton's interpreter runs it on a CPU, against slow float64. Without, it is compiled for GPUs
that need not be there. Prints JSON.
"""

import json
import os
import sys
import warnings
from importlib import import_module

import torch
from torch import nn

from isobatch.average import ModelEMA, MultiEMA, PowerEMA, Storage
from isobatch.gradients import triton_kernel
from isobatch.gradients.triton_kernel import blended_by_triton

TRITON = Storage(compiled="triton")


def rule(dtype: torch.dtype, count: int, horizons: int, gap: int) -> float:
    """Largest difference to float64 in units of float32's, over decays of every size; what lies beside must stay."""
    generator = torch.Generator().manual_seed(count + horizons)
    memory = torch.randn(horizons, count + gap, generator=generator)
    averages, beside = memory[:, :count], memory[:, count:].clone()
    weights = torch.randn(count, generator=generator).to(dtype)
    worst = 0.0
    for shares in ([0.0, 1.0, 0.5], [1e-4, 0.3, 0.9999], [1e-7, 0.49, 1e-3]):
        expected = averages.double()
        share = torch.tensor(shares[:horizons]).double()
        expected = expected + share[:, None] * (weights.double() - expected)
        table = torch.stack([torch.full((horizons,), torch.nan), torch.tensor(shares[:horizons])])
        blended_by_triton(list(averages), [], None, weights, table)
        worst = max(worst, float((averages.double() - expected).abs().max()))
        if 1.0 in shares[:horizons]:
            assert torch.equal(averages[shares.index(1.0)], weights.float()), "a share of 1 is a copy"
    assert torch.equal(memory[:, count:], beside), "written beside the averages"
    return worst / torch.finfo(torch.float32).eps


def run(make, dtype: torch.dtype) -> float:
    """Largest relative difference of a run with the kernel to one by plain PyTorch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 3)).to(dtype)
    mine, plain = make(model, TRITON), make(model, Storage())
    generator = torch.Generator().manual_seed(1)
    for samples in (8, 8, 24, 7, 1, 64):
        with torch.no_grad():
            for p in model.parameters():
                p.add_((0.1 * torch.randn(p.shape, generator=generator)).to(dtype))
        mine.update(samples=samples)
        plain.update(samples=samples)
    code = mine._engine.buffers.intake.updates[0]._compiled[0]
    assert code[0]._function is blended_by_triton, "the kernel did not run"
    assert code[1]
    ours, theirs = mine._engine.buffers.roles["average"].tensors, plain._engine.buffers.roles["average"].tensors
    return max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max()) for n in theirs)


KINDS = {
    "one": lambda m, s: ModelEMA(m, half_life=50, storage=s),
    "three": lambda m, s: MultiEMA(m, half_lives=[20, 50, 300], storage=s),
    "power": lambda m, s: PowerEMA(m, storage=s),
}


def interpreted() -> dict[str, float]:
    warnings.simplefilter("error", UserWarning)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for count, horizons, gap in ((1, 1, 0), (1023, 3, 0), (1024, 2, 5), (5000, 3, 16)):
            found[f"rule {dtype} {count}x{horizons}"] = rule(dtype, count, horizons, gap)
        for name, make in KINDS.items():
            found[f"run {dtype} {name}"] = run(make, dtype)
    return found


def compiled() -> dict[str, bool]:
    compiler, target = import_module("triton.compiler"), import_module("triton.backends.compiler").GPUTarget
    found = {}
    for weights in ("fp32", "bf16", "fp16"):
        kinds = {"averages": "*fp32", "weights": f"*{weights}", "shares": "*fp32", "count": "i32", "stride": "i64"}
        constants = {"horizons": 3, "block": triton_kernel.BLOCK}
        words = dict.fromkeys(constants, "constexpr")
        source = compiler.ASTSource(triton_kernel._jitted(), kinds | words, constexprs=constants)
        for architecture in (80, 90):
            made = import_module("triton").compile(source, target=target("cuda", architecture, 32))
            found[f"{weights} {architecture}"] = f".target sm_{architecture}" in made.asm["ptx"]
    return found


if __name__ == "__main__":
    results = interpreted() if os.environ.get("TRITON_INTERPRET") == "1" else compiled()
    sys.stdout.write(json.dumps(results) + "\n")
