"""diffusers' example scripts: a batch per process, a scheduler stepped once per process, a ramped average."""

from dataclasses import dataclass
from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, optimizer, per_device_batch, periods, restarts

_INERT = (
    "snr_gamma noise_offset lr_num_cycles resolution rank use_8bit_adam use_ema scale_lr lr_scheduler "
    "validation_epochs offload_ema foreach_ema num_train_epochs max_train_steps checkpoints_total_limit "
    "prodigy_beta3 prodigy_decouple lr_power pretrained_teacher_model"
)


@dataclass(frozen=True)
class _Script:
    """What an example script takes where its command is silent."""

    micro: int = 16
    lr: float = 1e-4
    epochs: int = 100
    schedule: str = "constant"
    beta1: float = 0.9
    decay: float = 1e-2
    ramped: bool = False
    target: float | None = None


_SCRIPTS = {
    "train_unconditional": _Script(16, 1e-4, 100, "cosine", 0.95, 1e-6, ramped=True),
    "train_lcm_distill_sd": _Script(16, 1e-4, 100, target=0.95),
    "train_dreambooth_lora": _Script(4, 1e-4, 1),
    "train_dreambooth": _Script(4, 5e-6, 1),
    "train_controlnet": _Script(4, 5e-6, 1),
    "train_text_to_image": _Script(),
}
"""First that fits the program's name; from the scripts' own argparse defaults."""


def read(reader: Reader) -> None:
    """Read the flags, on top of what the script takes where they are silent."""
    draft, program = reader.draft, reader.source.extra.get("program", "")
    script = next((script for word, script in _SCRIPTS.items() if word in program), _Script())
    micro = reader.whole("train_batch_size", default=script.micro, low=1)
    passes = reader.whole("gradient_accumulation_steps", default=1, low=1)
    devices = reader.devices(default=launched_devices(reader))
    per_device_batch(reader, micro, passes, devices)
    size = draft.values["batch"]
    optimizer(reader, reader.word("optimizer", default="adamw"))
    lr = reader.number("learning_rate", default=script.lr)
    if reader.flag("scale_lr").value:
        reader.say("lr", lr, lr.value * size, words="learning_rate * batch", back=lambda view: view["lr"] / view.batch)
        reader.rule("linear", "--scale_lr", "learning_rate * accumulation * batch * GPUs", 1)
        reader.doubt("--scale_lr multiplies the rate by the whole batch (reference 1), with AdamW; check that the rate "
                     "was not scaled by hand as well")  # fmt: skip
    else:
        reader.say("lr", lr)
    reader.say("beta1", reader.number("adam_beta1", default=script.beta1))
    reader.say("beta2", reader.number("adam_beta2", default=0.999))
    reader.say("eps", reader.number("adam_epsilon", default=1e-8))
    reader.say("weight_decay", reader.number("adam_weight_decay", default=script.decay))
    clip(reader, reader.number("max_grad_norm", default=1.0))
    steps = reader.whole("max_train_steps", default=None)
    epochs = reader.number("num_train_epochs", "num_epochs", default=script.epochs)
    if steps.value:
        reader.span("length", steps, "steps", least=1)
        reader.inert("max_train_samples")
    else:
        reader.span("length", epochs, "epochs")
    _schedule(reader, script, passes.value)
    _groups(reader)
    _average(reader, script)
    periods(reader, {"checkpointing_steps": "checkpoints", "validation_steps": "evaluation"})
    reader.inert(_INERT)


def _schedule(reader: Reader, script: _Script, passes: int) -> None:
    draft = reader.draft
    kind = str(reader.word("lr_scheduler", default=script.schedule).value)
    warm = reader.whole("lr_warmup_steps", default=500)
    if script.ramped or script.target is not None:
        _by_process(reader, script, kind, warm, passes)
    elif warm.value and kind != "constant":
        reader.span("warmup", warm, "steps", least=1)
    elif warm.value and warm.said:
        reader.note("lr_scheduler = constant has no warm-up; lr_warmup_steps does not act")
    if kind != "constant" and not script.ramped and script.target is None:
        reader.note("the script gives the scheduler lr_warmup_steps x num_processes and Accelerate steps it as often: "
                    "the flag counts optimizer steps")  # fmt: skip
    if kind == "cosine_with_restarts" and script.target is None:
        restarts(reader, reader.whole("lr_num_cycles", default=1, low=1), "fall" if "fall" in draft.spans else None)
        return
    by: dict[str, Any] = {"by": "hold"}
    if kind in ("linear", "cosine", "polynomial") and script.target is None:
        power = reader.number("lr_power", default=1.0).value if kind == "polynomial" else 1.0
        by = {"by": "linear" if kind == "polynomial" else kind, "to": 0.0}
        by = by if power == 1 else {"by": "power", "p": float(power), "to": 0.0}
    elif not kind.startswith("constant"):
        own = "a course of its own"
        if script.target is not None:
            own = "num_processes steps an update, which the script does not allow for"
        reader.unread("lr_scheduler", f"{kind} has {own}; it is left as it is")
    draft.rest = [{"span": "fall", **by}] if "fall" in draft.spans and by["by"] != "hold" else [by]


def _by_process(reader: Reader, script: _Script, kind: str, warm: Found, passes: int) -> None:
    """Enter a warm-up that Accelerate passes num_processes times as fast, as a script leaves it.

    train_unconditional.py gives its scheduler as many steps as passes, so that the curve has run 1/n of its course when
    a run with n passes an update ends.
    """
    draft = reader.draft
    devices, times = draft.values["devices"], passes if script.ramped else 1
    if warm.value and kind != "constant":
        draft.spans["warmup"] = f"{warm.value * times / devices:.17g} steps"
        words = "Accelerate steps the scheduler num_processes times an update"
        reader.link("warmup", warm, lambda view: view.steps("warmup") * view.devices / (
            view.accumulation if script.ramped else 1), words=words, whole=True, least=1)  # fmt: skip
    if script.ramped and not kind.startswith("constant"):
        reader.fix("schedule.passes", passes, "what train_unconditional.py's num_training_steps is to be divided by",
                   back=lambda view: view.accumulation)  # fmt: skip
        if passes > 1:
            held = draft.samples("warmup") if "warmup" in draft.spans else 0.0
            draft.spans["fall"] = f"{draft.samples('length') * passes - held:.17g} samples"


def _groups(reader: Reader) -> None:
    """Enter the text encoder's own rate and decay, where it is trained."""
    draft = reader.draft
    rate, decay = reader.number("text_encoder_lr"), reader.number("adam_weight_decay_text_encoder")
    if not reader.flag("train_text_encoder").value or not rate.value:
        return
    path = f"groups[{len(draft.groups)}]"
    draft.groups.append({"name": "text-encoder", "match": "text_encoder"})
    for field, found in (("lr", rate), ("weight_decay", decay)):
        if found.value is not None:
            draft.groups[-1][field] = float(found.value)
            reader.link(f"{path}.{field}", found, lambda view, where=f"{path}.{field}": view[where])


def _average(reader: Reader, script: _Script) -> None:
    draft = reader.draft
    if script.target is not None:
        reader.say("ema", reader.number("ema_decay", default=script.target))
        reader.note("the average is the target of the distillation, which the loss sees")
    elif reader.flag("use_ema").value and script.ramped:
        reader.say("ema", reader.number("ema_max_decay", default=0.9999))
        gamma, power = reader.number("ema_inv_gamma", default=1.0), reader.number("ema_power", default=0.75)
        draft.average["ramp"] = {"by": "power", "inv_gamma": float(gamma.value), "power": float(power.value)}
        reader.link("ema.ramp", gamma, lambda view: gamma.value * view.kappa ** ((1 - power.value) / power.value),
                    words="kappa**((1-p)/p), the nearest that it can say")  # fmt: skip
    elif reader.flag("use_ema").value:
        reader.fix("ema", 0.9999, "the script's EMAModel, which no flag sets")
        draft.average["ramp"] = {"by": "tensorflow"}


FORMAT = Format(
    "diffusers",
    "diffusers example scripts",
    {
        "program:train_text_to_image": 4,
        "program:train_dreambooth": 4,
        "program:train_controlnet": 4,
        "program:train_lcm_distill": 4,
        "program:train_unconditional": 4,
        "pretrained_model_name_or_path": 3,
        "train_batch_size": 2,
        "max_train_steps": 1,
        "lr_warmup_steps": 1,
        "adam_weight_decay": 1,
        "scale_lr": 1,
        "not:zero_optimization": 9,
    },
    read,
    "huggingface/diffusers examples/text_to_image/train_text_to_image.py (2026-11)",
)
