"""DINO, DINOv2 and DINOv3: rates before scaling, cosines of everything, epochs that are iterations (v2, v3)."""

from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices, on_nodes
from isobatch.formats.stacks.words import clip, optimizer, per_device_batch, share_of_decay, share_of_peak

_INERT = (
    "saveckp_freq warmup_teacher_temp teacher_temp drop_path_rate student_temp optim.multi_tensor_optim "
    "teacher.warmup_teacher_temp teacher.teacher_temp teacher.warmup_teacher_temp_epochs crops student "
    "dino ibot MODEL compute_precision gram.loss_weight_schedule warmup_teacher_temp_epochs "
    "gram.ema_teacher train.centering train.use_teacher_head optim.freeze_last_layer_epochs "
    "freeze_last_layer optim.epochs optim.dino_head_wd_multiplier optim.patch_embed_lr_mult "
    "optim.layerwise_decay train.saveckp_freq evaluation.low_freq_every train.checkpointing "
    "teacher.in_chans train.learn_from_teacher_tokens optim.dump_fsdp_weights_path patch_out "
    "norm_last_layer momentum_loss_scale use_bn_in_head optimizer fp16 use_fp16 optim.optimizer "
    "use_teacher_head multidistillation distillation hrft"
)


CENTRE = 0.9
"""What the centre of the teacher's outputs keeps of itself in one step."""


def _teacher(reader: Reader, start: Found, end: Found) -> None:
    """Enter the teacher's momentum: constant, or a half-cosine to its final value."""
    reader.say("ema", start)
    if end.value != start.value:
        if end.value < start.value:
            reader.unread(end.name, "a momentum that falls is not a teacher's; it is left as it is")
            return
        reader.say("ema_final", end)
    elif end.said:
        reader.link("ema", end, lambda view: view["ema"])


def _centre(reader: Reader, where: str) -> None:
    """Enter the running mean of the teacher's outputs, an average over steps like the teacher itself."""
    reader.fix("centre", CENTRE, where, back=lambda view: view.average(CENTRE))


def _decay(reader: Reader, start: Found, end: Found) -> None:
    reader.say("weight_decay", start)
    if end.value != start.value:
        part = share_of_decay(reader, end)
        if start.value:
            reader.draft.curves["weight_decay"] = [{"by": "cosine", "to": part}]
    elif end.said:
        reader.link("weight_decay", end, lambda view: view["weight_decay"])


def read_v1(reader: Reader) -> None:
    """Read main_dino.py's arguments."""
    draft = reader.draft
    micro = reader.whole("batch_size_per_gpu", default=64, low=1)
    told = launched_devices(reader)
    if "run_with_submitit" in reader.source.extra.get("program", ""):
        nodes, each = reader.whole("nodes", default=2, low=1), reader.whole("ngpus", default=8, low=1)
        told = nodes.value * each.value
        if reader.answers.get("devices", told) == told:
            on_nodes(reader, each, nodes)
    per_device_batch(reader, micro, None, reader.devices(default=told))
    size = draft.values["batch"]
    reader.data_size("its epochs are passes over the data")
    name = optimizer(reader, reader.word("optimizer", default="adamw"))
    lr = reader.number("lr", default=0.0005)
    reader.say("lr", lr, lr.value * size / 256, words="lr * batch/256", back=lambda view: view["lr"] * 256 / view.batch)
    reader.rule("linear", "main_dino.py (always)", "lr * batch/256", 256)
    reader.reference = 1024
    if name == "adamw":
        for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
            reader.fix(path, value, "torch's AdamW, which main_dino.py leaves at its default")
    else:
        reader.fix("momentum", 0.9, "main_dino.py's SGD and LARS")
    start = reader.number("weight_decay", default=0.04)
    _decay(reader, start, reader.number("weight_decay_end", default=0.4))
    clip(reader, reader.number("clip_grad", default=3.0))
    if draft.values.get("clip"):
        draft.values["clip_by"] = "module"
    reader.span("length", reader.number("epochs", default=100), "epochs")
    reader.span("warmup", reader.number("warmup_epochs", default=10), "epochs")
    least = reader.number("min_lr", default=1e-6)
    draft.rest = [{"by": "cosine", "to": share_of_peak(reader, "schedule.final", least)}]
    teacher = reader.number("momentum_teacher", default=0.996)
    _teacher(reader, teacher, Found(("momentum_teacher_end",), 1.0, "default"))
    _centre(reader, "DINOLoss(center_momentum=0.9) in main_dino.py")
    frozen = reader.number("freeze_last_layer", default=1)
    if frozen.value:
        reader.span("freeze", frozen, "epochs")
        draft.kept.append("freeze")
    heat = reader.number("warmup_teacher_temp_epochs", default=0)
    if heat.value:
        reader.span("teacher_temperature", heat, "epochs")
        draft.kept.append("teacher_temperature")
    reader.note("the teacher's momentum rises to 1 by a half-cosine in main_dino.py")
    reader.inert(_INERT)


def _iteration_epochs(reader: Reader) -> int:
    """Enter the length of an "epoch", which is a number of iterations; it alone carries the batch."""
    found = reader.whole("train.OFFICIAL_EPOCH_LENGTH", default=1250, low=1)
    reader.span("epoch", found, "steps", least=1)
    reader.note('one "epoch" is OFFICIAL_EPOCH_LENGTH iterations: it moves with the batch, every count of epochs stays')
    return found.value


def _epochs(reader: Reader, name: str, found: Found, length: int) -> None:
    """Enter a span in such epochs."""
    reader.draft.spans[name] = f"{found.value * length:.15g} steps"
    reader.link(name, found, lambda view: view.samples(name) / view.samples("epoch"), words=f"{length} iterations each")


def _v2_frame(reader: Reader) -> int:
    micro = reader.whole("train.batch_size_per_gpu", default=64, low=1)
    per_device_batch(reader, micro, None, reader.devices(default=launched_devices(reader)))
    length = _iteration_epochs(reader)
    optimizer(reader, reader.word("optim.optimizer", default="adamw"))
    for path, key, usual in (("beta1", "optim.adamw_beta1", 0.9), ("beta2", "optim.adamw_beta2", 0.999)):
        reader.say(path, reader.number(key, default=usual))
    reader.fix("eps", 1e-8, "torch's AdamW, which the trainer leaves at its default")
    _epochs(reader, "length", reader.number("optim.epochs", default=100), length)
    for name, key in (("evaluation", "evaluation.eval_period_iterations"), ("checkpoints", "checkpointing.period")):
        found = reader.whole(key, default=None)
        if found.value:
            reader.span(name, found, "steps", least=1)
    if reader.number("gram.update_frequency", default=None).value and reader.find("gram.use_loss").value:
        for name, key in (("gram_update", "gram.update_frequency"), ("gram_first", "gram.it_first_update")):
            found = reader.whole(key, default=None)
            if found.value:
                reader.span(name, found, "steps", least=1)
    else:
        reader.inert("gram")
    return length


def _layers(reader: Reader) -> None:
    """Ratios of rates between layers stay as they are; they are named, for they act."""
    for key, usual in (("optim.layerwise_decay", 0.9), ("optim.patch_embed_lr_mult", 0.2)):
        found = reader.number(key, default=usual)
        if found.value != 1 and key.endswith("mult"):
            reader.draft.groups.append({"name": "patch-embed", "match": "patch_embed", "lr_scale": float(found.value)})
        elif found.value != 1:
            reader.note(f"{key} = {found.value:g} is a ratio of rates between layers, which no batch moves")


def _scaled(reader: Reader, base: Found, factor: float, rule: str) -> None:
    """Enter a rate that the trainer scales by its own rule."""
    draft = reader.draft
    size = draft.values["batch"]
    scales: dict[str, tuple[str, float, float]] = {
        "sqrt_wrt_1024": ("sqrt", 1024, 0.5),
        "linear_wrt_256": ("linear", 256, 1.0),
        "linear_wrt_1024": ("linear", 1024, 1.0),
    }
    if rule in ("none", "null", ""):
        reader.say("lr", base)
        return
    if rule not in scales:
        rule = str(reader.ask("optim.scaling_rule", f"scaling_rule = {rule} is not known", "sqrt_wrt_1024"))
    word, reference, power = scales.get(rule, ("sqrt", 1024, 0.5))
    times = factor if word == "sqrt" else 1.0
    how = f"{base.key[-1]} * {f'{times:g} * ' if times != 1 else ''}(batch/{reference:g})" + (
        "**0.5" if power < 1 else ""
    )
    reader.say("lr", base, base.value * times * (size / reference) ** power, words=how,
               back=lambda view: view["lr"] / times / (view.batch / reference) ** power)  # fmt: skip
    reader.rule(word, "optim.scaling_rule", how, reference)
    reader.reference = reference


def read_v2(reader: Reader) -> None:
    """Read a DINOv2 config, on top of ssl_default_config.yaml."""
    draft, length = reader.draft, _v2_frame(reader)
    base = reader.number("optim.base_lr", default=0.004)
    _scaled(reader, base, 1.0, str(reader.word("optim.scaling_rule", default="sqrt_wrt_1024").value))
    if reader.number("optim.lr", default=0.0).value:
        reader.doubt("optim.lr is given beside base_lr; the trainer overwrites it with base_lr times its scaling")
    start = reader.number("optim.weight_decay", default=0.04)
    _decay(reader, start, reader.number("optim.weight_decay_end", default=0.2))
    clip(reader, reader.number("optim.clip_grad", default=3.0))
    if draft.values.get("clip"):
        draft.values["clip_by"] = "module"
    _epochs(reader, "warmup", reader.number("optim.warmup_epochs", default=10), length)
    least = reader.number("optim.min_lr", default=1e-6)
    draft.rest = [{"by": "cosine", "to": share_of_peak(reader, "schedule.final", least)}]
    teacher = reader.number("teacher.momentum_teacher", default=0.992)
    _teacher(reader, teacher, reader.number("teacher.final_momentum_teacher", default=1.0))
    if str(reader.word("train.centering", default="centering").value) == "centering":
        _centre(reader, "center_momentum = 0.9 of DINOLoss and iBOTPatchLoss, which no key sets")
    _frozen(reader, "optim.freeze_last_layer_epochs", length)
    heat = reader.number("teacher.warmup_teacher_temp_epochs", default=30)
    if heat.value:
        _epochs(reader, "teacher_temperature", heat, length)
        draft.kept.append("teacher_temperature")
    _layers(reader)
    reader.inert(_INERT)


def _frozen(reader: Reader, key: str, length: int) -> None:
    frozen = reader.number(key, default=1)
    if frozen.value:
        _epochs(reader, "freeze", frozen, length)
        reader.draft.kept.append("freeze")


def read_v3(reader: Reader) -> None:
    """Read a DINOv3 config: `optim` (v1) or `schedules` (v2)."""
    if reader.table("schedules"):
        _read_schedules(reader)
        return
    draft, length = reader.draft, _v2_frame(reader)
    lr = reader.number("optim.lr", default=0.001)
    _scaled(reader, lr, 4.0, str(reader.word("optim.scaling_rule", default="sqrt_wrt_1024").value))
    start = reader.number("optim.weight_decay", default=0.04)
    _decay(reader, start, reader.number("optim.weight_decay_end", default=0.4))
    clip(reader, reader.number("optim.clip_grad", default=3.0))
    _epochs(reader, "warmup", reader.number("optim.warmup_epochs", default=10), length)
    least = reader.number("optim.min_lr", default=1e-6)
    draft.rest = [{"by": "cosine", "to": share_of_peak(reader, "schedule.final", least)}]
    extra = reader.number("optim.schedule_trunc_extra", default=0.0)
    if extra.value:
        reader.unread("optim.schedule_trunc_extra", "the schedules are cut before their end; a share, which stays")
    teacher = reader.number("teacher.momentum_teacher", default=0.992)
    _teacher(reader, teacher, reader.number("teacher.final_momentum_teacher", default=1.0))
    _frozen(reader, "optim.freeze_last_layer_epochs", length)
    _layers(reader)
    reader.inert(_INERT, "teacher.warmup_teacher_temp_epochs")


def _read_schedules(reader: Reader) -> None:
    draft, length = reader.draft, _v2_frame(reader)
    peak = reader.number("schedules.lr.peak", ask="the peak of the learning rate")
    rule = str(reader.word("optim.scaling_rule", default="sqrt_wrt_1024").value)
    _scaled(reader, peak, 4.0, rule)
    scale = draft.values["lr"] / peak.value if peak.value else 1.0
    end = reader.number("schedules.lr.end", default=0.0)
    share = end.value / peak.value if peak.value else 0.0
    if end.value:
        back = _unscaled(share, draft.values["batch"], peak.value, draft.values["lr"], rule)
        reader.link("schedule.final", end, back,
                    words="share of the peak kept; the trainer scales both")  # fmt: skip
    start = reader.number("schedules.lr.start", default=0.0)
    if start.value:
        draft.warmup_from = start.value / (peak.value * scale)
        reader.link(
            "curves.lr", start, lambda view: view["lr"] * draft.warmup_from, words="share kept; start is not scaled"
        )
    warm = reader.number("schedules.lr.warmup_epochs", default=0)
    if warm.value:
        _epochs(reader, "warmup", warm, length)
    rest: list[dict[str, Any]] = [{"by": "hold"}] if share == 1 else [{"by": "cosine", "to": share}]
    falls = reader.number("schedules.lr.cosine_epochs", default=None)
    if falls.value and share != 1:
        _epochs(reader, "fall", falls, length)
        rest = [{"span": "fall", "by": "cosine", "to": share}, {"by": "hold"}]
    draft.rest = rest
    _three(reader, "weight_decay", length)
    _three(reader, "momentum", length)
    _frozen(reader, "schedules.lr.freeze_last_layer_epochs", length)
    heat = reader.number("schedules.teacher_temp.warmup_epochs", default=0)
    if heat.value:
        _epochs(reader, "teacher_temperature", heat, length)
        draft.kept.append("teacher_temperature")
    clip(reader, reader.number("optim.clip_grad", default=3.0))
    _layers(reader)
    reader.inert(_INERT, "schedules.teacher_temp", "optim", "teacher")


def _unscaled(share: float, batch: int, peak: float, rate: float, rule: str) -> Any:
    """Return what gives the end of a schedule that the trainer scales together with its peak."""
    power = 0.0 if rule in ("none", "null", "") else 0.5 if rule.startswith("sqrt") else 1.0

    def back(view: Any) -> float:
        return view["lr"] * share / (rate / peak) / (view.batch / batch) ** power

    return back


def _three(reader: Reader, name: str, length: int) -> None:
    """Enter `schedules.NAME`: start, peak, end, warm-up."""
    head = f"schedules.{name}"
    start, peak, end = (reader.number(f"{head}.{part}", default=None) for part in ("start", "peak", "end"))
    if peak.value is None:
        why = "its schedule is missing"
        value = reader.ask(name, why, 0.04 if name == "weight_decay" else 0.994)
        peak = start = end = Found(peak.key, value, "asked")
    first = start if start.value is not None else peak
    last = end if end.value is not None else peak
    warm = reader.number(f"{head}.warmup_epochs", default=0)
    if warm.value and first.value != peak.value:
        reader.unread(f"{head}.warmup_epochs", "a warm-up of its own, in epochs that stay")
    if name == "weight_decay":
        _decay(reader, peak, last)
        if first is not peak and start.said:
            share_of_decay(reader, first)
    else:
        _teacher(reader, peak, last)
        if first is not peak and start.said:
            reader.link("ema", first, lambda view: view.average(first.value) if 0 < first.value < 1 else first.value)
    if warm.value:
        _epochs(reader, f"{name}_warmup", warm, length)


V1 = Format(
    "dino",
    "DINO (main_dino.py)",
    {
        "batch_size_per_gpu": 2,
        "momentum_teacher": 3,
        "program:main_dino.py": 5,
        "program:run_with_submitit.py": 1,
        "weight_decay_end": 1,
        "warmup_teacher_temp_epochs": 1,
        "freeze_last_layer": 1,
    },
    read_v1,
    "facebookresearch/dino@7c446df main_dino.py 61-104, 239",
)
V2 = Format(
    "dinov2",
    "DINOv2",
    {
        "optim.base_lr": 4,
        "train.batch_size_per_gpu": 2,
        "train.OFFICIAL_EPOCH_LENGTH": 2,
        "teacher.momentum_teacher": 1,
        "teacher.final_momentum_teacher": 1,
        "optim.layerwise_decay": 1,
        "crops": 1,
        "not:schedules": 5,
        "not:optim.lr": 2,
        "not:optim.schedule_trunc_extra": 3,
        "not:compute_precision.param_dtype": 2,
    },
    read_v2,
    "facebookresearch/dinov2@b8931f7 ssl_default_config.yaml, utils/config.py",
)
V3 = Format(
    "dinov3",
    "DINOv3",
    {
        "schedules.lr.peak": 5,
        "optim.schedule_trunc_extra": 3,
        "train.batch_size_per_gpu": 2,
        "train.OFFICIAL_EPOCH_LENGTH": 2,
        "gram": 1,
        "optim.lr": 1,
        "optim.dump_fsdp_weights_path": 1,
        "not:optim.base_lr": 5,
    },
    read_v3,
    "facebookresearch/dinov3@6876159 configs/config.py 40-54, train/train.py 155-189 (2026-07-15)",
)
