"""D-FINE, DEIM, RT-DETR: YAML with includes, one batch for all devices, groups by expressions, a ramped average."""

from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, global_batch, milestones, moments, optimizer, share_of_peak

_INERT = (
    "val_dataloader train_dataloader.dataset use_ema use_amp lr_scheduler.type scaler ema.type "
    "eval_spatial_size lr_warmup_scheduler.type optimizer.type HybridEncoder checkpoint_freq sync_bn "
    "print_freq eval_epoch_interval train_dataloader.collate_fn.base_size_repeat use_wandb "
    "DFINETransformer matcher train_dataloader.num_workers criterion DFINECriterion DEIMCriterion HGNetv2 "
    "ema.start DEIMTransformer RTDETRTransformer RTDETRTransformerv2 SetCriterion PResNet RTDETRCriterion "
    "RTDETRCriterionv2 train_dataloader.collate_fn.mixup_prob copyblend_epochs "
    "train_dataloader.collate_fn.mixup_epochs train_dataloader.collate_fn.stop_epoch "
    "train_dataloader.collate_fn.copyblend_epochs num_top_queries DINOv3STAs"
)


def read(reader: Reader) -> None:
    """Read the config with its includes."""
    draft = reader.draft
    size = reader.whole("train_dataloader.total_batch_size", default=None, low=1)
    if size.value is None and reader.has("train_dataloader.batch_size"):
        each = reader.whole("train_dataloader.batch_size", low=1)
        count = reader.devices()
        reader.accumulates = False
        draft.values |= {"batch": each.value * count, "devices": count, "micro": each.value}
        reader.link("micro", each, lambda view: view.micro, whole=True, least=1)
    else:
        if size.value is None:
            size = reader.whole("train_dataloader.total_batch_size", ask="images per step on all GPUs", low=1)
        global_batch(reader, size, reader.devices(assume=1))
    reader.data_size("its epochs are passes over the data")
    _optimizer(reader)
    epochs = reader.number("epoches", "epochs", "epoch", ask="epochs of the run")
    reader.span("length", epochs, "epochs")
    warm = reader.whole("lr_warmup_scheduler.warmup_duration", "warmup_iter", default=0)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    _schedule(reader)
    _average(reader)
    reader.inert(_INERT)


def _optimizer(reader: Reader) -> None:
    draft = reader.draft
    name = optimizer(reader, reader.word("optimizer.type", default="AdamW"))
    reader.say("lr", reader.number("optimizer.lr", ask="the learning rate"))
    reader.say("weight_decay", reader.number("optimizer.weight_decay", default=0.01 if name == "adamw" else 0.0))
    moments(reader, name, "optimizer")
    clip(reader, reader.number("clip_max_norm", default=None))
    for index, item in enumerate(reader.items("optimizer.params")):
        if not isinstance(item, dict) or not isinstance(item.get("params"), str):
            reader.unread(f"optimizer.params.{index}", "a group without a regular expression")
            continue
        reader.inert(f"optimizer.params.{index}.params")
        group: dict[str, Any] = {"name": f"params-{index}", "match": item["params"]}
        place = len(draft.groups)
        for field in ("lr", "weight_decay"):
            found = reader.number(f"optimizer.params.{index}.{field}", default=None)
            if found.value is not None:
                group[field] = float(found.value)
                if found.value:
                    reader.link(f"groups[{place}].{field}", found, _at(f"groups[{place}].{field}"))
        if len(group) > 2:
            draft.groups.append(group)


def _at(path: str) -> Any:
    return lambda view: view[path]


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    size = float(draft.data_size or 1)
    if reader.word("lrsheduler", default=None).value:
        _flat_cosine(reader, size)
        return
    kind = str(reader.word("lr_scheduler.type", default="MultiStepLR").value)
    draft.stair = None
    if kind == "MultiStepLR":
        marks = reader.find("lr_scheduler.milestones", default=[]).value
        gamma = reader.number("lr_scheduler.gamma", default=0.1)
        held = [
            mark * size for mark in (marks if isinstance(marks, list) else [marks]) if isinstance(mark, (int, float))
        ]
        milestones(reader, held, gamma.value)
    elif kind == "CosineAnnealingLR":
        least = reader.number("lr_scheduler.eta_min", default=0.0)
        end = share_of_peak(reader, "schedule.final", least) if least.value else 0.0
        draft.rest = [{"by": "cosine", "to": end}]
        reader.inert("lr_scheduler.T_max")
    elif kind == "OneCycleLR":
        reader.unread(
            "lr_scheduler", "OneCycleLR moves rate and momentum by steps of its own; set its total_steps by hand"
        )
    else:
        reader.unread("lr_scheduler", f"{kind} is not known here; it is left as it is")
    if draft.spans.get("warmup") and reader.has("lr_warmup_scheduler"):
        reader.note("warm-up is in iterations, the rest in epochs")


def _flat_cosine(reader: Reader, size: float) -> None:
    """DEIM: warm-up (quadratic), flat, cosine to lr_gamma, flat without augmentation."""
    draft = reader.draft
    gamma = reader.number("lr_gamma", default=0.5)
    flat, bare = reader.number("flat_epoch", default=0), reader.number("no_aug_epoch", default=0)
    total = draft.samples("length") / size
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    draft.spans["flat"] = f"{max(flat.value * size - warm, 0.0):.17g} samples"
    draft.spans["fall"] = f"{max(total - bare.value - max(flat.value, warm / size), 0.0) * size:.17g} samples"
    draft.rest = [
        {"span": "flat", "by": "hold"},
        {"span": "fall", "by": "cosine", "to": gamma.value},
        {"by": "hold"},
    ]
    reader.note("DEIM's warm-up rises with the square of the iteration; it is drawn as a line")


def _average(reader: Reader) -> None:
    if not reader.flag("use_ema", default=reader.has("ema.decay")).value:
        return
    reader.say("ema", reader.number("ema.decay", default=0.9999))
    ramp = reader.whole("ema.warmups", default=2000)
    if ramp.value:
        reader.span("ema_ramp", ramp, "steps", least=1)
        reader.draft.average["ramp"] = {"by": "exp", "tau": reader.draft.spans["ema_ramp"]}
    start = reader.whole("ema.start", default=0)
    if start.value:
        reader.span("ema_start", start, "steps", least=1)
        reader.draft.average["start"] = reader.draft.spans["ema_start"]
    restart = reader.number("train_dataloader.collate_fn.ema_restart_decay", default=None)
    if restart.value and 0 < restart.value < 1:
        held = restart.value
        reader.link(
            "ema.decay", restart, lambda view: view.average(held), words="the average's decay after its restart"
        )


def read_rfdetr(reader: Reader) -> None:
    """Read RF-DETR's training arguments: a call `train(...)`, a table of them, or a command."""
    draft = reader.draft
    micro = reader.whole("batch_size", default=4, low=1)
    passes = reader.whole("grad_accum_steps", default=4, low=1)
    count = reader.devices(default=launched_devices(reader), assume=1)
    reader.accumulates = True
    draft.values |= {"batch": micro.value * passes.value * count, "devices": count, "micro": micro.value}
    reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    reader.link("accumulation", passes, lambda view: view.accumulation, whole=True, least=1)
    reader.data_size("its epochs are passes over the data")
    draft.values["name"] = "adamw"
    reader.say("lr", reader.number("lr", default=1e-4))
    reader.say("weight_decay", reader.number("weight_decay", default=1e-4))
    for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
        reader.fix(path, value, "torch's AdamW, which RF-DETR leaves at its default")
    encoder = reader.number("lr_encoder", default=1.5e-4)
    draft.groups.append({"name": "encoder", "match": "backbone", "lr": float(encoder.value)})
    reader.link("groups[0].lr", encoder, _at("groups[0].lr"))
    clip(reader, reader.number("clip_max_norm", default=0.1))
    reader.span("length", reader.number("epochs", default=100), "epochs")
    warm = reader.number("warmup_epochs", default=0.0)
    if warm.value:
        reader.span("warmup", warm, "epochs")
    drop = reader.number("lr_drop", default=100)
    kind = str(reader.word("lr_scheduler", default="step").value)
    if kind == "cosine":
        draft.rest = [{"by": "cosine", "to": float(reader.number("lr_min_factor", default=0.0).value)}]
    else:
        milestones(reader, [drop.value * float(draft.data_size or 1)], 0.1)
        reader.inert("lr_min_factor")
    if kind not in ("step", "cosine"):
        reader.unread("lr_scheduler", f"{kind} is not known here; it is drawn as the one step of lr_drop")
    if reader.flag("use_ema", default=True).value:
        reader.say("ema", reader.number("ema_decay", default=0.993))
        tau = reader.number("ema_tau", default=100)
        if tau.value:
            reader.span("ema_ramp", tau, "steps")
            draft.average["ramp"] = {"by": "exp", "tau": draft.spans["ema_ramp"]}
    for key in ("lr_vit_layer_decay", "lr_component_decay"):
        if reader.number(key, default=None).value:
            reader.note(f"{key} is a ratio of rates, which no batch moves")
    reader.note("effective batch = batch_size x grad_accum_steps x GPUs; its authors aim at 16")
    reader.reference = 16
    reader.inert("checkpoint_interval", "early_stopping_use_ema", "drop_path", "use_ema", "sync_bn", "multi_scale")


FORMAT = Format(
    "dfine",
    "D-FINE, DEIM, RT-DETR",
    {
        "train_dataloader.total_batch_size": 4,
        "train_dataloader.collate_fn": 1,
        "lr_warmup_scheduler": 1,
        "ema.warmups": 2,
        "optimizer.params": 1,
        "epoches": 2,
        "clip_max_norm": 1,
        "__include__": 1,
    },
    read,
    "Peterande/D-FINE@4a1f73a README 460-494, configs; Intellindust-AI-Lab/DEIM@09d35d5; lyuwenyu/RT-DETR (2026-11)",
)
RFDETR = Format(
    "rfdetr",
    "RF-DETR",
    {
        "lr_encoder": 3,
        "grad_accum_steps": 2,
        "ema_tau": 1,
        "lr_vit_layer_decay": 1,
        "ema_decay": 1,
        "dataset_dir": 1,
        "not:opt": 4,
    },
    read_rfdetr,
    "roboflow/rf-detr docs: training parameters (2026-11)",
)
