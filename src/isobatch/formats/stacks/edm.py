"""EDM and EDM2: a command; a whole batch, everything else in thousands or millions of images."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.words import launched_devices
from isobatch.units import decay_at

_INERT = (
    "dropout status snap dump checkpoint ls channels fp16 cache cbase cres arch precond augment xflip "
    "bench tick transfer"
)


def read(reader: Reader) -> None:
    """Read train.py's (EDM) or train_edm2.py's flags."""
    draft = reader.draft
    second = "edm2" in reader.source.extra.get("program", "") or reader.has("preset")
    size = reader.whole("batch", default=2048 if second else 512, low=1)
    devices = reader.devices(default=launched_devices(reader), assume=1)
    each = reader.whole("batch_gpu", default=None)
    draft.values |= {"batch": size.value, "devices": devices if size.value % devices == 0 else 1, "name": "adam"}
    reader.keeps_batch, reader.per_device = True, False
    if each.value:
        draft.values["micro"] = each.value
        reader.link("micro", each, lambda view: view.micro, whole=True, least=1)
    reader.link("batch", size, lambda view: view.batch, whole=True, least=1)
    if second and not reader.has("lr"):
        lr = reader.number("lr", ask="the preset holds the rate (edm2-img512-xs: 0.0120)")
    else:
        lr = reader.number("lr", default=10e-4)
    reader.say("lr", lr)
    for path, value in (("beta1", 0.9), ("beta2", 0.99 if second else 0.999), ("eps", 1e-8)):
        reader.fix(path, value, "the training script's Adam")
    draft.values["weight_decay"] = 0.0
    million = 1e6
    length = reader.number("duration", default=2048 if second else 200)
    _images(reader, "length", length, million)
    warm = reader.number("rampup_Mimg" if second else "rampup", default=10)
    if warm.value:
        _images(reader, "warmup", warm, million)
    if second:
        decay = reader.number("decay", default=35000)
        draft.rest = [{"by": "inverse", "scale": f"{decay.value * size.value:.17g} samples"}]
        reader.note("lr falls as 1/sqrt(max(step/decay, 1)): --decay counts batches, and moves with them")
        if decay.value:
            draft.spans["decay"] = f"{decay.value * size.value:.17g} samples"
            reader.link("decay", decay, lambda view: view.steps("decay"), words="batches")
        draft.average["ramp"] = {"by": "post-hoc", "std": (0.05, 0.10)}
    else:
        half = reader.number("ema", default=0.5)
        draft.spans["ema"] = f"{half.value * million:.17g} samples"
        draft.values["ema"] = decay_at(half.value * million, size.value)
        reader.link("ema", half, lambda view: view.samples("ema") / million, words="millions of images: does not move")
        draft.average["ramp"] = {"by": "ratio", "ratio": 0.05}
    reader.inert(_INERT)


def _images(reader: Reader, name: str, found: Found, each: float) -> None:
    value = found.value
    reader.draft.spans[name] = f"{value * each:.17g} samples"
    reader.link(name, found, lambda view: view.samples(name) / each, words="millions of images")


FORMAT = Format(
    "edm",
    "EDM, EDM2",
    {
        "program:train_edm2.py": 5,
        "duration": 2,
        "batch_gpu": 3,
        "precond": 2,
        "preset": 1,
        "arch": 1,
        "xflip": 1,
        "ema": 1,
        "lr": 1,
        "cond": 2,
        "outdir": 1,
        "tick": 1,
    },
    read,
    "NVlabs/edm train.py; NVlabs/edm2 train_edm2.py, training/phema.py (2026-11)",
)
