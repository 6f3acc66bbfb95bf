"""mmengine (mmdetection, mmpretrain, mmsegmentation): Python dicts, lists of schedulers, 1 - decay for averages."""

import math
import re
from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.words import (
    capped_epoch,
    clip,
    milestones,
    moments,
    optimizer,
    per_device_batch,
    share_of_peak,
)

_INERT = (
    "val_dataloader test_dataloader val_cfg test_cfg model train_pipeline test_pipeline env_cfg "
    "default_hooks optim_wrapper.type optim_wrapper.optimizer.type train_cfg _base_ max_epochs base_lr "
    "optim_wrapper.loss_scale train_dataloader auto_scale_lr warmup_iters stage2_num_epochs interval "
    "optim_wrapper.clip_grad num_last_epochs num_epochs_stage2 batch_augments backend_args "
    "data_preprocessor train_batch_size_per_gpu train_num_workers val_batch_size_per_gpu tta_model "
    "batch_shapes_cfg"
)


def read(reader: Reader) -> None:
    """Read the config with its bases."""
    micro = reader.whole("train_dataloader.batch_size", ask="images per GPU", low=1)
    passes = reader.whole("optim_wrapper.accumulative_counts", default=1, low=1)
    told = re.search(r"(\d+)xb?\d+", reader.source.name)
    named = told is not None and "devices" not in reader.answers
    devices = reader.devices(default=int(told[1]) if told and named else None)
    if named:
        reader.note(f"{devices} GPUs by the file's name; say --devices where that is wrong")
    per_device_batch(reader, micro, passes, devices)
    if passes.value > 1:
        reader.note("mmengine's iterations are passes, of which an update holds accumulative_counts: spans in "
                    "iterations, and averages, follow the passes")  # fmt: skip
    mixed = reader.whole("train_dataloader.sampler.batch_size", default=None, low=1)
    if mixed.value:
        times = mixed.value / micro.value
        reader.link("micro", mixed, lambda view: view.micro * times, whole=True, least=1)
    most = reader.whole("train_dataloader.num_batch_per_epoch", default=None, low=1)
    if most.value:
        capped_epoch(reader, most)
    _optimizer(reader)
    _rule(reader)
    _length(reader)
    _schedulers(reader)
    _hooks(reader)
    reader.inert(_INERT)


def _optimizer(reader: Reader) -> None:
    head = "optim_wrapper.optimizer"
    name = optimizer(reader, reader.word(f"{head}.type", default="SGD"))
    reader.say("lr", reader.number(f"{head}.lr", ask="the learning rate"))
    reader.say("weight_decay", reader.number(f"{head}.weight_decay", default=0.01 if name == "adamw" else 0.0))
    moments(reader, name, head)
    limit = reader.number("optim_wrapper.clip_grad.max_norm", default=None)
    value = reader.number("optim_wrapper.clip_grad.clip_value", default=None)
    clip(reader, limit)
    if value.value:
        clip(reader, value)
        reader.draft.values["clip_by"] = "value"
    if reader.table("optim_wrapper.paramwise_cfg"):
        table = reader.table("optim_wrapper.paramwise_cfg")
        kinds = ", ".join(sorted(str(key) for key in table))
        reader.note(f"paramwise_cfg ({kinds}) holds multiples of the rate and the decay, which no batch moves")
        reader.inert("optim_wrapper.paramwise_cfg", "optim_wrapper.constructor")


def _rule(reader: Reader) -> None:
    base = reader.whole("auto_scale_lr.base_batch_size", default=None, low=1)
    if base.value is None:
        return
    reader.reference = float(base.value)
    draft = reader.draft
    stated, size, n = draft.values["lr"], draft.values["batch"], draft.values["micro"] * draft.values["devices"]
    if not reader.flag("auto_scale_lr.enable").value:
        words = f"--auto-scale-lr scales the rate by {n / base.value:g} before and after"
        part = base.value / n
        reader.link("batch.base", base, lambda view: part * view.micro * view.devices, words=words, whole=True, least=1)
        if n != base.value:
            reader.note(
                f"the rate is taken as it stands at {n}: where you start with --auto-scale-lr, which would scale it by "
                f"{n}/{base.value}, say --set auto_scale_lr.enable=true"
            )
        return
    per = size // n
    how = f"lr * GPUs x batch_size / {base.value} (accumulation is not counted)"
    link = next(link for link in reader.links if link.path == "optimizer.lr")
    reader.links.remove(link)
    reader.say("lr", Found(link.key, stated, link.origin), stated * n / base.value, words=how,
               back=lambda view: view["lr"] * base.value / (view.micro * view.devices))  # fmt: skip
    reader.rule("linear", "auto_scale_lr.enable", how, float(base.value) * per)


def _length(reader: Reader) -> None:
    epochs = reader.number("train_cfg.max_epochs", default=None)
    steps = reader.whole("train_cfg.max_iters", default=None)
    if epochs.value:
        reader.data_size("its epochs are passes over the data")
        reader.span("length", epochs, "epochs")
        if reader.find("default_hooks.checkpoint.by_epoch").value is False:
            saved = reader.whole("default_hooks.checkpoint.interval", default=None)
            if saved.value:
                reader.span("checkpoints", saved, "passes", least=1)
    elif steps.value:
        reader.span("length", steps, "passes", least=1)
        every = reader.whole("train_cfg.val_interval", default=None)
        if every.value:
            reader.span("evaluation", every, "passes", least=1)
        saved = reader.whole("default_hooks.checkpoint.interval", default=None)
        if saved.value:
            reader.span("checkpoints", saved, "passes", least=1)
    else:
        reader.ask("train_cfg.max_epochs", "the length of the run stands neither in epochs nor in iterations", 1)


def _unit(reader: Reader, item: dict[str, Any]) -> float:
    """Return the samples in one of a scheduler's counts."""
    by_epoch = item.get("by_epoch", True)
    if by_epoch is True:
        return float(reader.data_size())
    return float(reader.draft.values["micro"] * reader.draft.values["devices"])


def _mark(reader: Reader, index: int, field: str, item: dict[str, Any], usual: float) -> float:
    """Return a begin or end in samples; one that counts iterations moves with the batch."""
    found = reader.number(f"param_scheduler.{index}.{field}", default=usual)
    each = _unit(reader, item)
    if found.said and item.get("by_epoch", True) is not True and found.value:
        name = f"{field}_{index}"
        reader.span(name, found, "passes", least=1)
    return found.value * each


def _schedulers(reader: Reader) -> None:
    draft = reader.draft
    run = draft.samples("length") if "length" in draft.spans else 1.0
    rest: list[dict[str, Any]] = []
    at = 0.0
    for index, item in enumerate(reader.items("param_scheduler")):
        if not isinstance(item, dict):
            reader.unread(f"param_scheduler.{index}", "a scheduler that only running the file would tell")
            continue
        kind = str(item.get("type", "")).rsplit(".", 1)[-1]
        begin = _mark(reader, index, "begin", item, 0)
        if kind in ("LinearLR", "QuadraticWarmupLR", "ConstantLR") and begin == 0 and not rest:
            end = _mark(reader, index, "end", item, 5)
            factor = reader.number(
                f"param_scheduler.{index}.start_factor", f"param_scheduler.{index}.factor", default=1 / 3
            )
            draft.spans["warmup"] = f"{end:.17g} samples"
            draft.warmup_from = float(factor.value) if kind != "QuadraticWarmupLR" else 0.0
            at = end
            if kind == "QuadraticWarmupLR":
                reader.note("the warm-up rises with the square of the step; it is drawn as a line")
        elif kind in ("MultiStepLR", "StepLR"):
            _steps(reader, index, item, kind)
            rest = draft.rest
        elif kind in ("CosineAnnealingLR", "PolyLR", "LinearLR"):
            end = _mark(reader, index, "end", item, run / _unit(reader, item))
            period = reader.number(f"param_scheduler.{index}.T_max", default=None)
            if period.said and item.get("by_epoch", True) is not True:
                reader.span(f"T_max_{index}", period, "passes", least=1)
            share = _least(reader, index)
            how = {"CosineAnnealingLR": "cosine", "LinearLR": "linear"}.get(kind, "power")
            segment: dict[str, Any] = {"by": how, "to": share}
            if how == "power":
                segment["p"] = reader.number(f"param_scheduler.{index}.power", default=1.0).value
            if begin > at:
                rest.append({"span": f"{begin - at:.17g} samples", "by": "hold"})
            start = max(begin, at)
            if end > start and share != 1:
                rest.append({"span": f"{end - start:.17g} samples", **segment})
            at = max(end, at)
        elif kind == "ConstantLR":
            _mark(reader, index, "end", item, 0)
        else:
            reader.unread(f"param_scheduler.{index}", f"{kind} has a course of its own here; it is left as it is")
        reader.inert(f"param_scheduler.{index}")
    if rest and rest is not draft.rest:
        if at >= run * (1 - 1e-9):
            rest[-1].pop("span", None)
        else:
            rest.append({"by": "hold"})
        draft.rest = rest
    reader.inert("param_scheduler")


def _least(reader: Reader, index: int) -> float:
    ratio = reader.number(f"param_scheduler.{index}.eta_min_ratio", f"param_scheduler.{index}.end_factor", default=None)
    if ratio.value is not None:
        return float(ratio.value)
    least = reader.number(f"param_scheduler.{index}.eta_min", default=0.0)
    return share_of_peak(reader, "curves.lr", least) if least.value else 0.0


def _steps(reader: Reader, index: int, item: dict[str, Any], kind: str) -> None:
    each, draft = _unit(reader, item), reader.draft
    gamma = reader.number(f"param_scheduler.{index}.gamma", default=0.1)
    _mark(reader, index, "end", item, 0)
    if kind == "StepLR":
        every = reader.number(f"param_scheduler.{index}.step_size", default=1, low=1e-9)
        if item.get("by_epoch", True) is not True:
            reader.span("every", every, "passes", least=1)
        count = int(min(draft.samples("length") / (every.value * each), 500))
        marks = [every.value * each * k for k in range(1, count + 1)]
    else:
        held = [m for m in reader.items(f"param_scheduler.{index}.milestones") if isinstance(m, (int, float))]
        marks = [mark * each for mark in held]
        if item.get("by_epoch", True) is not True:
            for place in range(len(held)):
                mark = reader.whole(f"param_scheduler.{index}.milestones.{place}")
                reader.span(f"milestone_{place}", mark, "passes", least=1)
    milestones(reader, marks, gamma.value)


_AVERAGES = {"EMAHook": 0.0002, "MeanTeacherHook": 0.001}
"""Hooks that average weights -> their momentum where the file is silent."""


def _hooks(reader: Reader) -> None:
    values = reader.draft.values
    passes = values["batch"] // (values["micro"] * values["devices"])
    for index, hook in enumerate(reader.items("custom_hooks")):
        name = str(hook.get("type", "")).rsplit(".", 1)[-1] if isinstance(hook, dict) else ""
        if name in _AVERAGES:
            head = f"custom_hooks.{index}"
            moment = reader.number(f"{head}.momentum", default=_AVERAGES[name])
            if not 0 < moment.value < 1:
                continue
            words = "1 - momentum: mmengine's momentum is 1 - decay" + (", of each pass" if passes > 1 else "")
            reader.say("ema", moment, (1 - moment.value) ** passes, words=words,
                       back=lambda view: -math.expm1(math.log(view["ema"]) / view.accumulation))  # fmt: skip
            kind = str(hook.get("ema_type", "ExponentialMovingAverage"))
            if kind.endswith("ExpMomentumEMA"):
                gamma = reader.whole(f"{head}.gamma", default=2000)
                if gamma.value:
                    reader.span("ema_ramp", gamma, "passes", least=1)
                    reader.draft.average["ramp"] = {"by": "exp", "tau": reader.draft.spans["ema_ramp"]}
            begin = reader.whole(f"{head}.begin_iter", default=0)
            often = reader.whole(f"{head}.interval", default=1, low=1)
            if often.value > 1:
                reader.draft.average["every"] = often.value
                reader.note(f"the average is updated every {often.value} iterations, at any batch")
            epochs = reader.number(f"{head}.begin_epoch", default=0)
            if epochs.value:
                reader.draft.average["start"] = f"{epochs.value * reader.data_size():.17g} samples"
            if begin.value:
                reader.span("ema_start", begin, "passes", least=1)
                reader.draft.average["start"] = reader.draft.spans["ema_start"]
            reader.inert(head)
        else:
            reader.inert(f"custom_hooks.{index}")
            if isinstance(hook, dict) and any(word in str(hook) for word in ("iter", "interval")):
                reader.note(f"custom_hooks[{index}] ({hook.get('type')}) may count iterations; it is left as it is")
    reader.inert("custom_hooks")


FORMAT = Format(
    "mmengine",
    "mmengine (mmdetection, mmpretrain, mmsegmentation)",
    {
        "optim_wrapper": 4,
        "optim_wrapper.optimizer": 1,
        "param_scheduler": 2,
        "train_dataloader.batch_size": 1,
        "train_cfg": 1,
        "auto_scale_lr": 1,
        "_base_": 1,
    },
    read,
    "open-mmlab/mmengine@2543429 runner.py 928-990, averaged_model.py 154-208",
)
