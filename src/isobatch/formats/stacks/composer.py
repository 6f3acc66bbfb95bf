"""Composer and llm-foundry: a global batch, times with units ("100ba", "10ep", "0.1dur"), an average by half-life."""

import re

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.words import clip, milestones, moments, optimizer
from isobatch.formats.texts import leaves, spelled
from isobatch.rules import OPTIMIZERS
from isobatch.units import decay_at

_TIME = re.compile(r"^\s*([0-9][0-9_.]*(?:e[+-]?\d+)?)\s*(ba|ep|sp|tok|dur|iter|sec)\s*$")
_INERT = (
    "eval_interval eval_loader loggers callbacks tokenizer model max_seq_len scheduler.name "
    "optimizer.name fsdp_config precision"
)


def read(reader: Reader) -> None:
    """Read an llm-foundry YAML."""
    draft = reader.draft
    size = reader.whole(
        "global_train_batch_size", "train_loader.batch_size", ask="samples per step on all devices", low=1
    )
    micro = reader.find("device_train_microbatch_size", "device_train_grad_accum", default="auto")
    devices = reader.devices(assume=1)
    draft.values |= {"batch": int(size.value), "devices": devices}
    reader.keeps_batch, reader.per_device = True, False
    if isinstance(micro.value, int):
        draft.values["micro"] = micro.value
        reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    reader.link("batch", size, lambda view: view.batch, whole=True, least=1)
    sequence = reader.whole("max_seq_len", "variables.max_seq_len", default=None, low=1)
    if sequence.value:
        draft.batch["sequence"] = sequence.value
    name = optimizer(reader, reader.word("optimizer.name", "optimizers.name", default="decoupled_adamw"))
    reader.say("lr", reader.number("optimizer.lr", ask="the learning rate"))
    decay = reader.number("optimizer.weight_decay", default=1e-5 if name in ("adam", "adamw") else 0.0)
    reader.say("weight_decay", decay)
    if str(reader.word("optimizer.name", default="decoupled_adamw").value).lower().startswith("decoupled"):
        draft.values["decay"] = "independent"
        reader.note("Composer's decoupled optimizers do not multiply the decay by the initial rate")
    moments(reader, name, "optimizer", usual=None if OPTIMIZERS[name].mixes else (0.9, 0.95))
    if str(reader.find("algorithms.gradient_clipping.clipping_type", default="norm").value) == "norm":
        clip(reader, reader.number("algorithms.gradient_clipping.clipping_threshold", default=None))
    _time(reader, "length", reader.find("max_duration"))
    _schedule(reader)
    _average(reader)
    for key, span in (("eval_interval", "evaluation"), ("save_interval", "checkpoints")):
        found = reader.find(key, default=None)
        if isinstance(found.value, str):
            _time(reader, span, found)
    told = {link.name for link in reader.links} | reader.left.keys()
    for key, value in leaves(reader.source.tree):
        match = _TIME.match(value) if isinstance(value, str) else None
        often = match is not None and match[2] == "ba" and float(match[1].replace("_", "")) > 1
        if often and spelled(key) not in told and not str(key[-1]).startswith("console"):
            reader.unread(spelled(key), "a time in batches that the plan leaves as it is; divide it by kappa")
    reader.inert(_INERT)


def _time(reader: Reader, name: str, found: Found) -> None:
    """Enter a time; batches move with the batch, every other unit stays."""
    match = _TIME.match(str(found.value)) if found.value is not None else None
    if match is None:
        if found.value in (0, "0"):
            return
        raise InputError(f"{found.name}={found.value!r} must be a time such as 100ba, 10ep or 0.1dur; mend the file")
    amount, unit = float(match[1].replace("_", "")), match[2]
    draft = reader.draft
    if unit == "dur":
        draft.spans[name] = f"{amount * draft.samples('length'):.17g} {draft.unit}"
    elif unit == "ep":
        reader.data_size()
        draft.spans[name] = f"{amount:.17g} epochs"
    elif unit in ("sp", "tok"):
        draft.spans[name] = f"{amount:.17g} {'samples' if unit == 'sp' else 'tokens'}"
        if unit == "tok" and "sequence" not in draft.batch:
            draft.batch["sequence"] = int(
                reader.ask("sequence", f"{found.name} is in tokens; tokens in a sample", 2048)
            )
    elif unit == "ba":
        draft.spans[name] = f"{reader.unrounded(found.key, amount):.17g} steps"
        reader.link(
            name, found, lambda view: view.steps(name), words="batches", whole=True, least=min(amount, 1), unit="ba"
        )
    else:
        reader.unread(found.name, f"a time in {unit} has no place on the clock of samples")


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    kind = str(reader.word("scheduler.name", default="constant").value).lower()
    warm = reader.find("scheduler.t_warmup", default=None)
    if warm.value is not None:
        _time(reader, "warmup", warm)
    final = reader.number("scheduler.alpha_f", default=0.0).value
    full = str(reader.find("scheduler.t_max", default="1dur").value)
    if full not in ("1dur", "1.0dur"):
        reader.unread("scheduler.t_max", "a decay that does not end with the run")
    if "multistep" in kind:
        _steps(reader)
        return
    by = next(
        (way for word, way in (("cosine", "cosine"), ("linear", "linear"), ("constant", "hold")) if word in kind), None
    )
    if by is None:
        reader.unread("scheduler.name", f"{kind} has a course of its own; times in batches must follow by hand")
        by = "hold"
    draft.rest = [{"by": by} if by == "hold" else {"by": by, "to": final}]


def _steps(reader: Reader) -> None:
    """Enter milestones, each a time of its own, counted from the start of the run."""
    marks = []
    for index, _ in enumerate(reader.items("scheduler.milestones")):
        found = reader.find(f"scheduler.milestones.{index}")
        _time(reader, f"milestone_{index}", found)
        marks.append(reader.draft.samples(f"milestone_{index}"))
    reader.inert("scheduler.milestones")
    milestones(reader, marks, reader.number("scheduler.gamma", default=0.1).value)


def _average(reader: Reader) -> None:
    if not reader.table("algorithms.ema"):
        return
    span = reader.find("algorithms.ema.half_life", default=None)
    smooth = reader.number("algorithms.ema.smoothing", default=None)
    every = reader.find("algorithms.ema.update_interval", default="1ba").value
    if str(every) != "1ba":
        reader.unread("algorithms.ema.update_interval", "an average that is not updated each batch")
    if smooth.value is not None:
        reader.say("ema", smooth)
    elif span.value is not None:
        _time(reader, "ema_half_life", span)
        reader.draft.values["ema"] = decay_at(reader.draft.samples("ema_half_life"), reader.draft.values["batch"])
    start = reader.find("algorithms.ema.ema_start", default="0.0dur")
    if str(start.value) not in ("0.0dur", "0dur", "0ba", "0ep"):
        _time(reader, "ema_start", start)
        reader.draft.average["start"] = reader.draft.spans["ema_start"]


FORMAT = Format(
    "composer",
    "Composer, llm-foundry",
    {
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 2,
        "scheduler.t_warmup": 2,
        "max_duration": 2,
        "algorithms": 1,
        "optimizer.name": 1,
    },
    read,
    "mosaicml/llm-foundry mpt-7b.yaml; composer@6405188 core/time.py, algorithms/ema/ema.py",
)
