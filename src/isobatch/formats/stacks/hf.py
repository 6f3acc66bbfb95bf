"""Hugging Face `TrainingArguments` and what speaks its words: LLaMA-Factory, axolotl, TRL, ms-swift."""

import re
from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.grpo import groups, is_grpo
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import betas, clip, has, optimizer, per_device_batch, periods, restarts

_INERT = (
    "beta pref_beta dpo_beta kto_beta fsdp fsdp_config loraplus_lr_ratio lora_alpha average_tokens_across_devices "
    "adapter optim_target_modules eval_batch_size max_length loss_type temperature logging_steps train_on_inputs "
    "group_by_length num_beams epsilon_high evals_per_epoch saves_per_epoch dispatch_batches eval_batches"
    " torch_empty_cache_steps eval_delay accelerator_config.dispatch_batches accelerator_config.even_batches"
)

_ONE_RATE = re.compile(r"(?!min|max|base|peak)([A-Za-z]\w*)_lr$|loraplus_lr_(embedding)$")
"""A rate of some parameters alone, by the name of its key."""


_SWITCHES = ("use_muon", "use_galore", "use_apollo", "use_badam", "use_adam_mini")
"""LLaMA-Factory's switches of another optimizer than optim says."""


@dataclass(frozen=True)
class _Usual:
    """What a trainer of these words takes where nobody says it."""

    micro: int = 8
    lr: float | None = 5e-5
    beta2: float = 0.999
    decay: float = 0.0
    schedule: str = "linear"
    epochs: float = 3.0
    optimizer: str = "adamw_torch"


_USUAL = _Usual()
_AXOLOTL = _Usual(1, None, schedule="cosine", epochs=1, optimizer="adamw_torch_fused")
_SWIFT = _Usual(1, None, 0.95, 0.1, "cosine")
"""swift/trainers/arguments.py TrainArgumentsMixin (modelscope/ms-swift@0037257)."""
_SWIFT_RUNS = re.compile(r"(?:^|[/\s])swift(?:$|[/\s.])")


def _usual(reader: Reader) -> _Usual:
    if _SWIFT_RUNS.search(str(reader.source.extra.get("program", ""))):
        return _SWIFT
    return _AXOLOTL if _axolotl(reader) else _USUAL


def _axolotl(reader: Reader) -> bool:
    return reader.has("micro_batch_size", "base_model", "sequence_len", "num_epochs")


def read(reader: Reader) -> None:
    """Read the arguments."""
    axolotl, usual = _axolotl(reader), _usual(reader)
    micro = reader.whole("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size",
                         default=usual.micro, low=1)  # fmt: skip
    if usual is _SWIFT and not reader.has("gradient_accumulation_steps"):
        why = "swift takes ceil(16 / (batch x GPUs)) passes where nobody states them, so that they follow the GPUs"
        reader.ask("gradient_accumulation_steps", why, 1)
    passes = reader.whole("gradient_accumulation_steps", default=1, low=1)
    if axolotl and reader.has("batch_size") and not reader.has("gradient_accumulation_steps"):
        total = reader.whole("batch_size", low=1)
        reader.ask("gradient_accumulation_steps", f"axolotl no longer takes batch_size={total.value}", 1)
    devices = reader.devices(default=launched_devices(reader))
    if not isinstance(reader.find("accelerator_config").value, dict):
        reader.unread("accelerator_config", "a file of its own, which may set split_batches")
    if reader.flag("accelerator_config.split_batches", "split_batches").value:
        _split(reader, micro, passes, devices)
    else:
        per_device_batch(reader, micro, passes, devices)
    if reader.find("auto_find_batch_size").value:
        reader.unread(
            "auto_find_batch_size", "halves the batch when memory runs out, and nothing else with it; turn it off"
        )
    times = groups(reader) if is_grpo(reader) else 1
    _optimizer(reader, usual)
    _rates(reader)
    _length(reader, usual, times)
    _schedule(reader, usual)
    for name, key in (("checkpoints", "save_steps"), ("evaluation", "eval_steps")):
        found = reader.number(key)
        if found.value and _counted(reader, found):
            reader.span(name, found, "steps", least=1)
    if reader.flag("sync_ref_model").value:  # TRL mixes the model into the reference every so many steps
        found = reader.number("ref_model_sync_steps", default=512, low=1)
        reader.span("reference", found, "steps", least=1)
        reader.inert("ref_model_mixup_alpha")
    if reader.word("eval_strategy", "evaluation_strategy", default="no").value == "steps":
        periods(reader, {"eval_delay": "evaluation_begins"})
    if reader.find("packing", "sample_packing").value:
        reader.note("samples are packed sequences here: the data size is the number of packs, and a batch counts packs")
    reader.inert(_INERT)
    for key in ("deepspeed", "optim_args"):
        if reader.find(key).value:
            reader.unread(key, "may set rates, batches or clipping of its own")


def _split(reader: Reader, whole: Found, passes: Found, devices: int) -> None:
    """Enter a batch that Accelerate deals out to the devices, whatever the name of its key says."""
    if whole.value % devices:
        raise InputError(
            f"{whole.name}={whole.value} is dealt out by split_batches and does not lie evenly on {devices} devices; "
            f"take a multiple of {devices}, or turn split_batches off"
        )
    per_device_batch(reader, Found(whole.key, whole.value // devices, whole.origin), passes, devices)
    reader.links[:] = [link for link in reader.links if link.path != "batch.micro"]
    reader.link("micro", whole, lambda view: view.micro * view.devices, words="dealt out by split_batches", whole=True,
                least=1)  # fmt: skip
    reader.per_device = False


def _counted(reader: Reader, found: Found) -> bool:
    """Whether a number counts steps: shares of the run are below 1, and so may be what a plan made a whole step of."""
    return found.value >= 1 or found.name in reader.exact


def _optimizer(reader: Reader, usual: _Usual) -> None:
    # a loop of Accelerate, without TrainingArguments
    bare = "no_trainer" in str(reader.source.extra.get("program", ""))
    lr = reader.number("learning_rate", default=None if _trl(reader) else usual.lr,
                       ask="each trainer has a default of its own, and the file names none")  # fmt: skip
    if reader.find("adafactor").value:
        optimizer(reader, Found(("adafactor",), "adafactor"))
    switched = [key for key in _SWITCHES if reader.flag(key).value]
    word = reader.word("optim", "optimizer", default=usual.optimizer)
    if switched:
        word = Found((switched[0],), switched[0].removeprefix("use_"))
    name = optimizer(reader, word, adam="adamw")
    reader.say("lr", lr)
    reader.say("weight_decay", reader.number("weight_decay", default=usual.decay))
    if name == "muon":
        reader.fix("momentum", 0.95, "the trainer's Muon, which no argument sets")
        reader.draft.rules["momentum"] = "keep"
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            reader.unread(key, "of Adam's own parameters beside Muon, which the plan leaves as it is")
    if has(name, "betas"):
        if bare and not reader.has("adam_beta1", "adam_beta2", "adam_epsilon"):
            for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
                reader.fix(path, value, "torch's AdamW, which the script leaves at its default")
        else:
            betas(reader, reader.number("adam_beta1", default=0.9), reader.number("adam_beta2", default=usual.beta2))
            reader.say("eps", reader.number("adam_epsilon", default=1e-8))
    clip(reader, reader.number("max_grad_norm", default=None if bare else 1.0))


def _trl(reader: Reader) -> bool:
    """TRL's configs have other default rates, one for each trainer."""
    return str(reader.source.extra.get("called", "")).endswith("Config") or reader.has(
        "dataset_name", "model_name_or_path", "max_prompt_length", "loss_type", "num_generations"
    )


def _rates(reader: Reader) -> None:
    """Enter the rates that some parameters have beside learning_rate, such as mm_projector_lr or embedding_lr."""
    for name in reader.source.tree:
        match = _ONE_RATE.match(str(name))
        found = reader.find(name).value if match else None
        if match is None or isinstance(found, bool) or not isinstance(found, (int, float)) or not found > 0:
            continue
        path, part = f"groups[{len(reader.draft.groups)}].lr", match[1] or match[2]
        rate = reader.number(name)
        reader.draft.groups.append({"name": part.replace("_", "-"), "match": part, "lr": float(rate.value)})
        reader.link(path, rate, lambda view, path=path: view[path])
    for index, item in enumerate(reader.items("lr_groups")):  # axolotl's
        rate = reader.number(f"lr_groups.{index}.lr", default=None)
        modules = item.get("modules") if isinstance(item, dict) else None
        if rate.value and isinstance(modules, list) and modules:
            path = f"groups[{len(reader.draft.groups)}].lr"
            named = {"name": str(item.get("name") or f"lr-group-{index}"), "match": "|".join(map(str, modules))}
            reader.draft.groups.append({**named, "lr": float(rate.value)})
            reader.link(path, rate, lambda view, path=path: view[path])


def _length(reader: Reader, usual: _Usual, times: int) -> None:
    """Enter the run; times: samples that one row of the data becomes in an epoch."""
    episodes = reader.whole("total_episodes", default=None, low=1)
    if episodes.value:
        often = reader.whole("num_ppo_epochs", default=4, low=1).value
        reader.span("length", episodes, "samples", times=often, least=1)
        reader.inert("num_train_epochs", "max_steps")
        reader.unread("num_mini_batches", "updates of a rollout; a rollout has as many batches, at any batch")
        return
    steps = reader.number("max_steps", "max_train_steps", default=-1, low=-1)
    epochs = reader.number("num_train_epochs", "num_epochs", default=usual.epochs)
    if steps.value > 0:
        reader.span("length", steps, "steps", least=1)
        reader.inert("num_train_epochs", "num_epochs")
    elif times == 1:
        reader.span("length", epochs, "epochs")
    else:
        reader.draft.data_size = reader.data_size("an epoch is a pass over the prompts") * times
        reader.span("length", epochs, "epochs")


def _schedule(reader: Reader, usual: _Usual) -> None:
    draft = reader.draft
    steps, share = (
        reader.number("warmup_steps", "num_warmup_steps", default=0),
        reader.number("warmup_ratio", default=0.0),
    )
    if usual is _AXOLOTL and not steps.said and not share.said:
        steps = Found(("warmup_steps",), 0, "default")
        reader.note(
            "axolotl warms up for min(100, 3% of the run) where the file is silent; state warmup_steps to plan it"
        )
        reader.ask("warmup_steps", "axolotl warms up for min(100, 3% of the run) steps where neither is given", 0)
        steps = reader.number("warmup_steps", "num_warmup_steps", default=0)
    if _counted(reader, steps):
        reader.span("warmup", steps, "steps", least=1)
    elif steps.value > 0:
        reader.span("warmup", steps, "length")
    elif share.value:
        reader.span("warmup", share, "length")
    kind = reader.word("lr_scheduler_type", "lr_scheduler", default=usual.schedule)
    word = str(kind.value).lower().removeprefix("schedulertype.")
    if word == "linear":
        draft.rest = [{"by": "linear", "to": 0.0}]
    elif word == "cosine":
        draft.rest = [{"by": "cosine", "to": _least(reader)}]
    elif word == "cosine_with_restarts":
        restarts(reader, reader.whole("lr_scheduler_kwargs.num_cycles", default=1, low=1))
    elif word in ("constant", "constant_with_warmup"):
        draft.rest = [{"by": "hold"}]
        if word == "constant" and "warmup" in draft.spans:
            reader.note("lr_scheduler_type = constant has no warm-up, so that the stated one does not act")
            del draft.spans["warmup"]
            reader.links[:] = [link for link in reader.links if link.path != "schedule.warmup"]
    elif word in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        draft.rest = [{"by": "cosine", "to": _least(reader)}]
    elif word == "inverse_sqrt":
        draft.rest = [{"by": "inverse", **({} if "warmup" in draft.spans else {"scale": "10000 steps"})}]
        if "warmup" not in draft.spans:
            reader.unread("lr_scheduler_type", "inverse_sqrt without a warm-up takes 10,000 steps as its time scale")
    elif word == "polynomial":
        end = reader.number("lr_scheduler_kwargs.lr_end", default=1e-7)
        power = reader.number("lr_scheduler_kwargs.power", default=1.0)
        share_left = end.value / draft.values["lr"]
        how = {"by": "linear"} if power.value == 1 else {"by": "power", "p": power.value}
        draft.rest = [{**how, "to": share_left}]
        if end.said:
            reader.link("curves.lr", end, lambda view: view["lr"] * share_left, words="share of the peak kept")
        elif share_left > 1e-12:
            reader.note("the end of the polynomial schedule is the trainer's fixed 1e-7, not a share of the rate")
    elif word in ("warmup_stable_decay", "wsd"):
        _stable(reader)
    else:
        why = f"{kind.name} = {kind.value!r} is a schedule of its own here"
        chosen = reader.ask("schedule", f"{why}; which of linear, cosine, constant is nearest?", "cosine",
                            "--set schedule=cosine")  # fmt: skip
        _least(reader)
        draft.rest = [{"by": {"constant": "hold"}.get(chosen, chosen), **({} if chosen == "constant" else {"to": 0.0})}]
    reader.inert("lr_scheduler_kwargs.num_cycles", "lr_scheduler_kwargs.min_lr", "lr_scheduler_kwargs.min_lr_rate")


def _least(reader: Reader) -> float:
    """Return the share of the peak at which a cosine ends."""
    share = reader.number("lr_scheduler_kwargs.min_lr_rate", "cosine_min_lr_ratio", default=None)
    if share.value is not None:
        return share.value
    least = reader.number("lr_scheduler_kwargs.min_lr", default=None)
    if least.value is None:
        return 0.0
    part = least.value / reader.draft.values["lr"]
    reader.link("curves.lr", least, lambda view: view["lr"] * part, words="share of the peak kept")
    return part


def _stable(reader: Reader) -> None:
    draft = reader.draft
    decay = reader.number("lr_scheduler_kwargs.num_decay_steps",
                          ask="warmup_stable_decay needs the steps of its decay")  # fmt: skip
    ratio = reader.number("lr_scheduler_kwargs.min_lr_ratio", default=0.0)
    word = str(reader.word("lr_scheduler_kwargs.decay_type", default="cosine").value)
    reader.span("decay", decay, "steps", least=1)
    stable = reader.number("lr_scheduler_kwargs.num_stable_steps", default=None)
    by = {"1-sqrt": "minus-sqrt"}.get(word, word)
    if stable.value is not None:
        reader.span("stable", stable, "steps")
    else:
        left = draft.samples("length") - draft.samples("decay")
        left -= draft.samples("warmup") if "warmup" in draft.spans else 0
        draft.spans["stable"] = f"{max(left, 0.0):.17g} {draft.unit}"
    draft.rest = [{"span": "stable", "by": "hold"}, {"span": "decay", "by": by, "to": ratio.value}]
    draft.rest.append({"by": "hold"})


FORMAT = Format(
    "hf",
    "Hugging Face TrainingArguments (also LLaMA-Factory, axolotl, TRL)",
    {
        "per_device_train_batch_size": 4,
        "per_gpu_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
        "lr_scheduler_type": 1,
        "learning_rate": 1,
        "base_model": 2,
        "micro_batch_size": 2,
        "num_epochs": 1,
        "adam_beta2": 1,
        "max_grad_norm": 1,
        "not:train_batch_size": 3,
        "not:parallelism": 9,
    },
    read,
    "transformers@00349ae8 training_args.py; axolotl utils/schemas/training.py; LLaMA-Factory@ff6d4d1; "
    "ms-swift@0037257 swift/trainers/arguments.py (2026-11)",
)
