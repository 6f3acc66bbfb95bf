"""Megatron-LM: a list of flags; a global batch of samples, spans in iterations or samples."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import beside_muon, betas, clip, optimizer, periods, share_of_decay

_PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_INERT = (
    "log_interval eval_iters layernorm_epsilon norm_epsilon rotary_base adam_offload train_data_path "
    "use_distributed_optimizer overlap_grad_reduce no_gradient_accumulation_fusion "
    "decoder_first_pipeline_num_layers override_opt_param_scheduler "
    "use_checkpoint_opt_param_scheduler optimizer_cpu_offload moe_router_load_balancing_type "
    "overlap_param_gather_with_optimizer_step accumulate_allreduce_grads_in_fp32 hysteresis "
    "initial_loss_scale min_loss_scale loss_scale_window manual_gc_interval train_sync_interval"
)


def read(reader: Reader) -> None:
    """Read the flags."""
    micro = reader.whole("micro_batch_size", ask="samples per device and pass", low=1)
    devices = _devices(reader)
    size = reader.whole("global_batch_size", default=None, low=1)
    stated = size.value is not None
    reader.keeps_batch, reader.per_device = stated, not stated
    batch = size.value if stated else int(micro.value) * devices
    reader.draft.values |= {"batch": batch, "devices": devices, "micro": int(micro.value)}
    follows = reader.remember("batch_follows_devices", not stated)
    words = "" if stated else "silent, it is one pass of every device"
    reader.link("batch", size, lambda view: None if follows and view.accumulation == 1 else view.batch, words=words,
                whole=True, least=1)  # fmt: skip
    reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    sequence = reader.whole("seq_length", "encoder_seq_length", default=None, low=1)
    if sequence.value:
        reader.draft.batch["sequence"] = sequence.value
    _optimizer(reader)
    _schedule(reader)
    reader.unread("rampup_batch_size", "recent Megatron does not act on it, older ones ramp the batch up; "
                  "write --step-batch-size-schedule, or remove it")  # fmt: skip
    reader.unread("step_batch_size_schedule", "the batch changes in the run; iterations become samples with the "
                  "last batch")  # fmt: skip
    for key in ("decoupled_lr", "decoupled_min_lr", "head_lr_mult"):
        reader.unread(key, "a rate of its own that the plan leaves as it is")
    periods(reader, {"eval_interval": "evaluation", "save_interval": "checkpoints", "exit_interval": "exit"})
    reader.inert(_INERT)


def _devices(reader: Reader) -> int:
    split = 1
    for key in _PARALLEL:
        split *= reader.whole(key, default=1, low=1).value
    told, world = launched_devices(reader, split), reader.find("world_size").value
    if told is None and isinstance(world, int) and world % split == 0:
        told = world // split
    return reader.devices("micro-batch x data-parallel size x passes is the global batch", default=told)


def _optimizer(reader: Reader) -> None:
    name = optimizer(reader, reader.word("optimizer", default="adam"), adam="adamw")
    reader.say("lr", reader.number("lr", ask="Megatron has no default rate"))
    _decay(reader)
    if name in ("sgd", "muon"):
        key = "muon_momentum" if name == "muon" else "sgd_momentum"
        reader.say("momentum", reader.number(key, default=0.95 if name == "muon" else 0.9))
    if name != "sgd":
        one, two = reader.number("adam_beta1", default=0.9), reader.number("adam_beta2", default=0.999)
        eps = reader.number("adam_eps", default=1e-8)
        if name != "muon":
            betas(reader, one, two)
            reader.say("eps", eps)
        else:
            beside_muon(reader, (one, two), eps)
    clip(reader, reader.number("clip_grad", default=1.0))


def _decay(reader: Reader) -> None:
    """Enter the weight decay: one number, or a rise over the whole run, beside which --weight-decay does not act."""
    style = str(reader.word("weight_decay_incr_style", default="constant").value).lower()
    start, end = reader.number("start_weight_decay", default=None), reader.number("end_weight_decay", default=None)
    if style not in ("linear", "cosine") or start.value is None or end.value is None:
        reader.say("weight_decay", reader.number("weight_decay", default=0.01))
        for key in ("start_weight_decay", "end_weight_decay"):
            reader.unread(key, "does not act without the other one and a --weight-decay-incr-style")
        return
    reader.inert("weight_decay")
    reader.say("weight_decay", start)
    if start.value:
        reader.draft.curves["weight_decay"] = [{"by": style, "to": share_of_decay(reader, end)}]
    else:
        reader.unread("end_weight_decay", "a decay that rises from 0 has no share of it; move it as the plan moves "
                      "1/(learning rate x steps)")  # fmt: skip


def _span(reader: Reader, name: str, stem: str, default: Found | None = None) -> Found | None:
    """Enter a span that is given in iterations or in samples."""
    steps, samples = reader.whole(f"{stem}_iters", default=None), reader.whole(f"{stem}_samples", default=None)
    if samples.value:
        reader.span(name, samples, "samples")
        return samples
    if steps.value:
        reader.span(name, steps, "steps", least=1)
        return steps
    return default


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    if _span(reader, "length", "train") is None:
        train = reader.whole("train_iters", ask="neither train-iters nor train-samples is given", low=1)
        reader.span("length", train, "steps", least=1)
    falls = _span(reader, "falls", "lr_decay")
    if falls is None:
        draft.spans["falls"] = draft.spans["length"]
    share = reader.number("lr_warmup_fraction", default=None)
    if _span(reader, "warmup", "lr_warmup") is None and share.value:
        draft.spans["warmup"] = f"{share.value * draft.samples('falls'):.17g} {draft.unit}"
        reader.link(
            "warmup", share, lambda view: view.samples("warmup") / view.samples("falls"), words="share of the decay"
        )
    start = reader.number("lr_warmup_init", default=0.0)
    peak, least = draft.values["lr"], reader.number("min_lr", default=0.0)
    draft.warmup_from = start.value / peak
    if start.value:
        at = draft.warmup_from
        reader.link("curves.lr", start, lambda view: view["lr"] * at, words="share of the peak kept")
    part = least.value / peak
    if least.value:
        reader.link("schedule.final", least, lambda view: view["lr"] * part, words="share of the peak kept")
    _shape(reader, part)


def _shape(reader: Reader, part: float) -> None:
    draft = reader.draft
    style = str(reader.word("lr_decay_style", default="linear").value).lower()
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    left = draft.samples("falls") - warm
    whole = draft.samples("falls") == draft.samples("length")
    draft.spans["fall"] = f"{left:.17g} {draft.unit}"
    if style == "constant":
        draft.rest = [{"by": "hold"}]
    elif style in ("linear", "cosine"):
        draft.rest = [{"by": style, "to": part}]
        if not whole:
            draft.rest = [{"span": "fall", "by": style, "to": part}]
            draft.rest += [{"by": "hold"}] if draft.samples("falls") < draft.samples("length") else []
    elif style == "inverse-square-root":
        draft.rest = [{"by": "inverse", **({} if warm else {"scale": "1 steps"})}]
    elif style.upper() == "WSD":
        _stable(reader, part, left)
    else:
        reader.ask("lr_decay_style", f"lr-decay-style = {style} is not known", "cosine")


def _stable(reader: Reader, part: float, left: float) -> None:
    draft = reader.draft
    steps, samples = (
        reader.whole("lr_wsd_decay_iters", default=None),
        reader.whole("lr_wsd_decay_samples", default=None),
    )
    if samples.value:
        reader.span("decay", samples, "samples")
    else:
        if not steps.value:
            steps = reader.whole("lr_wsd_decay_iters", ask="WSD needs the length of its decay", low=1)
        reader.span("decay", steps, "steps", least=1)
    style = str(reader.word("lr_wsd_decay_style", default="exponential").value).lower()
    by = {"exponential": "exp", "minus_sqrt": "minus-sqrt"}.get(style, style)
    draft.spans["stable"] = f"{max(left - draft.samples('decay'), 0.0):.17g} {draft.unit}"
    to = part if by != "exp" or part else 0.01
    draft.rest = [{"span": "stable", "by": "hold"}, {"span": "decay", "by": by, "to": to}, {"by": "hold"}]
    if by == "exp" and not part:
        reader.note("the exponential decay of WSD ends at 1% of the peak beside a min-lr of 0")


FORMAT = Format(
    "megatron",
    "Megatron-LM",
    {
        "program:pretrain_": 2,
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "lr_warmup_iters": 2,
        "lr_warmup_samples": 2,
        "lr_warmup_fraction": 2,
        "lr_decay_style": 2,
        "lr_decay_iters": 1,
        "train_iters": 1,
        "train_samples": 1,
        "min_lr": 1,
        "clip_grad": 1,
        "adam_beta1": 1,
        "tensor_model_parallel_size": 1,
        "not:train_micro_batch_size_per_gpu": 9,
        "not:base_model": 5,
        "not:per_device_train_batch_size": 5,
    },
    read,
    "NVIDIA/Megatron-LM@d98e8a6 (2026-08-22) training_config.py, optimizer_config.py",
    dashes=True,
)
