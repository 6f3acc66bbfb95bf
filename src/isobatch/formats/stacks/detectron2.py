"""detectron2: SOLVER of a YAML, a batch of all devices, milestones in iterations."""

import ast

from isobatch.errors import InputError
from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.words import has, milestones, optimizer
from isobatch.formats.view import View

_INERT = (
    "MODEL INPUT DATASETS DATALOADER VERSION SOLVER.AMP SOLVER.BIAS_LR_FACTOR SOLVER.WEIGHT_DECAY_NORM "
    "SOLVER.LR_SCHEDULER_NAME SOLVER.CLIP_GRADIENTS.CLIP_TYPE SOLVER.CLIP_GRADIENTS.NORM_TYPE "
    "SOLVER.WARMUP_METHOD SOLVER.CLIP_GRADIENTS.ENABLED SOLVER.RESCALE_INTERVAL TEST.AUG "
    "TEST.DETECTIONS_PER_IMAGE SOLVER.NUM_DECAYS"
)


def read(reader: Reader) -> None:
    """Read SOLVER on top of detectron2's defaults."""
    draft = reader.draft
    size = reader.whole("SOLVER.IMS_PER_BATCH", default=16, low=1)
    world = reader.whole("SOLVER.REFERENCE_WORLD_SIZE", default=0)
    devices = reader.devices(default=world.value or None, assume=1)
    draft.values |= {"batch": size.value, "devices": devices if size.value % devices == 0 else 1}
    reader.accumulates, reader.per_device = False, False
    reader.link("batch", size, lambda view: view.batch, whole=True, least=1)
    if world.value:
        reader.link("devices", world, lambda view: view.devices, whole=True, least=1)
        reader.note("REFERENCE_WORLD_SIZE makes detectron2 scale batch, rate and iterations on other GPUs; the "
                    "plan writes the new number there, so that nothing is scaled twice")  # fmt: skip
    name = optimizer(reader, reader.word("SOLVER.OPTIMIZER", "SOLVER.OPTIMIZER_NAME", default="SGD"))
    reader.say("lr", reader.number("SOLVER.BASE_LR", default=0.001))
    if has(name, "betas"):
        for path, value in (("beta1", 0.9), ("beta2", 0.999), ("eps", 1e-8)):
            reader.fix(path, value, "torch's default, which the project's train_net.py leaves alone")
        reader.inert("SOLVER.MOMENTUM")
    else:
        reader.say("momentum", reader.number("SOLVER.MOMENTUM", default=0.9))
    times = reader.number("SOLVER.BACKBONE_MULTIPLIER", default=1.0)
    if times.value not in (0, 1):
        draft.groups.append({"name": "backbone", "match": "backbone", "lr_scale": float(times.value)})
    if reader.flag("SOLVER.NESTEROV").value:
        draft.values["nesterov"] = True
    reader.say("weight_decay", reader.number("SOLVER.WEIGHT_DECAY", default=1e-4))
    _clip(reader)
    _schedule(reader)
    for name, key in (("evaluation", "TEST.EVAL_PERIOD"), ("checkpoints", "SOLVER.CHECKPOINT_PERIOD")):
        found = reader.whole(key, default=None)
        if found.value:
            reader.span(name, found, "steps", least=1)
    bias = reader.number("SOLVER.WEIGHT_DECAY_BIAS", default=None)
    if bias.value:
        reader.unread("SOLVER.WEIGHT_DECAY_BIAS", "a decay of its own for biases; coupled decay does not move")
    reader.inert(_INERT)


def _clip(reader: Reader) -> None:
    if not reader.flag("SOLVER.CLIP_GRADIENTS.ENABLED").value:
        reader.inert("SOLVER.CLIP_GRADIENTS")
        return
    value = reader.number("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", default=1.0)
    kind = str(reader.word("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", default="value").value)
    if value.value:
        reader.say("clip", value)
        reader.draft.values["clip_by"] = {"value": "value", "full_model": "norm"}.get(kind, "module")


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    reader.span("length", reader.whole("SOLVER.MAX_ITER", default=40000, low=1), "steps", least=1)
    warm = reader.whole("SOLVER.WARMUP_ITERS", default=1000)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
        draft.warmup_from = reader.number("SOLVER.WARMUP_FACTOR", default=0.001).value
    kind = str(reader.word("SOLVER.LR_SCHEDULER_NAME", default="WarmupMultiStepLR").value)
    if kind == "WarmupMultiStepLR":
        gamma = reader.number("SOLVER.GAMMA", default=0.1)
        found, marks = _steps(reader)
        name = "steps"
        draft.spans[name] = f"{max(marks, default=0)} steps"
        batch = draft.values["batch"]
        held = reader.remember("milestones_in_images", [mark * batch for mark in marks])  # of the first recipe
        text = isinstance(found.value, str)
        if [max(round(mark / batch), 1) for mark in held] != marks:  # edited since
            held = reader.remembered["milestones_in_images"] = [mark * batch for mark in marks]

        def back(view: View) -> object:
            now = [max(round(mark / view.batch), 1) for mark in held]
            if now == list(marks):
                return found.value
            inside = ", ".join(map(str, now)) + ("," if len(now) == 1 else "")
            return f"({inside})" if text else now

        reader.link("milestones", found, back, words="milestones in iterations")
        milestones(reader, [float(mark) for mark in held], gamma.value)
    elif kind == "WarmupCosineLR":
        end = reader.number("SOLVER.BASE_LR_END", default=0.0)
        part = end.value / draft.values["lr"]
        if end.value:
            reader.link("schedule.final", end, lambda view: view["lr"] * part, words="share of the peak kept")
        draft.rest = [{"by": "cosine", "to": part}]
        reader.inert("SOLVER.STEPS", "SOLVER.GAMMA")
    else:
        reader.unread("SOLVER.LR_SCHEDULER_NAME", f"{kind} is not known here; its iterations are left as they are")


def _steps(reader: Reader) -> tuple[Found, list[int]]:
    """Return SOLVER.STEPS, which detectron2's files write as the text of a tuple."""
    found = reader.find("SOLVER.STEPS", default=[30000])
    value = found.value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
    marks = list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(mark, int) and not isinstance(mark, bool) and mark > 0 for mark in marks):
        raise InputError(f"{found.name}={found.value!r} must be iterations, such as (60000, 80000); mend the file")
    return found, marks


FORMAT = Format(
    "detectron2",
    "detectron2",
    {
        "SOLVER.BASE_LR": 3,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.STEPS": 1,
        "_BASE_": 1,
        "MODEL.META_ARCHITECTURE": 1,
    },
    read,
    "facebookresearch/detectron2@02b5c4e config/defaults.py _C.SOLVER, engine/defaults.py auto_scale_workers",
)
