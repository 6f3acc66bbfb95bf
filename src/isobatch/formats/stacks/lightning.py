"""LightningCLI: trainer, optimizer and data as classes with init_args; the batch lives in the datamodule."""

import re

from isobatch.formats.acting import devices_of_a_model
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices, on_nodes
from isobatch.formats.stacks.words import (
    capped_epoch,
    clip,
    has,
    moments,
    optimizer,
    passes_of_each,
    per_device_batch,
    share_of_peak,
    usual_betas,
    usual_eps,
)
from isobatch.rules import OPTIMIZERS

_INERT = (
    "trainer.log_every_n_steps trainer.check_val_every_n_epoch trainer.logger "
    "trainer.gradient_clip_algorithm trainer.num_sanity_val_steps "
    "trainer.precision lr_scheduler.class_path data.init_args.num_workers "
    "trainer.strategy optimizer.class_path trainer.max_time model.class_path"
)
_HARMLESS = {
    "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "OnExceptionCheckpoint",
    "RichModelSummary", "RichProgressBar", "TQDMProgressBar", "Timer", "",
}  # fmt: skip
"""Lightning's own callbacks that no batch touches: they count epochs, or only look."""
_BATCH = (
    "data.init_args.batch_size",
    "data.batch_size",
    "data.init_args.train_batch_size",
    "model.init_args.batch_size",
)
_GIVEN = ("model.init_args.optimizer", "model.optimizer")
"""Where a module is given its optimizer: a class with arguments, or a word."""
_RATE = (
    "optimizer.init_args.lr",
    "optimizer.lr",
    "model.init_args.lr",
    "model.init_args.learning_rate",
    "model.lr",
    "model.learning_rate",
)


def read(reader: Reader) -> None:
    """Read the config."""
    draft = reader.draft
    micro = reader.whole(*_BATCH, ask="the batch per device stands in the user's datamodule", low=1)
    passes = reader.whole("trainer.accumulate_grad_batches", default=1, low=1)
    count, nodes = reader.find("trainer.devices").value, reader.whole("trainer.num_nodes", default=1, low=1)
    count = len(count) if isinstance(count, list) else count
    split = devices_of_a_model(reader.source.tree)
    stated = isinstance(count, int) and count > 0 and count * nodes.value % split == 0
    told = count * nodes.value // split if stated else launched_devices(reader)
    per_device_batch(reader, micro, passes, reader.devices('trainer.devices is not a number ("auto")', default=told))
    if isinstance(reader.find("trainer.devices").value, int) and told:
        on_nodes(reader, reader.whole("trainer.devices"), nodes, split)
    _optimizer(reader)
    clip(reader, reader.number("trainer.gradient_clip_val", default=None))
    if (
        draft.values.get("clip")
        and str(reader.find("trainer.gradient_clip_algorithm", default="norm").value) == "value"
    ):
        draft.values["clip_by"] = "value"
    most = reader.find("trainer.limit_train_batches").value
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:  # a share of the data stays as it is
        capped_epoch(reader, reader.whole("trainer.limit_train_batches"))
    _length(reader)
    _schedule(reader)
    _callbacks(reader)
    if reader.has("optimizer.init_args.lr") and reader.has("model.init_args.lr", "model.init_args.learning_rate"):
        reader.doubt("the model and the optimizer each have a rate; the optimizer's is taken, check which one acts")
    every = reader.find("trainer.val_check_interval", default=None)
    if isinstance(every.value, int) and not isinstance(every.value, bool) and every.value > 1:
        passes_of_each(reader, "evaluation", every)
    reader.inert(_INERT)


def _optimizer(reader: Reader) -> None:
    """Enter the optimizer: a class of the CLI, one that the module is given, or what the module's own code builds."""
    held = next((place for place in _GIVEN if reader.has(f"{place}.class_path")), None)
    word = next((place for place in _GIVEN if isinstance(reader.source.get(tuple(place.split("."))), str)), None)
    if held is None and word is None and not reader.table("optimizer"):
        _in_code(reader)
        return
    kind = f"{held}.class_path" if held is not None else word or "optimizer.class_path"
    name = optimizer(reader, reader.word("optimizer.class_path", kind, default="torch.optim.AdamW"))
    if held is not None and not reader.table("optimizer"):
        head = f"{held}.init_args"
        reader.say("lr", reader.number(f"{head}.lr", ask="the rate stands in the user's module"))
    else:
        reader.say("lr", reader.number(*_RATE, ask="the rate stands in the user's module"))
        head = "optimizer" if reader.has("optimizer.lr") else "optimizer.init_args"  # flags may leave init_args out
    if word is not None and not reader.table("optimizer"):
        _moments_in_code(reader, name)
        return
    usual = 0.01 if name == "adamw" else 0.0
    reader.say("weight_decay", reader.number(f"{head}.weight_decay", "model.init_args.weight_decay", default=usual))
    moments(reader, name, head)


def _in_code(reader: Reader) -> None:
    """Enter an optimizer that no key names: the module's configure_optimizers builds it."""
    why = "no key names the optimizer, which the module's own code builds; which one is it?"
    chosen = str(reader.ask("optimizer", why, "adamw", "--set optimizer=adamw"))
    name = optimizer(reader, Found(("optimizer",), chosen, "asked"))
    reader.say("lr", reader.number(*_RATE, ask="the rate stands in the user's module"))
    _moments_in_code(reader, name)


def _moments_in_code(reader: Reader, name: str) -> None:
    """Enter what the module takes of decay and moments; the rest is torch's default, which no key could say."""
    place = "model.init_args" if reader.table("model.init_args") else "model"
    where = "torch's default, unless the module's own code says another"
    decay = reader.number(f"{place}.weight_decay", f"{place}.wd", default=None)
    if decay.value is not None:
        reader.say("weight_decay", decay)
    else:
        reader.fix("weight_decay", 0.01 if name == "adamw" else 0.0, where)
    if has(name, "betas"):
        one, two = reader.number(f"{place}.beta1", default=None), reader.number(f"{place}.beta2", default=None)
        if reader.has(f"{place}.betas"):
            one, two = reader.pair(f"{place}.betas")
        eps = reader.number(f"{place}.eps", default=None)
        usual = (*usual_betas(name), usual_eps(name))
        for path, found, value in zip(("beta1", "beta2", "eps"), (one, two, eps), usual, strict=True):
            if found.value is not None:
                reader.say(path, found)
            elif path != "eps" or not OPTIMIZERS[name].mixes:
                reader.fix(path, value, where)
    if has(name, "momentum"):
        found = reader.number(f"{place}.momentum", default=None)
        if found.value is not None:
            reader.say("momentum", found)
        else:
            why = f"no key says the momentum of {name}, which the module's own code builds; what is it?"
            reader.fix("momentum", reader.ask("momentum", why, 0.9, "--set momentum=0.9"), where)
            reader.draft.rules["momentum"] = "keep"  # no key could say another one


def _length(reader: Reader) -> None:
    steps = reader.whole("trainer.max_steps", default=-1, low=-1)
    if steps.value > 0:
        reader.span("length", steps, "steps", least=1)
        most = reader.number("trainer.max_epochs", default=None, low=-1)
        if most.value and most.value > 0:
            reader.note("max_steps and max_epochs are both given: whichever comes first ends the run, and epochs stay")
        return
    epochs = reader.number("trainer.max_epochs", default=None, low=-1)
    if epochs.value is None or epochs.value <= 0:
        epochs = reader.number("max_epochs", ask="neither trainer.max_epochs nor trainer.max_steps is given")
    reader.span("length", epochs, "epochs")


def _schedule(reader: Reader) -> None:
    """The interval of a scheduler stands in code: its counts are asked for where they act."""
    draft = reader.draft
    kind = str(reader.word("lr_scheduler.class_path", default="").value or "").rsplit(".", 1)[-1]
    draft.rest = [{"by": "hold"}]
    warm = reader.number("model.init_args.warmup_steps", "model.warmup_steps", default=None)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    if kind == "CosineAnnealingLR":
        draft.rest = [{"by": "cosine", "to": _least(reader, "eta_min")}]
        reader.note("LightningCLI steps a scheduler once an epoch: T_max counts epochs, which stay")
        reader.inert("lr_scheduler.init_args")
    elif kind in ("ReduceLROnPlateau", ""):
        _least(reader, "min_lr")
        reader.inert("lr_scheduler.init_args")
    else:
        reader.unread("lr_scheduler.init_args", f"{kind}: its counts are epochs under LightningCLI, and steps where "
                      'the module says interval = "step"; then divide them by kappa')  # fmt: skip


def _least(reader: Reader, name: str) -> float:
    """Return the share of the peak below which a scheduler does not go."""
    least = reader.number(f"lr_scheduler.init_args.{name}", default=None)
    return share_of_peak(reader, "schedule.final", least) if least.value else 0.0


def _callbacks(reader: Reader) -> None:
    """Enter the callbacks that average weights, save by steps or change the batch; name what acts in unknown ones."""
    for index, item in enumerate(reader.items("trainer.callbacks")):
        place = f"trainer.callbacks.{index}"
        kind = str(item.get("class_path", "")).rsplit(".", 1)[-1] if isinstance(item, dict) else ""
        if re.search(r"E(?:MA|ma)(?![a-z])", kind):
            reader.say("ema", reader.number(f"{place}.init_args.decay", default=0.999))
            every = reader.whole(f"{place}.init_args.update_every_n_steps", default=1, low=1)
            reader.draft.average["every"] = every.value
            start = reader.whole(f"{place}.init_args.update_starting_at_step", default=None)
            if start.value:
                reader.span("ema_start", start, "steps", least=1)
                reader.draft.average["start"] = reader.draft.spans["ema_start"]
            if every.value > 1:
                reader.link("ema.every", every, lambda view, n=every.value: n, words="updates between averages, kept")
            reader.inert(f"{place}.class_path", f"{place}.init_args.device")
        elif kind in (
            "GradientAccumulationScheduler",
            "StochasticWeightAveraging",
            "WeightAveraging",
            "BatchSizeFinder",
        ):
            reader.unread(place, f"{kind} acts by a course of its own; it is left as it is")
        elif kind == "ModelCheckpoint":
            every = reader.whole(f"{place}.init_args.every_n_train_steps", default=None)
            if every.value:
                reader.span(f"checkpoints_{index}", every, "steps", least=1)
            reader.inert(place)
        elif kind in _HARMLESS:
            reader.inert(place)
        else:
            reader.inert(f"{place}.class_path")


FORMAT = Format(
    "lightning",
    "LightningCLI",
    {
        "trainer.max_epochs": 2,
        "trainer.accumulate_grad_batches": 2,
        "trainer.devices": 1,
        "optimizer.init_args": 2,
        "optimizer.class_path": 1,
        "data.init_args": 1,
        "trainer.gradient_clip_val": 1,
        "model.class_path": 1,
        "trainer.max_steps": 1,
        "not:train.global_batch_size": 4,
        "not:actor_rollout_ref": 9,
    },
    read,
    "Lightning-AI/pytorch-lightning@7f0c3436 trainer.py 102-120 (2026-07-20)",
)
