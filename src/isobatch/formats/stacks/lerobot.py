"""lerobot: draccus flags or train_config.json; a batch per process, presets that each policy brings along."""

from dataclasses import dataclass
from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, moments, optimizer, per_device_batch, periods

_INERT = (
    "dataset env eval wandb peft rename_map seed num_workers log_freq tolerance_s job_name "
    "output_dir resume prefetch_factor save_checkpoint use_policy_training_preset max_eval_samples sample_weighting"
)
_TRAINED = ("optimizer_", "scheduler_", "grad_clip", "lr")


@dataclass(frozen=True)
class _Preset:
    """What a policy trains with unless the file says otherwise."""

    name: str
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 10.0
    warmup: int = 0
    decay: int = 0
    end: float = 0.0


_PRESETS = {
    "act": _Preset("adamw", 1e-5, weight_decay=1e-4),
    "diffusion": _Preset("adam", 1e-4, (0.95, 0.999), 1e-6, warmup=500),
    "smolvla": _Preset("adamw", 1e-4, (0.9, 0.95), 1e-10, warmup=1000, decay=30_000, end=2.5e-6),
    "pi0": _Preset("adamw", 2.5e-5, (0.9, 0.95), 0.01, 1.0, 1000, 30_000, 2.5e-6),
    "pi05": _Preset("adamw", 2.5e-5, (0.9, 0.95), 0.01, 1.0, 1000, 30_000, 2.5e-6),
}


def read(reader: Reader) -> None:
    """Read the flags, or the saved config."""
    alone = 1 if reader.source.kind == "command" and not reader.source.extra["launcher"] else None
    told = launched_devices(reader) or alone
    micro = reader.whole("batch_size", default=8, low=1)
    per_device_batch(reader, micro, None, reader.devices(default=told))
    reader.span("length", reader.whole("steps", default=100_000, low=1), "steps", least=1)
    kind = str(reader.word("policy.type", default="").value or "")
    used = reader.flag("use_policy_training_preset", default=True).value
    preset = _PRESETS.get(kind)
    if not used or (preset is None and reader.table("optimizer") and not _states(reader)):
        _stated(reader)
    else:
        _preset(reader, kind, preset)
        if reader.source.kind == "command" and (reader.table("optimizer") or reader.table("scheduler")):
            reader.note("optimizer.* and scheduler.* do not act: the policy's preset overwrites them unless "
                        "use_policy_training_preset is false")  # fmt: skip
        reader.inert("optimizer", "scheduler")
    periods(reader, {"save_freq": "checkpoints", "eval_steps": "evaluation", "eval_freq": "trials",
                     "env_eval_freq": "trials_in_env"})  # fmt: skip
    quiet = (key for key in reader.table("policy") if not key.startswith(_TRAINED) and "ema" not in key.split("_"))
    reader.inert(_INERT, *(f"policy.{key}" for key in quiet))


def _states(reader: Reader) -> bool:
    """Return whether the policy's own table has its rate, which overrules a saved optimizer."""
    return reader.has("policy.optimizer_lr")


def _preset(reader: Reader, kind: str, preset: _Preset | None) -> None:
    where = f"the preset of policy.type = {kind or 'unknown'}"
    usual = preset or _Preset("adamw", 1e-4)
    name = usual.name
    if preset is None:
        reader.draft.values["name"] = name
        lr = reader.number("policy.optimizer_lr", default=None, ask=f"{where} is not known here")
        reader.note(f"{where} is not known here: AdamW is taken; --set optimizer=NAME says another one")
        optimizer(reader, Found(("policy", "optimizer"), name, "default"))
    else:
        optimizer(reader, Found(("policy", "optimizer"), name, "default"))
        lr = reader.number("policy.optimizer_lr", default=usual.lr)
    reader.say("lr", lr)
    one, two = reader.pair("policy.optimizer_betas", default=usual.betas)
    if kind == "act" and not one.said:
        for path, found in (("beta1", one), ("beta2", two)):
            reader.fix(path, found.value, "torch's AdamW, which ACT leaves at its default")
        reader.fix("eps", 1e-8, "torch's AdamW, which ACT leaves at its default")
    else:
        reader.say("beta1", one)
        reader.say("beta2", two)
        reader.say("eps", reader.number("policy.optimizer_eps", default=1e-8))
    reader.say("weight_decay", reader.number("policy.optimizer_weight_decay", default=usual.weight_decay))
    if reader.has("policy.optimizer_lr_backbone") or kind == "act":
        inner = reader.number("policy.optimizer_lr_backbone", default=1e-5)
        if inner.value:
            reader.draft.groups.append({"name": "backbone", "match": "backbone", "lr": float(inner.value)})
            reader.link("groups[0].lr", inner, lambda view: view["groups[0].lr"])
    norm = reader.number("policy.optimizer_grad_clip_norm", "policy.grad_clip_norm", default=usual.clip)
    clip(reader, norm)
    warm = reader.whole("policy.scheduler_warmup_steps", default=usual.warmup)
    falls = reader.whole("policy.scheduler_decay_steps", default=usual.decay)
    end = reader.number("policy.scheduler_decay_lr", default=usual.end)
    if kind == "diffusion":
        _warm(reader, warm)
        reader.draft.rest = [{"by": "cosine", "to": 0.0}]
        reader.inert("policy.scheduler_name", "policy.beta_schedule", "policy.num_train_timesteps")
    elif falls.value:
        _cosine(reader, warm, falls, end)
    else:
        _warm(reader, warm)
        reader.draft.rest = [{"by": "hold"}]


def _stated(reader: Reader) -> None:
    name = optimizer(reader, reader.word("optimizer.type", default="adamw"))
    reader.say("lr", reader.number("optimizer.lr", default=1e-3))
    reader.say("weight_decay", reader.number("optimizer.weight_decay", default=0.01 if name == "adamw" else 0.0))
    moments(reader, name, "optimizer")
    clip(reader, reader.number("optimizer.grad_clip_norm", default=10.0))
    reader.inert(*(f"policy.{key}" for key in reader.table("policy")))
    warm = reader.whole("scheduler.num_warmup_steps", default=0)
    kind = str(reader.word("scheduler.type", default="").value or "")
    if kind == "cosine_decay_with_warmup":
        falls = reader.whole("scheduler.num_decay_steps", ask="its cosine needs the steps over which it falls")
        end = reader.number("scheduler.decay_lr", default=0.0)
        top = reader.number("scheduler.peak_lr", default=None)
        if top.value:
            reader.link("curves.lr", top, lambda view: view["lr"] * top.value / reader.draft.values["lr"],
                        words="share of the peak kept")  # fmt: skip
        _cosine(reader, warm, falls, end)
        return
    _warm(reader, warm)
    shape = str(reader.word("scheduler.name", default="cosine").value) if kind == "diffuser" else ""
    reader.draft.rest = [{"by": shape, "to": 0.0} if shape in ("cosine", "linear") else {"by": "hold"}]
    if kind not in ("", "diffuser"):
        reader.unread("scheduler.type", f"{kind} has a course of its own; it is left as it is")


def _warm(reader: Reader, warm: Found) -> None:
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)


def _cosine(reader: Reader, warm: Found, falls: Found, end: Found) -> None:
    """Enter a cosine over some steps; in a run that is shorter the trainer shrinks it, warm-up and all, to the run."""
    draft, size = reader.draft, reader.draft.values["batch"]
    part = end.value / draft.values["lr"] if draft.values["lr"] else 0.0
    reader.link("schedule.final", end, lambda view: view["lr"] * part, words="share of the peak kept")
    steps = draft.samples("length") / size
    shrunk = falls.value > steps
    scale = steps / falls.value if shrunk else 1.0
    for name, found in (("warmup", warm), ("decayed", falls)):
        if not found.value:
            continue
        draft.spans[name] = f"{found.value * scale * size:.17g} samples"
        words = f"shrunk to {scale:.3g} of it" if shrunk else ""
        reader.link(name, found, _grown(name, scale), words=words, whole=True, least=1)
    warmed = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    left = draft.samples("decayed") - warmed
    draft.spans["fall"] = f"{max(left, 0.0):.17g} samples"
    draft.rest = [{"span": "fall", "by": "cosine", "to": part}, *([] if shrunk else [{"by": "hold"}])]
    if shrunk:
        reader.note("the run is shorter than the cosine, so the trainer shrinks warm-up and cosine to it by itself")
    else:
        reader.note("its cosine counts from step 0, so that the warm-up ends a little below the peak")


def _grown(name: str, scale: float) -> Any:
    return lambda view: view.steps(name) / scale


FORMAT = Format(
    "lerobot",
    "lerobot",
    {
        "program:lerobot-train": 6,
        "program:lerobot": 4,
        "policy.type": 3,
        "policy.optimizer_lr": 3,
        "dataset.repo_id": 2,
        "steps": 1,
        "use_policy_training_preset": 2,
    },
    read,
    "huggingface/lerobot src/lerobot/configs/train.py, optim/, policies/*/configuration_*.py (2026-11)",
)
