"""Ultralytics YOLO: a nominal batch, a loss times the batch, a decay that is rescaled, a fixed average."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import has, optimizer
from isobatch.formats.view import View
from isobatch.rules import OPTIMIZERS

_INERT = (
    "warmup_momentum patience close_mosaic save_period time momentum epochs freeze iou "
    "conf dropout optimizer batch rect single_cls val mosaic mixup augment degrees"
)
CLIP = 10.0
EPS = 1e-8
DECAY, TAU = 0.9999, 2000
_SUMMED = "beside a loss that is multiplied by the batch"


def read(reader: Reader) -> None:
    """Read the arguments of `yolo train` or `model.train`."""
    draft = reader.draft
    batch = reader.number("batch", default=16, low=-1)
    if batch.value < 1 or batch.value != int(batch.value):
        why = f"batch = {batch.value:g} lets the trainer choose what fits"
        batch = type(batch)(batch.key, reader.ask("batch", why, 16), "asked")
    size, nominal = int(batch.value), reader.whole("nbs", default=64, low=1)
    device = reader.find("device", default=None).value
    told = len(device) if isinstance(device, list) else len(device.split(",")) if isinstance(device, str) else None
    devices = reader.devices(default=launched_devices(reader) or told, assume=1)
    if told:
        reader.note(f"device names {told} GPUs one by one: name those of the plan there")
    kept = int(reader.remember("nbs_reference", nominal.value))
    passes = max(round(nominal.value / size), 1)
    draft.values |= {"batch": size * passes, "devices": devices}
    if size % devices == 0:
        draft.values["micro"] = size // devices
    reader.per_device, reader.keeps_batch = False, True
    reader.link("micro", batch, _images, words="images of all GPUs in one pass", whole=True, least=1)
    words = "accumulation is round(nbs/batch)"
    reader.link("nbs", nominal, lambda view: _nominal(view, kept, nominal.value), words=words, whole=True, least=1)
    reader.reference = float(kept)
    reader.data_size("its epochs are passes over the images")
    _optimizer(reader, kept, nominal.value)
    _schedule(reader)
    reader.fix("ema", DECAY, "ultralytics/utils/torch_utils.py ModelEMA, which no argument sets")
    draft.spans["ema_ramp"] = f"{TAU} steps"
    draft.average["ramp"] = {"by": "exp", "tau": draft.spans["ema_ramp"]}
    reader.fix("ema.ramp.tau", TAU, "the same ModelEMA's tau, in updates", back=lambda view: view.steps("ema_ramp"))
    reader.fix("batch_norm", 0.03, "ultralytics initialize_weights, which no argument sets")
    if reader.find("freeze").value:
        reader.note("freeze counts layers, which no batch moves")
    if reader.number("time", default=None).value:
        reader.unread("time", "hours take the place of epochs, so that the samples of the run are not known")
    reader.inert(_INERT)


def _images(view: View) -> float:
    """Return `batch`: the images of all devices in one pass."""
    return view.batch / view.accumulation


def _nominal(view: View, reference: int, stated: int) -> int:
    """Return `nbs`: that of the first recipe, or as it is, where the accumulation follows from it; else the batch."""
    for value in (reference, stated):
        if max(round(value / _images(view)), 1) == view.accumulation:
            return value
    return view.batch


def _optimizer(reader: Reader, kept: int, nominal: int) -> None:
    draft = reader.draft
    size = draft.values["batch"]
    word = reader.word("optimizer", default="auto")
    if str(word.value).lower() == "auto":
        why = ('optimizer = "auto" chooses optimizer, rate and momentum by the iterations, so that another batch '
               "can be another optimizer")  # fmt: skip
        chosen = reader.ask("optimizer", why, "SGD", "--set optimizer=SGD (or AdamW), and state lr0 and momentum")
        word = type(word)(word.key, str(chosen), "asked")
        reader.note(
            "the file still says optimizer = auto: write the optimizer that you answered, or the plan does not hold"
        )
    name = optimizer(reader, word)
    lr, moment = reader.number("lr0", default=0.01), reader.number("momentum", default=0.937)
    if name == "sgd":
        how = "lr0 x batch per step: the loss is multiplied by the batch"
        reader.say("lr", lr, lr.value * size, words=how, back=lambda view: view["lr"] / view.batch)
        reader.rule("linear", "loss x batch", "lr0 * batch (a sum over the batch)", nominal)
    else:
        reader.say("lr", lr)
        draft.values["eps"] = EPS / size
        reader.fix("eps", EPS, f"torch's default {_SUMMED}", back=lambda view: view["eps"] * view.batch)
    if has(name, "momentum"):
        reader.say("momentum", moment)
        draft.values["nesterov"] = name == "sgd" or None
        if has(name, "alpha"):
            reader.fix("alpha", 0.99, "torch's default")
    else:
        reader.say("beta1", moment)
        reader.fix("beta2", 0.999, "the trainer's betas=(momentum, 0.999)")
    decay = reader.number("weight_decay", default=0.0005)
    if draft.values.get("decay", OPTIMIZERS[name].decay) == "coupled":  # L2 beside a sum over the batch
        reader.say("weight_decay", decay, decay.value / nominal, words="weight_decay * batch/nbs beside a loss x batch",
                   back=lambda view: view["weight_decay"] * _nominal(view, kept, nominal))  # fmt: skip
    else:
        reader.say("weight_decay", decay, decay.value * size / nominal, words="weight_decay * batch/nbs",
                   back=lambda view: view["weight_decay"] * _nominal(view, kept, nominal) / view.batch)  # fmt: skip
    draft.values["clip"] = CLIP / size
    reader.fix("clip", CLIP, f"clip_grad_norm_(10.0) {_SUMMED}", back=lambda view: view["clip"] * view.batch)


def _schedule(reader: Reader) -> None:
    draft = reader.draft
    reader.span("length", reader.number("epochs", default=100), "epochs")
    warm = reader.number("warmup_epochs", default=3.0)
    if warm.value:
        reader.span("warmup", warm, "epochs")
        heat = reader.number("warmup_momentum", default=0.8)
        if heat.value and draft.values["name"] == "sgd":
            reader.note("momentum rises from warmup_momentum through the warm-up; it stays as stated")
    bias = reader.number("warmup_bias_lr", default=None)
    if bias.value and draft.values["name"] != "sgd":  # beside SGD the loss times the batch scales it already
        peak = next(link.value for link in reader.links if link.path == "optimizer.lr")
        reader.link("curves.lr", bias, lambda view: view["lr"] * bias.value / peak, words="share of the peak kept")
    final = reader.number("lrf", default=0.01)
    by = "cosine" if reader.flag("cos_lr").value else "linear"
    draft.rest = [{"by": by, "to": final.value}]
    reader.note("the curve counts from epoch 0 and is overlaid by a warm-up of at least 100 iterations")


FORMAT = Format(
    "ultralytics",
    "Ultralytics",
    {
        "lr0": 4,
        "lrf": 2,
        "nbs": 2,
        "warmup_bias_lr": 2,
        "close_mosaic": 2,
        "cos_lr": 1,
        "imgsz": 2,
        "batch": 1,
        "program:yolo": 2,
    },
    read,
    "ultralytics/ultralytics@00033e8 cfg/default.yaml, engine/trainer.py",
)
