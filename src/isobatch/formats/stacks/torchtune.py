"""torchtune: components by name, a batch per device, warm-up in steps, epochs or max_steps_per_epoch."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, moments, optimizer, per_device_batch, periods

_INERT = (
    "optimizer._component_ lr_scheduler._component_ log_every_n_steps optimizer.fused "
    "lr_scheduler.num_cycles profiler loss optimizer_in_bwd metric_logger checkpointer tokenizer dataset model compile"
)


def read(reader: Reader) -> None:
    """Read a recipe's YAML."""
    draft = reader.draft
    micro = reader.whole("batch_size", ask="samples per device and pass", low=1)
    alone = 1 if str(reader.source.extra.get("program", "")).endswith("single_device") else None
    passes = reader.whole("gradient_accumulation_steps", default=1, low=1)
    per_device_batch(reader, micro, passes, reader.devices(default=launched_devices(reader) or alone))
    name = optimizer(reader, reader.word("optimizer._component_", default="torch.optim.AdamW"))
    reader.say("lr", reader.number("optimizer.lr", ask="the learning rate"))
    reader.say("weight_decay", reader.number("optimizer.weight_decay", default=0.01 if name == "adamw" else 0.0))
    moments(reader, name, "optimizer")
    clip(reader, reader.number("clip_grad_norm", default=None))
    epochs, most = reader.number("epochs", default=1), reader.whole("max_steps_per_epoch", default=None)
    if most.value:
        length = most.value
        draft.spans["epoch"] = f"{length} steps"
        reader.link("epoch", most, lambda view: view.steps("epoch"), words="steps of an epoch", whole=True, least=1)
        draft.spans["length"] = f"{epochs.value * length:.17g} steps"
        reader.link("length", epochs, lambda view: view.samples("length") / view.samples("epoch"))
    else:
        reader.span("length", epochs, "epochs")
    warm = reader.whole("lr_scheduler.num_warmup_steps", default=None)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    kind = str(reader.word("lr_scheduler._component_", default="").value or "")
    draft.rest = [{"by": "cosine", "to": 0.0} if "cosine" in kind else {"by": "hold"}]
    if kind and "cosine" not in kind:
        reader.unread("lr_scheduler", f"{kind} is not known here")
    if kind and not warm.said:
        reader.span("warmup", Found(warm.key, 100, "default"), "steps", least=1)
    if reader.find("dataset.packed").value:
        reader.note("samples are packed sequences here: the data size is the number of packs, and a batch counts packs")
    periods(reader, {"save_every_n_steps": "checkpoints", "run_val_every_n_steps": "evaluation"})
    reader.inert(_INERT)


FORMAT = Format(
    "torchtune",
    "torchtune",
    {"optimizer._component_": 4, "lr_scheduler._component_": 2, "model._component_": 2, "max_steps_per_epoch": 1},
    read,
    "meta-pytorch/torchtune recipes/configs (2026-11)",
)
