"""timm's train.py: `args.yaml` or its command line; a rate before or after scaling, epochs, one average."""

import math
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import (
    MOST_CYCLES,
    beside_muon,
    clip,
    has,
    milestones,
    optimizer,
    per_device_batch,
    share_of_peak,
    usual_betas,
    usual_eps,
)

_INERT = (
    "lr_cycle_mul lr_cycle_decay lr_cycle_limit lr_k_decay lr_base_scale lr_noise_pct lr_noise_std "
    "patience_epochs decay_rate warmup_prefix bn_eps model_ema_force_cpu mixup_off_epoch start_epoch "
    "validation_batch_size smoothing eval_metric log_interval recovery_interval opt_foreach amp_dtype "
    "decay_epochs decay_milestones lr_noise torchcompile drop_path crop_pct distributed local_rank "
    "lr_base_size grad_checkpointing world_size cooldown_epochs epoch_interval checkpoint_hist "
    "color_jitter reprob remode recount aug_repeats train_interpolation clip_mode opt_betas opt_eps momentum"
)
_OWN = (
    "sched", "lr_base", "lr_base_size", "warmup_lr", "opt_betas", "opt_eps", "opt_kwargs", "model_kwargs", "aa",
    "reprob", "remode", "cooldown_epochs", "decay_epochs", "grad_accum_steps", "data_dir", "amp", "torchcompile",
)  # fmt: skip
"""Flags by which a command of some train.py is known as one of timm's."""
_CYCLED = ("cosine", "tanh", "poly")
"""Schedules that have cycles, and whose run is as long as these take."""

_PROGRAMS = ("train.py", "distributed_train.sh")


def read(reader: Reader) -> None:
    """Read the arguments."""
    program = str(reader.source.extra.get("program", "")).rsplit("/", 1)[-1]
    if program and not (program.endswith(_PROGRAMS) and (program != "train.py" or reader.has(*_OWN))):
        known = "has no flag that is timm's alone" if program == "train.py" else "is not timm's train.py"
        why = (
            f"{program} {known}, and may have other defaults and scale the rate itself (DeiT's main.py "
            "multiplies lr by batch/512); where it trains as timm's does"
        )
        reader.ask("trainer", why, "timm", "--set trainer=timm")
    micro = reader.whole("batch_size", "b", default=128, low=1)
    passes = reader.whole("grad_accum_steps", default=1, low=1)
    world = reader.find("world_size").value
    told = launched_devices(reader) or (world if isinstance(world, int) and world > 1 else None)
    devices = reader.devices(default=told)
    per_device_batch(reader, micro, passes, devices)
    if isinstance(world, int) and world == devices:  # what timm writes into args.yaml, and what is read from there
        reader.link("devices", reader.find("world_size"), lambda view: view.devices, whole=True, least=1)
    reader.data_size("its spans are in epochs")
    _optimizer(reader)
    _schedule(reader)
    _average(reader)
    if reader.flag("naflex_loader").value:
        reader.unread("naflex_loader", "an update holds more images where they are smaller: its batch is that of the "
                      "longest sequences, and every count of samples with it")  # fmt: skip
    reader.unread("lr_noise", "noise on the rate, in a way of its own; it stays as it is")
    if reader.number("layer_decay", default=None).value:
        reader.note("layer_decay is a ratio of rates between layers, which no batch moves")
    reader.inert(_INERT)


def _argument(reader: Reader, name: str, flag: str) -> str:
    """Return where an argument of the optimizer stands: in --opt-kwargs, which go past the flags, or by its flag."""
    return f"opt_kwargs.{name}" if reader.has(f"opt_kwargs.{name}") else flag


def _optimizer(reader: Reader) -> None:
    draft = reader.draft
    word = reader.word("opt", default="sgd")
    text = str(word.value).lower().removeprefix("fused").removeprefix("bnb")
    name = optimizer(reader, word, fused="adam")
    _rate(reader, str(word.value).lower())
    reader.say("weight_decay", reader.number("weight_decay", default=2e-5))
    moment = reader.number("momentum", default=0.9)
    eps = reader.number(_argument(reader, "eps", "opt_eps"), default=None)
    if has(name, "momentum"):
        reader.say("momentum", moment)
        usual = text in ("sgd", "nesterov", "sgdw", "nlars")
        nesterov = reader.flag("opt_kwargs.nesterov", default=usual).value
        draft.values["nesterov"] = (nesterov and moment.value > 0) or None
    if has(name, "betas"):
        one, two = reader.pair(_argument(reader, "betas", "opt_betas"), default=usual_betas(name))
        reader.say("beta1", one)
        reader.say("beta2", two)
        silent = Found(eps.key, usual_eps(name), "default")
        reader.say("eps", eps if eps.value is not None else silent)
    if name == "muon":
        betas = reader.pair(_argument(reader, "betas", "opt_betas")) if reader.find("opt_betas").value else None
        beside_muon(reader, betas, eps)
    if name == "rmsprop":
        alpha = reader.number("opt_kwargs.alpha", default=None)
        if alpha.value is None:
            reader.fix("alpha", 0.9, "timm's RMSprop, which --opt-* cannot set without --opt-kwargs")
        else:
            reader.say("alpha", alpha)
        reader.say(
            "eps", eps if eps.value is not None else Found(eps.key, 1e-10 if text == "rmsproptf" else 1e-8, "default")
        )
        draft.values["eps_inside"] = text == "rmsproptf" or None
    _clipping(reader)


def _clipping(reader: Reader) -> None:
    draft = reader.draft
    norm = reader.number("clip_grad", default=None)
    clip(reader, norm)
    mode = str(reader.word("clip_mode", default="norm").value)
    if norm.value and mode == "value":
        draft.values["clip_by"] = "value"
    elif norm.value and mode == "agc":
        draft.values.pop("clip", None)
        reader.links[:] = [link for link in reader.links if link.path != "optimizer.clip"]
        reader.unread("clip_grad", "adaptive clipping goes by the norm of each weight, whatever the batch; it stays")


def _rate(reader: Reader, word: str) -> None:
    """Enter the learning rate: as it is, or timm's lr_base, whose scaling stays on."""
    draft, size = reader.draft, reader.draft.values["batch"]
    lr = reader.number("lr", default=None)
    base = reader.number("lr_base", default=0.1)
    reference = reader.number("lr_base_size", default=256, low=1)
    scale = str(reader.word("lr_base_scale", default="").value or "")
    if lr.value is not None:
        reader.say("lr", lr)
        if base.said and reader.source.kind != "yaml":  # args.yaml writes every default out
            reader.doubt("lr and lr_base are both given: lr is taken as it is, and the scaling of lr_base does not act")
        return
    scale = scale or ("sqrt" if any(part in word for part in ("ada", "lamb")) else "linear")
    power = 0.5 if scale == "sqrt" else 1.0
    how = f"lr_base * (batch/{reference.value:g})" + ("**0.5" if power < 1 else "")
    reader.say("lr", base, base.value * (size / reference.value) ** power, words=how,
               back=lambda view: view["lr"] / (view.batch / reference.value) ** power)  # fmt: skip
    reader.reference = reference.value
    reader.rule(scale, "lr_base", how, reference.value)
    if not draft.values["lr"]:
        reader.ask("lr", "lr_base is 0", 0.1)


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    epochs, warm = reader.number("epochs", default=300), reader.number("warmup_epochs", default=5)
    kind = str(reader.word("sched", default="cosine").value).lower()
    prefix = reader.flag("warmup_prefix").value
    cycles = _cycles(reader, kind, epochs.value)
    whole, cooled = sum(length for length, _ in cycles), reader.number("cooldown_epochs", default=0).value
    more = (warm.value if prefix else 0) + (cooled if kind in _CYCLED else 0)
    draft.spans["length"] = f"{whole + more:.15g} epochs"
    reader.link("length", epochs, _epochs_of(reader, whole / epochs.value if epochs.value else 1.0, more),
                words="" if whole == epochs.value else f"{len(cycles)} cycles")  # fmt: skip
    if warm.value:
        reader.span("warmup", warm, "epochs")
        start = reader.number("warmup_lr", default=1e-5)
        draft.warmup_from = share_of_peak(reader, "curves.lr", start)
    least = reader.number("min_lr", default=0)
    end = share_of_peak(reader, "schedule.final", least) if least.value else 0.0
    if not reader.flag("sched_on_updates").value:
        draft.stair = float(draft.data_size or 1)
    if kind in _CYCLED:
        _falls(reader, kind, cycles, 0.0 if prefix else warm.value, end, cooled)
        if warm.value and not prefix:
            reader.note("timm's curve counts from epoch 0 and is only overlaid by the warm-up; drawn from its end here")
    elif kind == "step":
        every, rate = reader.number("decay_epochs", default=90, low=1e-9), reader.number("decay_rate", default=0.1)
        _every(reader, every.value, rate.value, 0.0 if prefix else warm.value)
    elif kind == "multistep":
        rate = reader.number("decay_rate", default=0.1)
        held = reader.find("decay_milestones", default=[90, 180, 270]).value
        marks = [m for m in (held if isinstance(held, list) else [held]) if isinstance(m, (int, float))]
        milestones(reader, [(m + more) * (draft.data_size or 1) for m in marks], rate.value)
    elif kind == "wsd":
        _stable(reader, epochs.value - (0 if prefix else warm.value), end)
    elif kind in ("none", "constant"):
        draft.rest = [{"by": "hold"}]
    else:
        reader.unread("sched", f"{kind} has a course of its own; it stays as it is, in epochs")
        draft.rest = [{"by": "hold"}]


def _epochs_of(reader: Reader, times: float, more: float) -> Any:
    """Return what gives --epochs for a run that is longer by cycles, a warm-up before them and a cooldown."""
    return lambda view: (view.samples("length") / (reader.draft.data_size or 1) - more) / times


def _cycles(reader: Reader, kind: str, first: float) -> list[tuple[float, float]]:
    """Return the epochs of each cycle, and the share of the peak that it begins at."""
    count = reader.whole("lr_cycle_limit", default=1, low=1).value if kind in _CYCLED else 1
    if count > MOST_CYCLES:
        raise InputError(f"lr_cycle_limit={count} must be at most {MOST_CYCLES}; mend the file")
    longer = reader.number("lr_cycle_mul", default=1.0).value
    lower = reader.number("lr_cycle_decay", default=0.5).value
    if count > 1 and longer != 1:
        total = math.floor(first * (longer**count - 1) / (longer - 1) + 1e-9)  # timm ends on a whole epoch
        lengths = [first * longer**index for index in range(count - 1)]
        lengths.append(total - sum(lengths))
    else:
        lengths = [first] * count
    return [(length, lower**index) for index, length in enumerate(lengths)]


def _falls(
    reader: Reader, kind: str, cycles: list[tuple[float, float]], covered: float, end: float, cooled: float
) -> None:
    """Enter cycles that each fall from their own peak to the least rate; the warm-up covers the head of the first."""
    draft = reader.draft
    bent = reader.number("lr_k_decay", default=1.0).value
    if bent != 1:
        reader.unread("lr_k_decay", "it bends the curve, in shares of the run, which stay; drawn without it")
    how: dict[str, Any] = {"by": "cosine"}
    if kind == "poly":
        how = {"by": "power", "p": reader.number("decay_rate", default=0.1, low=1e-9).value}
    elif kind == "tanh":
        reader.unread("sched", "tanh falls by a course of its own, in epochs, which stay; drawn as a cosine")
    for index, (length, peak) in enumerate(cycles):
        left = max(length - (covered if index == 0 else 0), 0)
        draft.spans[f"fall_{index}"] = f"{left * (draft.data_size or 1):.17g} samples"
        start = {"start": peak} if index else {}
        draft.rest.append({"span": f"fall_{index}", **how, **start, "to": min(end, peak)})
    if cooled:
        draft.rest.append({"by": "hold"})
    else:
        draft.rest[-1].pop("span")


def _stable(reader: Reader, length: float, end: float) -> None:
    """Enter a flat stretch and a decay, whose epochs may be a share of both; a cooldown does not act here."""
    draft = reader.draft
    falls = reader.number("decay_epochs", default=0.2).value
    decay = round(falls * length if 0 < falls < 1 else falls)
    word = str(reader.word("lr_decay_fn", default="1-sqrt").value)
    by = {"1-sqrt": "minus-sqrt", "linear": "linear", "cosine": "cosine"}.get(word)
    if by is None:
        reader.unread("lr_decay_fn", f"{word} has a course of its own, in epochs, which stay; drawn as a line")
    if not 0 < decay <= length:
        raise InputError(f"sched = wsd needs 0 < decay_epochs <= {length:g}; got {falls:g}, mend the file")
    draft.spans["stable"] = f"{(length - decay) * (draft.data_size or 1):.17g} samples"
    draft.rest = [{"span": "stable", "by": "hold"}, {"by": by or "linear", "to": end}]


def _every(reader: Reader, every: float, rate: float, warm: float) -> None:
    """Enter steps that are counted from epoch 0, or from the end of a warm-up that stands before them."""
    done = math.floor(warm / every + 1e-9)
    after = (done + 1) * every - warm
    reader.draft.rest = [
        {"span": f"{after:.12g} epochs", "by": "step", "to": rate**done},
        {"by": "step", "start": rate ** (done + 1), "every": f"{every:.12g} epochs", "gamma": rate},
    ]


def _average(reader: Reader) -> None:
    if reader.flag("model_ema").value:
        reader.say("ema", reader.number("model_ema_decay", default=0.9998))
        if reader.flag("model_ema_warmup").value:
            reader.draft.average["ramp"] = {"by": "power", "inv_gamma": 1.0, "power": 2 / 3}
            reader.note(
                "model_ema_warmup ramps by update with a scale that no flag sets; the nearest that a file can say"
            )
    else:
        reader.inert("model_ema_decay", "model_ema_warmup")
    moment = reader.number("bn_momentum", default=None)
    if moment.value is not None:
        reader.say("batch_norm", moment)
        reader.draft.values["synchronised"] = reader.flag("sync_bn").value
    else:
        reader.note(
            "batch norm's momentum is the model's own where --bn-momentum is not given; the plan does not move it"
        )
        reader.inert("sync_bn")


FORMAT = Format(
    "timm",
    "timm train.py",
    {
        "lr_base": 2,
        "lr_base_size": 1,
        "sched": 2,
        "warmup_lr": 1,
        "opt": 2,
        "model_ema": 1,
        "model_ema_decay": 1,
        "drop_path": 1,
        "grad_accum_steps": 1,
        "cooldown_epochs": 1,
        "program:train.py": 1,
        "program:distributed_train.sh": 3,
        "not:lr_warmup_epochs": 5,
        "not:lr_step_size": 5,
        "not:model_ema_steps": 5,
        "not:blr": 5,
        "not:accum_iter": 5,
    },
    read,
    "huggingface/pytorch-image-models@aa4b585 train.py (2026-08-08)",
    dashes=True,
)
