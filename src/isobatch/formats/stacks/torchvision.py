"""torchvision's references: a batch per GPU, spans in epochs, an average whose decay the script scales by the batch."""

from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, has, milestones, optimizer, per_device_batch, share_of_peak

_INERT = (
    "label_smoothing mixup_alpha cutmix_alpha auto_augment random_erase train_crop_size val_crop_size val_resize_size "
    "ra_sampler ra_reps augmix_severity ra_magnitude amp sync_bn start_epoch model_ema print_freq lr_steps "
    "lr_step_size lr_gamma lr_scheduler lr_warmup_method lr_warmup_decay model_ema_steps aspect_ratio_group_factor "
    "rpn_score_thresh trainable_backbone_layers cache_dataset use_deterministic_algorithms"
)
_DETECTS = ("aspect_ratio_group_factor", "lr_steps", "trainable_backbone_layers", "data_augmentation")
_SEGMENTS = ("aux_loss",)
_DECAYS = {
    "norm_weight_decay": ("norm", "bn|norm"),
    "bias_weight_decay": ("bias", r"bias$"),
    "transformer_embedding_decay": ("embedding", "class_token|position_embedding|relative_position_bias_table"),
}
"""Flags of a decay of their own -> name of the group, and its parameters."""
WARM_UP = 1000
"""Iterations in which the detection reference warms up in its first epoch, from a thousandth."""


@dataclass(frozen=True)
class _Job:
    """What one of the references takes where its command is silent."""

    micro: int
    epochs: int
    lr: float
    schedule: str
    step: int = 30
    warm_by: str = "constant"


_CLASSIFIES = _Job(32, 90, 0.1, "steplr")
_DETECTION = _Job(2, 26, 0.02, "multisteplr", 8)
_SEGMENTATION = _Job(8, 30, 0.01, "poly", warm_by="linear")


def read(reader: Reader) -> None:
    """Read train.py's flags, on top of what the script takes where they are silent."""
    program = str(reader.source.extra.get("program", ""))
    detects = "detection" in program or reader.has(*_DETECTS)
    segments = not detects and ("segmentation" in program or reader.has(*_SEGMENTS))
    job = _DETECTION if detects else _SEGMENTATION if segments else _CLASSIFIES
    micro = reader.whole("batch_size", "b", default=job.micro, low=1)
    world = reader.find("world_size").value  # overwritten by the launcher's
    told = launched_devices(reader) or (world if isinstance(world, int) and world > 1 else None)
    per_device_batch(reader, micro, None, reader.devices(default=told))
    reader.data_size("its spans are in epochs")
    _optimizer(reader, job)
    epochs = reader.number("epochs", default=job.epochs, low=1)
    reader.span("length", epochs, "epochs")
    if detects:
        _detection(reader)
    warm = 0.0 if detects else _warm_up(reader, job)
    _schedule(reader, job, epochs, warm)
    _average(reader, epochs, warm)
    if not reader.flag("sync_bn").value:
        reader.note(
            "batch norm's momentum, and what it averages over, are the model's own; the plan does not move them"
        )
    reader.inert(_INERT)


def _optimizer(reader: Reader, job: _Job) -> None:
    draft = reader.draft
    word = reader.word("opt", default="sgd")
    text = str(word.value).lower()
    name = optimizer(reader, Found(word.key, "sgd", word.origin) if text.startswith("sgd") else word)
    reader.say("lr", reader.number("lr", default=job.lr))
    reader.say("weight_decay", reader.number("weight_decay", "wd", default=1e-4))
    moment = reader.number("momentum", default=0.9)
    if has(name, "momentum"):
        reader.say("momentum", moment)
        draft.values["nesterov"] = ("nesterov" in text and moment.value > 0) or None
    if name == "rmsprop":
        reader.fix("alpha", 0.9, "the script's RMSprop, which no flag sets")
        reader.fix("eps", 0.0316, "the script's RMSprop, which no flag sets")
    if has(name, "betas"):
        for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
            reader.fix(path, value, "torch's default, which the script leaves alone")
    clip(reader, reader.number("clip_grad_norm", default=None))
    for flag, (group, match) in _DECAYS.items():
        found = reader.number(flag, default=None)
        if found.value is not None:
            path = f"groups[{len(draft.groups)}].weight_decay"
            draft.groups.append({"name": group, "match": match, "weight_decay": float(found.value)})
            reader.link(path, found, lambda view, path=path: view[path])


def _warm_up(reader: Reader, job: _Job) -> float:
    """Enter the epochs of the warm-up, which the main schedule follows, and return them."""
    warm = reader.number("lr_warmup_epochs", default=0)
    if not warm.value:
        return 0.0
    method = str(reader.word("lr_warmup_method", default=job.warm_by).value).lower()
    if method not in ("linear", "constant"):
        raise InputError(f"lr_warmup_method={method!r} must be linear or constant; mend the file")
    factor = float(reader.number("lr_warmup_decay", default=0.01).value)
    reader.span("warmup", warm, "epochs")
    reader.draft.warmup_from = factor
    if method == "constant":
        reader.note(
            "the rate stays at lr_warmup_decay of its peak through the warm-up; it is drawn as a line from there"
        )
    return float(warm.value)


def _detection(reader: Reader) -> None:
    """Enter engine.py's warm-up of the first epoch, a constant of its code in iterations."""
    draft = reader.draft
    size, data = draft.values["batch"], draft.data_size or 1
    steps = max(min(WARM_UP, data // size - 1), 1)
    draft.spans["warmup"] = f"{steps} steps"
    draft.warmup_from = 1 / WARM_UP
    reader.fix("warmup", steps, "engine.py's warm-up in iterations", back=lambda view: view.steps("warmup"))


def _schedule(reader: Reader, job: _Job, epochs: Found, warm: float) -> None:
    draft = reader.draft
    size = float(draft.data_size or 1)
    kind = str(reader.word("lr_scheduler", default=job.schedule).value).lower()
    gamma = reader.number("lr_gamma", default=0.1)
    if job is _CLASSIFIES:
        draft.stair = size
    if kind == "steplr":
        every = reader.number("lr_step_size", default=job.step, low=1).value
        draft.rest = [
            {"span": f"{every} epochs", "by": "hold"},
            {"by": "step", "start": gamma.value, "every": f"{every} epochs", "gamma": gamma.value},
        ]
        if every >= epochs.value - warm:
            draft.rest = [{"by": "hold"}]
    elif kind == "multisteplr":
        held = reader.find("lr_steps", default=[16, 22]).value
        marks = [mark for mark in (held if isinstance(held, list) else [held]) if isinstance(mark, (int, float))]
        milestones(reader, [mark * size for mark in marks], gamma.value)
    elif kind == "cosineannealinglr":
        least = reader.number("lr_min", default=0.0)
        draft.rest = [{"by": "cosine", "to": share_of_peak(reader, "schedule.final", least) if least.value else 0.0}]
    elif kind == "exponentiallr":
        draft.rest = [{"by": "exp", "to": max(gamma.value ** (epochs.value - warm), 1e-12)}]
    elif kind in ("poly", "polynomiallr"):
        draft.rest = [{"by": "power", "p": 0.9, "to": 0.0}]
    else:
        reader.unread("lr_scheduler", f"{kind} is not known here; it is left as it is, in epochs")
        draft.rest = [{"by": "hold"}]


def _average(reader: Reader, epochs: Found, warm: float) -> None:
    """Enter the average, whose 1 - decay the script multiplies by GPUs x batch_size x steps / epochs."""
    if not reader.flag("model_ema").value:
        reader.inert("model_ema_decay", "model_ema_steps")
        return
    draft = reader.draft
    stated, every = (
        reader.number("model_ema_decay", default=0.99998),
        reader.whole("model_ema_steps", default=32, low=1),
    )
    times = draft.values["batch"] * every.value / epochs.value
    decay = 1 - (1 - stated.value) * times
    if not 0 < decay < 1:
        raise InputError(
            f"model_ema_decay={stated.value:g}: the script multiplies 1 - decay by GPUs x batch_size x model_ema_steps "
            f"/ epochs = {times:g}, which leaves a decay of {max(decay, 0):g}; mend the file"
        )
    words = "the script's own: (1 - decay) x GPUs x batch_size x model_ema_steps / epochs"
    share = every.value / epochs.value
    reader.say("ema", stated, decay, words=words, back=lambda view: 1 - (1 - view["ema"]) / (view.batch * share))
    draft.average["every"] = every.value
    reader.link("ema.every", every, lambda view, n=every.value: n, words="updates between averages, kept")
    if warm:
        draft.average["start"] = f"{warm:.15g} epochs"


FORMAT = Format(
    "torchvision",
    "torchvision references (train.py)",
    {
        "program:references/": 4,
        "program:train.py": 1,
        "lr_step_size": 2,
        "lr_gamma": 2,
        "lr_warmup_method": 3,
        "lr_warmup_epochs": 2,
        "lr_warmup_decay": 2,
        "model_ema_steps": 3,
        "norm_weight_decay": 2,
        "train_crop_size": 2,
        "val_resize_size": 1,
        "auto_augment": 1,
        "random_erase": 1,
        "ra_sampler": 2,
        "aspect_ratio_group_factor": 4,
        "lr_steps": 2,
        "aux_loss": 2,
        "clip_grad_norm": 1,
        "not:sched": 9,
        "not:lr_base": 9,
        "not:per_device_train_batch_size": 9,
    },
    read,
    "pytorch/vision references/{classification,detection,segmentation}/train.py (2026-11)",
    dashes=True,
)
