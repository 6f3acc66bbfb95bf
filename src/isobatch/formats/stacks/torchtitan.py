"""torchtitan: TOML, or functions of a Python registry; batches in sequences, or in tokens since 2026-08."""

from typing import Any

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, optimizer

_SPLIT = ("tensor_parallel_degree", "pipeline_parallel_degree", "context_parallel_degree")
_INERT = (
    "profiling metrics job model model_spec dataloader activation_checkpoint compile float8 comm experimental "
    "fault_tolerance memory_estimation quantize mx debug profiler loss validator.steps validation.steps "
    "model_converters checkpoint parallelism training.dtype training.mixed_precision_param training.gc_freq "
    "training.mixed_precision_reduce optimizer.implementation optimizer.fused optimizer.early_step_in_backward "
    "training.dataset training.dataset_path training.deterministic comm.init_timeout_seconds optimizer.foreach "
    "validator.dataloader validation.local_batch_size validation.seq_len validation.dataset validation.enable "
    "training.data_parallel_degree training.compile training.enable_cpu_offload optimizer.name lr_scheduler.type"
)
_DECAYS = {"linear": "linear", "cosine": "cosine", "sqrt": "minus-sqrt"}


def read(reader: Reader) -> None:
    """Read one config: the file's own, or one function of a registry."""
    head = _config(reader)
    draft = reader.draft

    def at(*names: str) -> tuple[str, ...]:
        return tuple(f"{head}{name}" for name in names)

    _batch(reader, at)
    _optimizer(reader, head, at)
    clip(reader, reader.number(*at("training.max_norm"), default=1.0))
    reader.span("length", reader.whole(*at("training.steps"), default=10000, low=1), "steps", least=1)
    warm = reader.whole(*at("lr_scheduler.warmup_steps", "training.warmup_steps"), default=200)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    _decay(reader, at)
    for name, keys in (
        ("evaluation", at("validator.freq", "validation.freq")),
        ("checkpoints", at("checkpoint.interval")),
    ):
        found = reader.whole(*keys, default=None)
        if found.value:
            reader.span(name, found, "steps", least=1)
    draft.batch.setdefault("sequence", 2048)
    reader.inert(*at(*_INERT.split()))


def _config(reader: Reader) -> str:
    """Return what stands before every key: nothing, or the function of the registry that is planned."""
    if reader.table("training") or reader.source.kind != "python":
        if reader.has("job.config_file", "config", "module") and not reader.has("training.steps", "optimizer.lr"):
            raise InputError(
                "the command rests on a config of its own; plan that file, and keep the command's overrides"
            )
        return ""
    built = [
        name
        for name, table in reader.source.tree.items()
        if isinstance(table, dict) and isinstance(table.get("training"), dict)
    ]
    if not built:
        raise InputError("no function here returns a Trainer.Config with its training; plan the file that has it, or "
                         "the object with isobatch.formats.scale_config")  # fmt: skip
    chosen = built[0]
    if len(built) > 1 or "config" in reader.answers:
        listed = ", ".join(built)
        chosen = str(reader.ask("config", f"the file has several configs ({listed}); which one", built[0],
                                f"--set config={built[0]}"))  # fmt: skip
        if chosen not in built:
            raise InputError(f"--set config={chosen!r} is none of {listed}")
    reader.inert(*(name for name in reader.source.tree if name != chosen))
    return f"{chosen}."


def _batch(reader: Reader, at: Any) -> None:
    draft = reader.draft
    length = reader.whole(*at("training.seq_len", "training.max_context_length"), default=2048, low=1)
    draft.unit, draft.batch["sequence"] = "tokens", length.value
    token_key = at("training.num_tokens_per_microbatch_per_dp_rank")
    tokens = reader.has(*token_key, *at("training.num_tokens_per_train_step", "training.max_context_length"))
    if tokens:
        micro = reader.whole(*token_key, default=16384, low=1)
        total = reader.whole(*at("training.num_tokens_per_train_step"), default=-1, low=-1)
        grain = 1
    else:
        micro = reader.whole(*at("training.local_batch_size", "training.batch_size"), default=8, low=1)
        total = reader.whole(*at("training.global_batch_size"), default=-1, low=-1)
        grain = length.value
    devices = _devices(reader, at)
    reader.link("micro", micro, lambda view: view.micro / grain, whole=True, least=1,
                words="" if tokens else f"sequences of {grain} tokens")  # fmt: skip
    draft.values |= {"devices": devices, "micro": micro.value * grain}
    stated = total.value > 0
    draft.values["batch"] = total.value * grain if stated else micro.value * grain * devices
    if stated:
        reader.keeps_batch, reader.per_device = True, False
    follows = reader.remember("batch_follows_devices", not stated)
    said = "-1 is one pass of every device; a number accumulates" if follows else "of all devices"
    reader.link("batch", total, lambda view: -1 if follows and view.accumulation == 1 else view.batch / grain,
                words=said, whole=True, least=-1)  # fmt: skip


def _devices(reader: Reader, at: Any) -> int:
    split = 1
    for key in _SPLIT:
        names = at(*(f"{table}.{key}" for table in ("parallelism", "experimental", "training")))
        split *= reader.whole(*names, default=1, low=1).value
    copies = reader.whole(*at("parallelism.data_parallel_replicate_degree"), default=1, low=1)
    shards = reader.whole(*at("parallelism.data_parallel_shard_degree", "training.data_parallel_degree"),
                          default=-1, low=-1)  # fmt: skip
    told = shards.value * copies.value if shards.value > 1 or (shards.value == 1 and copies.value > 1) else None
    if told is not None and reader.answers.get("devices", told) == told:
        times = copies.value
        reader.link("devices", shards, lambda view: view.devices / times, words="of one copy", whole=True, least=1)
        return told
    why = "data_parallel_shard_degree = -1 takes the GPUs that there are, and its batch is that of one of them"
    return reader.devices(why, default=told or launched_devices(reader, split))


def _optimizer(reader: Reader, head: str, at: Any) -> None:
    where = f"{head}optimizer"
    for listed in ("optimizers", "param_groups"):
        items = reader.items(f"{where}.{listed}")
        if len(items) > 1:
            raise InputError(f"{where} has {len(items)} optimizers by pattern, which no recipe here can hold at once; "
                             "give a file with one of them, plan it, and carry each rate over")  # fmt: skip
        if items:
            where = f"{where}.{listed}.0"
    kind = str(_text(reader, f"{where}.type", f"{where}.name", f"{where}.optimizer_name") or "AdamW")
    name = "adam" if kind.rsplit(".", 1)[-1].lower() == "adam" else "muon" if "muon" in kind.lower() else "adamw"
    if name == "muon":
        raise InputError(f"{kind} mixes Muon with AdamW by pattern, which the file does not spell out; plan a config "
                         "with default_adamw, or write the recipe with its groups in isobatch's own TOML")  # fmt: skip
    optimizer(reader, Found((*where.split("."), "name"), name))
    inner = f"{where}.optimizer_kwargs" if reader.has(f"{where}.optimizer_kwargs") else where
    reader.say("lr", reader.number(f"{inner}.lr", default=8e-4))
    if reader.has(f"{inner}.beta1", f"{inner}.beta2"):
        one = reader.number(f"{inner}.beta1", default=0.9)
        two = reader.number(f"{inner}.beta2", default=0.95)
    else:
        one, two = reader.pair(f"{inner}.betas", default=(0.9, 0.95))
    if reader.source.kind in ("toml", "command") and two.origin == "default":
        one = Found((*inner.split("."), "beta1"), one.value, one.origin)
        two = Found((*inner.split("."), "beta2"), two.value, two.origin)
    reader.say("beta1", one)
    reader.say("beta2", two)
    reader.say("eps", reader.number(f"{inner}.eps", default=1e-8))
    reader.say("weight_decay", reader.number(f"{inner}.weight_decay", default=0.1))
    reader.inert(*(f"{where}.{key}" for key in ("type", "name", "implementation", "fused", "foreach", "pattern")))


def _text(reader: Reader, *names: str) -> str | None:
    """Return a word where the file has it."""
    return next((str(found.value) for name in names if (found := reader.find(name)).value is not None), None)


def _decay(reader: Reader, at: Any) -> None:
    draft = reader.draft
    kind = str(reader.word(*at("lr_scheduler.decay_type", "lr_scheduler.lr_decay_type"), default="linear").value)
    least = reader.number(*at("lr_scheduler.min_lr_factor", "lr_scheduler.lr_min"), default=0.0)
    share = reader.number(*at("lr_scheduler.decay_ratio", "lr_scheduler.lr_decay_ratio"), default=None)
    if kind not in _DECAYS:
        raise InputError(f"lr_scheduler.decay_type={kind!r} is none of {', '.join(_DECAYS)}; mend the file")
    if least.value:
        reader.link("schedule.final", least, lambda view: least.value, words="share of the peak")
    run = draft.samples("length")
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    if share.value is None:
        draft.rest = [{"by": _DECAYS[kind], "to": least.value}]
        return
    reader.link("curves.lr", share, lambda view: share.value, words="share of the run that decays")
    falls = min(run * min(share.value, 1.0), max(run - warm, 0.0))
    draft.spans["stable"] = f"{max(run - warm - falls, 0.0):.17g} tokens"
    draft.spans["fall"] = f"{falls:.17g} tokens"
    fall = {"span": "fall", "by": _DECAYS[kind], "to": least.value}
    draft.rest = [{"span": "stable", "by": "hold"}, fall] if falls else [{"by": "hold"}]


FORMAT = Format(
    "torchtitan",
    "torchtitan",
    {
        "training.local_batch_size": 4,
        "training.global_batch_size": 2,
        "training.seq_len": 3,
        "training.num_tokens_per_microbatch_per_dp_rank": 6,
        "training.num_tokens_per_train_step": 4,
        "training.steps": 1,
        "parallelism.data_parallel_shard_degree": 2,
        "text:torchtitan": 6,
        "training.max_norm": 1,
        "not:actor_rollout_ref": 9,
    },
    read,
    "pytorch/torchtitan@b5bcd76 config/configs.py 36-67, config_registry.py (2026-08-21); TOML at 9810191bb~1",
)
