"""Every average that can be timed here: ours, other libraries' where they import, and plain PyTorch."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from isobatch.average import ModelEMA, MultiEMA, Storage

DECAY, BATCH = 0.999, 256
LEFT_TO_THE_LOOP = Storage(check_finite=False)
LOOKED_AT = Storage(check_finite="all")
FLAT = Storage(flat=True)
COMPENSATED = {"dtype": torch.bfloat16, "storage": Storage(check_finite=False, rounding="compensated")}
COMPILED = {"dtype": torch.bfloat16, "storage": Storage(check_finite=False, rounding="compensated", compiled=True)}
Update = Callable[[], Any]


def load(name: str) -> Any:
    """Import a peer; a torchvision built for other hardware is given the two operators that it misses."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        load.kept = library
        return importlib.import_module(name)


def ours(model: nn.Module, **options: Any) -> Update:
    ema = ModelEMA(model, decay=DECAY, batch_size=BATCH, **options)
    return lambda: ema.update(samples=BATCH)


def horizons(model: nn.Module, **options: Any) -> Update:
    averages = MultiEMA(model, decays=[0.99, 0.999, 0.9999], batch_size=BATCH, **options)
    return lambda: averages.update(samples=BATCH)


def averaged_model(model: nn.Module, multi: bool = True) -> Update:
    swa = torch.optim.swa_utils
    function = {"multi_avg_fn": swa.get_ema_multi_avg_fn(DECAY)} if multi else {"avg_fn": swa.get_ema_avg_fn(DECAY)}
    average = swa.AveragedModel(model, **function)
    return lambda: average.update_parameters(model)


def raw_foreach(model: nn.Module) -> Update:
    weights = [p.detach() for p in model.parameters()]
    averages = [w.clone() for w in weights]
    return lambda: torch._foreach_lerp_(averages, weights, 1 - DECAY)


def foreach_mul_add(model: nn.Module) -> Update:
    weights = [p.detach() for p in model.parameters()]
    averages = [w.to(torch.float32, copy=True) for w in weights]

    def update() -> None:
        torch._foreach_mul_(averages, DECAY)
        torch._foreach_add_(averages, weights, alpha=1 - DECAY)

    return update


def cast_foreach(model: nn.Module) -> Update:
    weights = [p.detach() for p in model.parameters()]
    averages = [w.to(torch.float32, copy=True) for w in weights]
    return lambda: torch._foreach_lerp_(averages, [w.float() for w in weights], 1 - DECAY)


def blended(averages: list[torch.Tensor], weights: torch.Tensor, share: torch.Tensor) -> None:
    now = weights.to(averages[0].dtype)
    for k, average in enumerate(averages):
        average.copy_(average + share[k] * (now - average))


def compiled(model: nn.Module, count: int = 1) -> Update:
    """One compiled pass per tensor, however many averages and whatever the dtype; what is small lies in one tensor."""
    flat = [p.detach().reshape(-1) for p in model.parameters()]
    rows = [w.clone() for w in flat if w.numel() > 4096] + [torch.cat([w for w in flat if w.numel() <= 4096])]
    averages = [[w.to(torch.float32, copy=True) for _ in range(count)] for w in rows]
    share, function = torch.full((count,), 1 - DECAY), torch.compile(blended, fullgraph=True, dynamic=True)
    return lambda: [function(a, w, share) for a, w in zip(averages, rows, strict=True)]


def ema_pytorch(model: nn.Module, foreach: bool) -> Update:
    library = load("ema_pytorch")
    average = library.EMA(model, beta=DECAY, update_after_step=0, update_every=1, use_foreach=foreach)
    return average.update


def diffusers(model: nn.Module, foreach: bool, dtype: torch.dtype | None = None) -> Update:
    library = load("diffusers.training_utils")
    average = library.EMAModel(model.parameters(), decay=DECAY, foreach=foreach)
    if dtype is not None:
        average.to(dtype=dtype)
    return lambda: average.step(model.parameters())


def torch_ema(model: nn.Module, dtype: torch.dtype | None = None) -> Update:
    library = load("torch_ema")
    average = library.ExponentialMovingAverage(model.parameters(), decay=DECAY)
    if dtype is not None:
        average.to(dtype=dtype)
    return average.update


def timm(model: nn.Module, **options: Any) -> Update:
    average = load("timm.utils.model_ema").ModelEmaV3(model, decay=DECAY, **options)
    return lambda: average.update(model)


def ultralytics(model: nn.Module) -> Update:
    average = load("ultralytics.utils.torch_utils").ModelEMA(model, decay=DECAY)
    return lambda: average.update(model)


def three(build: Callable[[nn.Module], Update]) -> Callable[[nn.Module], Update]:
    def built(model: nn.Module) -> Update:
        updates = [build(model) for _ in range(3)]
        return lambda: [update() for update in updates]

    return built


FLOAT32: dict[str, Callable[[nn.Module], Update]] = {
    "isobatch default": ours,
    "isobatch, nothing looked at": lambda m: ours(m, storage=LEFT_TO_THE_LOOP),
    "isobatch, all looked at": lambda m: ours(m, storage=LOOKED_AT),
    "isobatch flat": lambda m: ours(m, storage=FLAT),
    "raw _foreach_lerp_, lists bound": raw_foreach,
    "one compiled pass": compiled,
    "torch AveragedModel multi_avg_fn": averaged_model,
    "torch AveragedModel avg_fn": lambda m: averaged_model(m, multi=False),
    "ema-pytorch foreach": lambda m: ema_pytorch(m, True),
    "ema-pytorch loop": lambda m: ema_pytorch(m, False),
    "diffusers foreach": lambda m: diffusers(m, True),
    "diffusers loop": lambda m: diffusers(m, False),
    "torch-ema": torch_ema,
    "timm": timm,
    "ultralytics": ultralytics,
}
SMALL = {**FLOAT32, "isobatch flat, nothing looked at": lambda m: ours(m, storage=replace(FLAT, check_finite=False))}
NARROW: dict[str, Callable[[nn.Module], Update]] = {
    "isobatch default": ours,
    "isobatch, nothing looked at": lambda m: ours(m, storage=LEFT_TO_THE_LOOP),
    "isobatch, all looked at": lambda m: ours(m, storage=LOOKED_AT),
    "isobatch flat": lambda m: ours(m, storage=FLAT),
    "foreach mul_ + add_, lists bound": foreach_mul_add,
    "cast, then _foreach_lerp_": cast_foreach,
    "one compiled pass": compiled,
    "diffusers foreach": lambda m: diffusers(m, True, torch.float32),
    "torch-ema": lambda m: torch_ema(m, torch.float32),
    "timm": lambda m: timm(m, dtype=torch.float32),
}
SEVERAL: dict[str, Callable[[nn.Module], Update]] = {
    "isobatch default": horizons,
    "isobatch, nothing looked at": lambda m: horizons(m, storage=LEFT_TO_THE_LOOP),
    "isobatch, all looked at": lambda m: horizons(m, storage=LOOKED_AT),
    "isobatch flat": lambda m: horizons(m, storage=FLAT),
    "isobatch compiled, flat": lambda m: horizons(m, storage=Storage(compiled=True)),
    "isobatch compiled, not moved": lambda m: horizons(m, storage=Storage(compiled=True, flat=False)),
    "one compiled pass": lambda m: compiled(m, 3),
    "3 x raw _foreach_lerp_, lists bound": three(raw_foreach),
    "3 x torch AveragedModel": three(averaged_model),
    "3 x ema-pytorch foreach": three(lambda m: ema_pytorch(m, True)),
    "3 x timm": three(timm),
    "3 x ultralytics": three(ultralytics),
}
SHORT: dict[str, Callable[[nn.Module], Update]] = {
    "isobatch compensated": lambda m: ours(m, **COMPENSATED),
    "isobatch compensated, compiled": lambda m: ours(m, **COMPILED),
    "isobatch hold, compensated": lambda m: ours(m, kind="hold", **COMPENSATED),
    "isobatch hold, compensated, compiled": lambda m: ours(m, kind="hold", **COMPILED),
    "3 horizons, compensated": lambda m: horizons(m, **COMPENSATED),
    "3 horizons, compensated, compiled": lambda m: horizons(m, **COMPILED),
}
