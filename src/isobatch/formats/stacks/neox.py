"""GPT-NeoX and DeepSpeed: batches per GPU, an optimizer with params, a warm-up that is a share."""

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.words import clip, moments, optimizer, per_device_batch, periods

_FILLED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_INERT = (
    "extra_save_iters log_interval eval_iters layernorm_epsilon rms_norm_epsilon steps_per_print fp16 bf16 "
    "zero_optimization checkpoint_factor hysteresis optimizer.params.adam_w_mode "
    "optimizer.params.torch_adam scaled_masked_softmax_fusion zero_allow_untested_optimizer num_epochs "
    "attention_config lr_decay_style scheduler.params.warmup_type scheduler.type "
    "optimizer.params.bias_correction wall_clock_breakdown"
)


def _batch(reader: Reader) -> None:
    if [reader.find(key).value for key in _FILLED].count("auto") == len(_FILLED):
        raise InputError(
            'every batch here is "auto": the Hugging Face Trainer fills them in from its own arguments; plan that '
            "file, and leave this one as it is"
        )
    micro = reader.whole("train_micro_batch_size_per_gpu", default=None, low=1)
    if micro.value is None:
        _whole_batch(reader)
        return
    passes = reader.whole("gradient_accumulation_steps", "gas", default=1, low=1)
    filled = reader.find("train_batch_size")  # "auto" beside the two others is their product
    if filled.value == "auto" and "train_batch_size" not in reader.answers:
        total = Found(filled.key, None)
    else:
        total = reader.whole("train_batch_size", default=None, low=1)
    told = None
    if total.value and total.value % (int(micro.value) * passes.value) == 0:
        told = total.value // (int(micro.value) * passes.value)
    if total.value and not passes.said:
        _filled(reader, micro, total, told)
        return
    devices = reader.devices(default=told)
    if total.value and total.value != int(micro.value) * passes.value * devices:
        raise InputError(
            f"{total.name}={total.value} is not {micro.name}={micro.value} x {passes.name}={passes.value} x {devices} "
            "devices, which DeepSpeed refuses as well; mend one of them, or --devices"
        )
    per_device_batch(reader, micro, passes, devices)
    if total.value:
        reader.link("batch", total, lambda view: view.batch, whole=True, least=1)
        reader.note("train_batch_size, micro-batch and accumulation must multiply with the GPUs; all three are written")


def _filled(reader: Reader, micro: Found, total: Found, told: int | None) -> None:
    """Enter the batches of all GPUs and of one, between which DeepSpeed fills in the passes, whatever the GPUs."""
    devices = reader.devices(assume=told)
    if total.value % (int(micro.value) * devices):
        raise InputError(
            f"{total.name}={total.value} is no multiple of {micro.name}={micro.value} x {devices} devices; mend one of "
            "them, or --devices"
        )
    reader.keeps_batch, reader.per_device = True, False
    reader.draft.values |= {"batch": int(total.value), "devices": devices, "micro": int(micro.value)}
    reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    reader.link("batch", total, lambda view: view.batch, whole=True, least=1)
    reader.note("DeepSpeed accumulates what train_batch_size leaves over: on other GPUs the batch stays")


def _whole_batch(reader: Reader) -> None:
    """Enter a batch that is given for all GPUs alone, in one pass unless the file says more."""
    total = reader.whole("train_batch_size", ask="neither samples per GPU nor those of all GPUs are given", low=1)
    passes = reader.whole("gradient_accumulation_steps", "gas", default=1, low=1)
    devices = reader.devices("train_batch_size is that of all GPUs together")
    if total.value % (devices * passes.value):
        raise InputError(
            f"train_batch_size = {total.value} does not lie evenly on {devices} GPUs x {passes.value} passes"
        )
    share = int(total.value) // (devices * passes.value)
    reader.keeps_batch, reader.per_device = passes.said, False
    reader.draft.values |= {"batch": int(total.value), "devices": devices, "micro": share}
    reader.link("batch", total, lambda view: view.batch, whole=True, least=1)
    if passes.said:
        reader.link("accumulation", passes, lambda view: view.accumulation, whole=True, least=1)
    else:
        reader.accumulates = False


def _optimizer(reader: Reader) -> None:
    word = reader.word("optimizer.type", default="Adam")
    plain_l2 = reader.find("optimizer.params.adam_w_mode").value is False
    name = optimizer(reader, word, adam="adam" if plain_l2 else "adamw")
    reader.say("lr", reader.number("optimizer.params.lr", ask="the learning rate"))
    decay = reader.number("weight_decay", default=None)
    inner = reader.number("optimizer.params.weight_decay", default=None)
    if decay.value is not None and inner.value is not None and decay.value != inner.value:
        reader.unread("optimizer.params.weight_decay", "another one stands at the top of the file, which wins")
    elif decay.value is None:
        decay = inner if inner.value is not None else Found(("weight_decay",), 0.1 if _neox(reader) else 0.0, "default")
    reader.say("weight_decay", decay)
    moments(reader, name, "optimizer.params")
    clip(reader, reader.number("gradient_clipping", default=1.0 if _neox(reader) else None))


def _neox(reader: Reader) -> bool:
    return reader.has("train_iters", "num_layers", "pipe_parallel_size", "lr_decay_iters")


def read_neox(reader: Reader) -> None:
    """Read a GPT-NeoX config."""
    draft = reader.draft
    _batch(reader)
    _optimizer(reader)
    sequence = reader.whole("seq_length", default=None, low=1)
    if sequence.value:
        draft.batch["sequence"] = sequence.value
    reader.span("length", reader.whole("train_iters", ask="iterations of the run", low=1), "steps", least=1)
    falls = reader.whole("lr_decay_iters", default=None, low=1)
    if falls.value:
        reader.span("falls", falls, "steps", least=1)
    else:
        draft.spans["falls"] = draft.spans["length"]
    warm = reader.number("warmup", default=0.01)
    draft.spans["warmup"] = f"{warm.value * draft.samples('falls'):.17g} samples"
    reader.link("warmup", warm, lambda view: view.samples("warmup") / view.samples("falls"), words="share of the decay")
    least = reader.number("min_lr", default=0.0)
    part = least.value / draft.values["lr"]
    if least.value:
        reader.link("schedule.final", least, lambda view: view["lr"] * part, words="share of the peak kept")
    style = str(reader.word("lr_decay_style", default="linear").value)
    left = draft.samples("falls") - draft.samples("warmup")
    draft.spans["fall"] = f"{left:.17g} samples"
    by = {"constant": "hold", "linear": "linear", "cosine": "cosine", "exponential": "exp"}.get(style)
    if by is None:
        by = str(reader.ask("lr_decay_style", f"lr-decay-style = {style} is not known", "cosine"))
    whole = draft.samples("falls") == draft.samples("length")
    segment = {"by": by} if by == "hold" else {"by": by, "to": part}
    draft.rest = [segment] if whole or by == "hold" else [{"span": "fall", **segment}, {"by": "hold"}]
    for name, key in (("evaluation", "eval_interval"), ("checkpoints", "checkpoint_factor")):
        found = reader.whole(key, default=None)
        if found.value and (key != "checkpoint_factor" or reader.find("checkpoint_scale").value in (None, "linear")):
            reader.span(name, found, "steps", least=1)
    periods(reader, {"save_interval": "saving"})
    reader.inert(_INERT)


def read_deepspeed(reader: Reader) -> None:
    """Read a DeepSpeed config; rates may stand in its scheduler."""
    draft = reader.draft
    _batch(reader)
    if not reader.has("optimizer.params.lr") and reader.has("scheduler.params.warmup_max_lr"):
        peak = reader.number("scheduler.params.warmup_max_lr")
        reader.source.tree.setdefault("optimizer", {})
        optimizer(reader, reader.word("optimizer.type", default="AdamW"), adam="adamw")
        reader.say("lr", peak)
    else:
        _optimizer(reader)
        peak = reader.number("scheduler.params.warmup_max_lr", default=None)
        if peak.value:
            reader.link("lr", peak, lambda view: view["lr"])
    warm = reader.number("scheduler.params.warmup_num_steps", default=None)
    total = reader.number("scheduler.params.total_num_steps", default=None)
    kind = str(reader.word("scheduler.type", default="").value or "")
    if warm.value or total.value or kind:
        if not total.value:
            total = reader.number("total_num_steps", ask="the steps of the run, which DeepSpeed's config does not hold")
            draft.spans["length"] = f"{total.value:.15g} steps"
        else:
            reader.span("length", total, "steps", least=1)
        if warm.value:
            reader.span("warmup", warm, "steps", least=1)
        low = reader.number("scheduler.params.warmup_min_lr", default=0.0)
        draft.warmup_from = low.value / draft.values["lr"] or reader.number("scheduler.params.warmup_min_ratio",
                                                                            default=0.0).value  # fmt: skip
        if low.value:
            at = draft.warmup_from
            reader.link("curves.lr", low, lambda view: view["lr"] * at, words="share of the peak kept")
        if reader.has("scheduler.params.warmup_type") is False and "Warmup" in kind:
            reader.note("DeepSpeed warms up by a logarithm unless warmup_type is linear; the plan draws it as a line")
        by = {"WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}.get(kind, "hold")
        ratio = reader.number("scheduler.params.cos_min_ratio", default=0.0)
        draft.rest = [{"by": "hold"}] if by == "hold" else [{"by": by, "to": ratio.value}]
        if kind in ("OneCycle", "LRRangeTest"):
            reader.unread("scheduler.params", f"{kind} has a course of its own")
    reader.inert(_INERT)


NEOX = Format(
    "neox",
    "GPT-NeoX",
    {
        "train_micro_batch_size_per_gpu": 3,
        "train_iters": 2,
        "lr_decay_iters": 1,
        "optimizer.params.lr": 1,
        "pipe_parallel_size": 2,
        "num_layers": 1,
    },
    read_neox,
    "EleutherAI/gpt-neox configs (2026-11)",
)
DEEPSPEED = Format(
    "deepspeed",
    "DeepSpeed",
    {
        "train_micro_batch_size_per_gpu": 3,
        "train_batch_size": 1,
        "optimizer.params.lr": 2,
        "zero_optimization": 2,
        "scheduler.type": 1,
        "not:train_iters": 3,
        "not:num_layers": 2,
        "not:mixed_precision": 2,
    },
    read_deepspeed,
    "microsoft/DeepSpeed config JSON (2026-11)",
)
