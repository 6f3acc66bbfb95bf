"""diffusers' example scripts: a batch per process, a scheduler stepped once per process, a ramped average."""

from dataclasses import dataclass

from isobatch.formats.format import Format
from isobatch.formats.reader import Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, optimizer, per_device_batch, periods

_INERT = (
    "snr_gamma noise_offset lr_num_cycles resolution rank use_8bit_adam use_ema scale_lr lr_scheduler "
    "validation_epochs offload_ema foreach_ema num_train_epochs max_train_steps checkpoints_total_limit "
    "prodigy_beta3 prodigy_decouple"
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


_SCRIPTS = {
    "train_unconditional": _Script(16, 1e-4, 100, "cosine", 0.95, 1e-6, ramped=True),
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
    else:
        reader.span("length", epochs, "epochs")
    kind = str(reader.word("lr_scheduler", default=script.schedule).value)
    warm = reader.whole("lr_warmup_steps", default=500)
    if warm.value and kind != "constant":
        reader.span("warmup", warm, "steps", least=1)
    elif warm.value and warm.said:
        reader.note("lr_scheduler = constant has no warm-up; lr_warmup_steps does not act")
    if kind != "constant" and not script.ramped:
        reader.note("the script gives the scheduler lr_warmup_steps x num_processes and Accelerate steps it as often: "
                    "the flag counts optimizer steps")  # fmt: skip
    by = {"linear": "linear", "cosine": "cosine", "polynomial": "linear"}.get(kind)
    draft.rest = [{"by": "hold"} if by is None else {"by": by, "to": 0.0}]
    if by is None and not kind.startswith("constant"):
        reader.unread("lr_scheduler", f"{kind} has a course of its own; it is left as it is")
    if reader.flag("use_ema").value and script.ramped:
        reader.say("ema", reader.number("ema_max_decay", default=0.9999))
        gamma, power = reader.number("ema_inv_gamma", default=1.0), reader.number("ema_power", default=0.75)
        draft.average["ramp"] = {"by": "power", "inv_gamma": float(gamma.value), "power": float(power.value)}
        reader.link("ema.ramp", gamma, lambda view: gamma.value * view.kappa ** ((1 - power.value) / power.value),
                    words="kappa**((1-p)/p), the nearest that it can say")  # fmt: skip
        reader.note("the script gives the scheduler lr_warmup_steps x gradient_accumulation_steps, and steps it with "
                    "each update: the warm-up is as many updates")  # fmt: skip
        if passes.value > 1 and warm.value:
            reader.unread("lr_warmup_steps", "the script multiplies it by the accumulation; check the warm-up by hand")
    elif reader.flag("use_ema").value:
        reader.fix("ema", 0.9999, "the script's EMAModel, which no flag sets")
        draft.average["ramp"] = {"by": "tensorflow"}
    periods(reader, {"checkpointing_steps": "checkpoints", "validation_steps": "evaluation"})
    reader.inert(_INERT)


FORMAT = Format(
    "diffusers",
    "diffusers example scripts",
    {
        "program:train_text_to_image": 4,
        "program:train_dreambooth": 4,
        "program:train_controlnet": 4,
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
