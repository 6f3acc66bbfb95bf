"""MAE and ConvNeXt V2 (per GPU, accumulating, rate at 256) and MoCo v3 (whole batch, rate at 256, momentum encoder)."""

from dataclasses import dataclass

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices, on_nodes
from isobatch.formats.stacks.words import (
    betas,
    clip,
    global_batch,
    optimizer,
    per_device_batch,
    share_of_decay,
    share_of_peak,
)


@dataclass(frozen=True)
class _Job:
    """What one of MAE's three scripts takes where its command is silent."""

    code: str
    optimizer: str
    beta2: float
    base: float
    epochs: int
    warmup: int
    least: float


_TRAIN = _Job("main_pretrain.py's AdamW", "adamw", 0.95, 1e-3, 400, 40, 0.0)
_TUNE = _Job("main_finetune.py's AdamW", "adamw", 0.999, 1e-3, 50, 5, 1e-6)
_FCMAE_TUNE = _Job("main_finetune.py's AdamW", "adamw", 0.999, 5e-4, 100, 20, 1e-6)
_UNSURE = "copies of ConvNeXt V2's script have other defaults"
_PROBE = _Job("main_linprobe.py's LARS", "lars", 0.999, 0.1, 90, 10, 0.0)


def read_mae(reader: Reader) -> None:
    """Read main_pretrain.py's, main_finetune.py's and main_linprobe.py's arguments."""
    draft = reader.draft
    program = reader.source.extra.get("program", "")
    probed = "linprobe" in program
    tuned = not probed and ("finetune" in program or reader.has("finetune", "layer_decay"))
    convnext = reader.has("update_freq") and not reader.has("accum_iter")  # ConvNeXt V2, by MAE's rule
    job = _PROBE if probed else _FCMAE_TUNE if tuned and convnext else _TUNE if tuned else _TRAIN
    unsure = _UNSURE if convnext and not tuned else ""
    micro = reader.whole("batch_size", default=None if unsure else 64, ask=unsure, low=1)
    passes = reader.whole("update_freq" if convnext else "accum_iter", default=1, low=1)
    told = launched_devices(reader)
    if "submitit" in program:
        nodes, each = reader.whole("nodes", default=2, low=1), reader.whole("ngpus", default=8, low=1)
        told = nodes.value * each.value
        if reader.answers.get("devices", told) == told:
            on_nodes(reader, each, nodes)
    per_device_batch(reader, micro, passes, reader.devices(default=told))
    size = draft.values["batch"]
    reader.data_size("its epochs are passes over the data")
    optimizer(reader, Found(("optimizer",), job.optimizer, "default"))
    lr = reader.number("lr", default=None)
    base = reader.number("blr", default=None if unsure and lr.value is None else job.base, ask=unsure)
    if lr.value is not None:
        reader.say("lr", lr)
        reader.inert("blr")
    else:
        reader.say("lr", base, base.value * size / 256, words="blr * batch/256",
                   back=lambda view: view["lr"] * 256 / view.batch)  # fmt: skip
        reader.rule("linear", "blr", "blr * batch/256, accumulation counted", 256)
        reader.reference = 4096
    stated = convnext and tuned and reader.find("opt_betas").value
    moments = (("beta1", 0.9), ("beta2", job.beta2)) if not stated else ()
    for path, value in (("momentum", 0.9),) if probed else (*moments, ("eps", 1e-8)):
        reader.fix(path, value, job.code)
    if stated:
        betas(reader, *reader.pair("opt_betas"))
    _decay(reader, None if unsure else 0.0 if probed else 0.05, unsure)
    clip(reader, reader.number("clip_grad", default=None))
    reader.span("length", reader.number("epochs", default=None if unsure else job.epochs, ask=unsure), "epochs")
    reader.span("warmup", reader.number("warmup_epochs", default=None if unsure else job.warmup, ask=unsure), "epochs")
    if convnext and tuned and reader.flag("model_ema").value:
        reader.say("ema", reader.number("model_ema_decay", default=0.9999))
    least = reader.number("min_lr", default=job.least)
    end = share_of_peak(reader, "schedule.final", least) if least.value else 0.0
    draft.rest = [{"by": "cosine", "to": end}]
    if reader.number("layer_decay", default=None).value:
        reader.note("layer_decay is a ratio of rates between layers, which no batch moves")
    reader.inert("mask_ratio norm_pix_loss drop_path smoothing nodes ngpus start_epoch model_ema_eval layer_decay_type")


def _decay(reader: Reader, usual: float | None, unsure: str) -> None:
    """Enter the weight decay, and where it goes by a cosine."""
    start = reader.number("weight_decay", default=usual, ask=unsure)
    reader.say("weight_decay", start)
    end = reader.number("weight_decay_end", default=None)
    if end.value is not None and end.value != start.value and start.value:
        reader.draft.curves["weight_decay"] = [{"by": "cosine", "to": share_of_decay(reader, end)}]


def read_moco(reader: Reader) -> None:
    """Read main_moco.py's arguments (v3)."""
    draft = reader.draft
    size = reader.whole("batch_size", "b", default=4096, low=1)
    told = launched_devices(reader) or _spawned(reader)
    global_batch(reader, size, reader.devices(default=told, assume=1))
    reader.data_size("its epochs are passes over the data")
    name = optimizer(reader, reader.word("optimizer", default="lars"))
    lr = reader.number("learning_rate", "lr", default=0.6)
    reader.say(
        "lr", lr, lr.value * size.value / 256, words="lr * batch/256", back=lambda view: view["lr"] * 256 / view.batch
    )
    reader.rule("linear", "main_moco.py (always)", "lr * batch/256", 256)
    reader.reference = 4096
    if name == "lars":
        reader.say("momentum", reader.number("momentum", default=0.9))
    else:
        for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
            reader.fix(path, value, "torch's AdamW, which main_moco.py leaves at its default")
        reader.inert("momentum")
    reader.say("weight_decay", reader.number("weight_decay", "wd", default=1e-6))
    reader.span("length", reader.number("epochs", default=100), "epochs")
    reader.span("warmup", reader.number("warmup_epochs", default=10), "epochs")
    draft.rest = [{"by": "cosine", "to": 0.0}]
    reader.say("ema", reader.number("moco_m", default=0.99))
    if reader.flag("moco_m_cos").value:
        draft.values["ema_final"] = 1.0
    reader.note("batch norm of the projector is synchronised; negatives are those of the whole batch, so that another "
                "batch is another loss")  # fmt: skip
    reader.inert(
        "moco_t", "stop_grad_conv1", "moco_m_cos", "start_epoch", "moco_dim", "moco_mlp_dim", "world_size", "rank"
    )


def _spawned(reader: Reader) -> int | None:
    """Return the GPUs of --multiprocessing-distributed: nodes x 8 where nodes are said."""
    world = reader.find("world_size").value
    return world * 8 if isinstance(world, int) and world > 0 and reader.has("multiprocessing_distributed") else None


MAE = Format(
    "mae",
    "MAE (main_pretrain.py, main_finetune.py)",
    {
        "blr": 5,
        "accum_iter": 3,
        "mask_ratio": 1,
        "program:main_pretrain.py": 3,
        "program:main_finetune.py": 3,
        "program:submitit_pretrain.py": 3,
        "program:submitit_finetune.py": 3,
    },
    read_mae,
    "facebookresearch/mae@efb2a80 main_pretrain.py 40-180",
)
MOCO = Format(
    "mocov3",
    "MoCo v3 (main_moco.py)",
    {"program:main_moco.py": 3, "moco_m": 3, "moco_m_cos": 2, "moco_mlp_dim": 1, "moco_t": 1, "not:moco_k": 9},
    read_moco,
    "facebookresearch/moco-v3 main_moco.py 65-191",
    dashes=True,
)
