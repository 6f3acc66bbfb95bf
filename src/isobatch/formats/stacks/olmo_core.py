"""OLMo-core: config objects of a Python script, or what it saves of them; batches, and often spans, in tokens."""

from collections.abc import Iterator
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, known_name, optimizer, share_of_peak, usual_betas
from isobatch.formats.texts import Key, Unknown, spelled
from isobatch.rules import OPTIMIZERS

_PARTS = {
    "train_module": "TrainModuleConfig",
    "data_loader": "DataLoaderConfig",
    "trainer": "TrainerConfig",
}
_SHAPES = {
    "CosWithWarmup": "cosine",
    "LinearWithWarmup": "linear",
    "ConstantWithWarmup": "hold",
    "InvSqrtWithWarmup": "inverse",
    "WSD": "wsd",
}
_PERIODS = (
    ("checkpoints", "save_interval"),
    ("ephemeral_checkpoints", "ephemeral_save_interval"),
    ("evaluation", "eval_interval"),
)
"""Name of a span -> the key of a callback that says it in steps."""
_USUAL_END = {"cosine": 0.1, "linear": 0.1}


def read(reader: Reader) -> None:
    """Read the configs of the train module, the data loader and the trainer."""
    parts = {part: _place(reader, part) for part in _PARTS}
    _batch(reader, parts)
    _optimizer(reader, parts)
    module, trainer = parts["train_module"], parts["trainer"]
    clip(reader, reader.number(f"{module}.max_grad_norm", f"{trainer}.max_grad_norm", default=None))
    _length(reader, trainer)
    _schedule(reader, module)
    _periods(reader, trainer)
    for key, _ in tuple(_tables(reader.source.tree)):
        name = spelled(key)
        reader.inert(f"{name}.type")
    reader.inert(*(name for name in reader.source.tree if not _within(name, parts)))
    for name in ("compile_model", "dp_config", "float8_config", "ac_config", "tp_config", "z_loss_multiplier"):
        reader.inert(f"{module}.{name}")


def _within(name: str, parts: dict[str, str]) -> bool:
    return any(place == name or place.startswith(f"{name}.") for place in parts.values())


def _tables(tree: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Yield every config object of a script with the name of its class."""
    if isinstance(tree, dict):
        kind = tree.get("type", tree.get("_CLASS_"))
        if isinstance(kind, str):
            yield key, kind.rsplit(".", 1)[-1]
        for part, value in tree.items():
            yield from _tables(value, (*key, part))


def _place(reader: Reader, part: str) -> str:
    """Return where a part of the config stands: under its own name, or wherever a script builds it."""
    if reader.table(part):
        return part
    found = [key for key, kind in _tables(reader.source.tree) if kind.endswith(_PARTS[part])]
    if part == "data_loader":
        found = [key for key in found if reader.source.get((*key, "global_batch_size")) is not None]
        if not found and isinstance(reader.source.get(("main",)), dict):
            return "main"
    if len(found) > 1:
        places = ", ".join(spelled(key) for key in found)
        raise InputError(f"{_PARTS[part]} is built in several places ({places}); give a file with one of them, or plan "
                         "the object with isobatch.formats.scale_config")  # fmt: skip
    return ".".join(str(item) for item in found[0]) if found else part


def _batch(reader: Reader, parts: dict[str, str]) -> None:
    draft = reader.draft
    names = (f"{parts['data_loader']}.global_batch_size", "global_batch_size", "GLOBAL_BATCH_SIZE")
    size = reader.whole(*names, ask="tokens in a batch of all ranks", low=1)
    module = parts["train_module"]
    micro = reader.whole(f"{module}.rank_microbatch_size", f"{parts['trainer']}.rank_microbatch_size",
                         ask="tokens per rank and pass", low=1)  # fmt: skip
    devices = reader.devices(default=launched_devices(reader), assume=1)
    draft.unit = "tokens"
    length = reader.source.get(tuple(f"{module}.max_sequence_length".split(".")))
    if isinstance(length, int) and length > 0:
        draft.batch["sequence"] = length
    reader.inert(f"{module}.max_sequence_length")
    reader.keeps_batch, reader.per_device = True, False
    draft.values |= {"batch": int(size.value), "devices": devices, "micro": int(micro.value)}
    reader.link("batch", size, lambda view: view.batch, words="tokens", whole=True, least=1)
    reader.link("micro", micro, lambda view: view.micro, words="tokens", whole=True, least=1)


def _optimizer(reader: Reader, parts: dict[str, str]) -> None:
    where = f"{parts['train_module']}.optim"
    if not reader.table(where):
        pairs = [(key, kind) for key, kind in _tables(reader.source.tree) if kind.endswith("Config")]
        found = [key for key, kind in pairs if known_name(kind.removesuffix("Config")) is not None]
        if len(found) == 1:
            where = ".".join(str(item) for item in found[0])
    kind = str(reader.find(f"{where}.type", f"{where}._CLASS_", default="AdamWConfig").value)
    name = optimizer(reader, Found((*where.split("."), "type"), kind.rsplit(".", 1)[-1].removesuffix("Config")))
    reader.say("lr", reader.number(f"{where}.lr", "lr", default=1e-3))
    reader.say("weight_decay", reader.number(f"{where}.weight_decay", default=1e-2))
    one, two = reader.pair(f"{where}.betas", default=usual_betas(name))
    reader.say("beta1", one)
    reader.say("beta2", two)
    if not OPTIMIZERS[name].mixes:
        reader.say("eps", reader.number(f"{where}.eps", default=1e-8))
    for index, item in enumerate(reader.items(f"{where}.group_overrides")):
        _group(reader, f"{where}.group_overrides.{index}", item)
    for key in ("fused", "foreach", "rolling_interval_length", "sigma_factor", "step_increment_bugfix", "compile"):
        reader.inert(f"{where}.{key}")


def _group(reader: Reader, place: str, item: Any) -> None:
    draft = reader.draft
    params, options = (item.get("params"), item.get("opts")) if isinstance(item, dict) else (None, None)
    reader.inert(f"{place}.params", f"{place}.type")
    if (
        not isinstance(params, list)
        or not all(isinstance(text, str) for text in params)
        or not isinstance(options, dict)
    ):
        reader.unread(place, "its parameters or options are not spelled out")
        return
    group: dict[str, Any] = {"name": f"override-{len(draft.groups)}"}
    group["match"] = [".*".join(_escaped(part) for part in text.split("*")) for text in params]
    at = len(draft.groups)
    for field in ("lr", "weight_decay"):
        found = reader.number(f"{place}.opts.{field}", default=None)
        if found.value is not None:
            group[field] = float(found.value)
            if found.value:
                path = f"groups[{at}].{field}"
                reader.link(path, found, lambda view, path=path: view[path])
    for field in sorted(set(options) - {"lr", "weight_decay"}):
        reader.unread(f"{place}.opts.{field}", "an option of this group alone, which the plan leaves as it is")
    if len(group) > 2:
        draft.groups.append(group)


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in ".^$+?{}[]()|\\" else letter for letter in text)


def _length(reader: Reader, trainer: str) -> None:
    """Enter `max_duration`: Duration.tokens(...), .steps, .epochs, or what is saved of it; and where it stops early."""
    draft = reader.draft
    stop = f"{trainer}.hard_stop"
    unit = str(reader.find(f"{stop}.unit", f"{stop}.type", default="").value or "").lower().rsplit(".", 1)[-1]
    amount = reader.number(f"{stop}.#0", f"{stop}.value", default=None)
    if amount.value and unit == "steps":
        reader.span("hard_stop", amount, "steps", least=1)
    where = f"{trainer}.max_duration"
    kind = str(reader.find(f"{where}.type", default="").value or "").rsplit(".", 1)[-1]
    unit = str(reader.find(f"{where}.unit", default=kind).value or "").lower().rsplit(".", 1)[-1]
    amount = reader.number(f"{where}.#0", f"{where}.value", default=None)
    if amount.value is not None and unit in ("tokens", "steps"):
        reader.span("length", amount, unit, least=1)
        return
    if amount.value is not None and unit == "duration":
        reader.span("length", amount, "steps", least=1)
        return
    why = "the run is in epochs, or the script computes it; how many tokens does it see"
    tokens = reader.ask("max_duration", why, 1e9, "--set max_duration=4e12")
    if isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or not tokens > 0:
        raise InputError(f"--set max_duration={tokens!r} must be a number of tokens, such as 4e12")
    draft.spans["length"] = f"{float(tokens):.17g} tokens"
    reader.inert(where)


def _raw(reader: Reader, name: str) -> str:
    """Return a name that stands for a value, such as SchedulerUnits.tokens."""
    reader.inert(name)
    value = reader.source.get(tuple(name.split(".")))
    return (value.text if isinstance(value, Unknown) else str(value or "")).rsplit(".", 1)[-1]


def _schedule(reader: Reader, module: str) -> None:
    draft, where = reader.draft, f"{module}.scheduler"
    kind = str(reader.find(f"{where}.type", f"{where}._CLASS_", default="").value or "").rsplit(".", 1)[-1]
    if not kind:
        draft.rest = [{"by": "hold"}]
        return
    shape = _SHAPES.get(kind)
    if shape is None:
        raise InputError(f"{where} = {kind} is none of {', '.join(_SHAPES)}; plan the file with one of them, or write "
                         "the curve in isobatch's own TOML")  # fmt: skip
    unit = "tokens" if _raw(reader, f"{where}.units") == "tokens" else "steps"
    warm = reader.number(f"{where}.warmup", f"{where}.warmup_steps", default=None)
    share = reader.number(f"{where}.warmup_fraction", default=None)
    if warm.value:
        reader.span("warmup", warm, unit, least=1)
    elif share.value:
        reader.span("warmup", share, "length")
    start = reader.number(f"{where}.warmup_min_lr", default=None)
    if start.value:
        draft.warmup_from = share_of_peak(reader, "curves.lr", start)
    usual = _USUAL_END.get(shape, 0.0)
    end = reader.number(f"{where}.alpha_f", default=usual)
    if shape in _USUAL_END:
        reader.link("schedule.final", end, lambda view: end.value, words="share of the peak")
    if shape == "wsd":
        _stable(reader, where, unit)
    elif shape == "hold":
        draft.rest = [{"by": "hold"}]
    else:
        _falling(reader, where, unit, shape, end.value)


def _falling(reader: Reader, where: str, unit: str, shape: str, end: float) -> None:
    draft = reader.draft
    last = reader.number(f"{where}.t_max", default=None)
    fall: dict[str, Any] = {"by": shape} if shape == "inverse" else {"by": shape, "to": end}
    draft.rest = [fall]
    if not last.value or shape == "inverse":
        return
    reader.span("t_max", last, unit, least=1)
    run = draft.samples("length")
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    if abs(draft.samples("t_max") - run) > draft.values["batch"]:
        draft.spans["fall"] = f"{max(draft.samples('t_max') - warm, 0.0):.17g} tokens"
        draft.rest = [{"span": "fall", **fall}]
        if draft.samples("t_max") < run:
            draft.rest.append({"by": "hold"})


def _stable(reader: Reader, where: str, unit: str) -> None:
    draft = reader.draft
    steps = reader.number(f"{where}.decay", f"{where}.decay_steps", default=None)
    if steps.value:
        reader.span("decay", steps, unit, least=1)
    else:
        share = reader.number(f"{where}.decay_fraction", default=0.1)
        reader.span("decay", share, "length")
    run = draft.samples("length")
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    falls = min(draft.samples("decay"), run - warm)
    draft.spans["stable"] = f"{max(run - warm - falls, 0.0):.17g} tokens"
    draft.spans["fall"] = f"{max(falls, 0.0):.17g} tokens"
    least = reader.number(f"{where}.decay_min_lr", default=None)
    end = share_of_peak(reader, "schedule.final", least) if least.value else 0.0
    draft.rest = [{"span": "stable", "by": "hold"}, {"span": "fall", "by": "linear", "to": end}]


def _periods(reader: Reader, trainer: str) -> None:
    table = reader.table(trainer)
    inner = {f"{trainer}.{name}": value for name, value in table.items()}
    inner |= {f"{trainer}.callbacks.{name}": value for name, value in reader.table(f"{trainer}.callbacks").items()}
    for name, value in inner.items():
        if not isinstance(value, dict) or name.endswith(("max_duration", ".callbacks")):
            continue
        for span, key in _PERIODS:
            if (
                f"{name}.{key}"
                and isinstance(value.get(key), int)
                and value[key] > 0
                and span not in reader.draft.spans
            ):
                reader.span(span, reader.whole(f"{name}.{key}"), "steps", least=1)
            elif isinstance(value.get(key), int):
                reader.unread(f"{name}.{key}", "a further period in steps; divide it by kappa")
        kind = str(value.get("type", value.get("_CLASS_", "")))
        if "EMA" in kind or "Averag" in kind:
            reader.unread(name, "an average of the weights by a callback of its own; move its decay by decay**kappa")
            continue
        if "BatchSizeScheduler" in kind:
            reader.unread(name, "the batch changes in the run, and the rate with it, by the trainer's own rule")
            continue
        reader.inert(*(f"{name}.{key}" for key in value if key not in dict(_PERIODS).values()))
    for key in ("metrics_collect_interval", "cancel_check_interval", "z_loss_multiplier", "save_overwrite"):
        reader.inert(f"{trainer}.{key}")


FORMAT = Format(
    "olmo-core",
    "OLMo-core",
    {
        "text:olmo_core": 6,
        "train_module.rank_microbatch_size": 6,
        "data_loader.global_batch_size": 4,
        "train_module.optim": 2,
        "trainer.max_duration": 1,
    },
    read,
    "allenai/OLMo-core@fa6c501 optim/scheduler.py, train/callbacks/batch_size_scheduler.py, scripts/train/OLMo2-1B.py",
)
