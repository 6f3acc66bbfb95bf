"""EDM and EDM2: a command; a whole batch, everything else in thousands or millions of images."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.units import decay_at

_INERT = (
    "dropout status snap dump checkpoint ls channels fp16 cache cbase cres arch precond augment xflip "
    "bench tick transfer"
)


_PRESETS = {
    "edm2-img512-xxs": (0.0170, 70000, 2048),
    "edm2-img512-xs": (0.0120, 70000, 2048),
    "edm2-img512-s": (0.0100, 70000, 2048),
    "edm2-img512-m": (0.0090, 70000, 2048),
    "edm2-img512-l": (0.0080, 70000, 1792),
    "edm2-img512-xl": (0.0070, 70000, 1280),
    "edm2-img512-xxl": (0.0065, 70000, 896),
    "edm2-img64-xs": (0.0120, 35000, 1024),
    "edm2-img64-s": (0.0100, 35000, 1024),
    "edm2-img64-m": (0.0090, 35000, 2048),
    "edm2-img64-l": (0.0080, 35000, 1024),
    "edm2-img64-xl": (0.0070, 35000, 640),
}
"""EDM2's presets: rate, batches after which it falls, and length in 2**20 images."""
_SUFFIXES = {"Ki": 10, "Mi": 20, "Gi": 30}


def _images_of(found: Found) -> Found:
    """Return a count of images as a number, whatever power of two EDM2 lets stand behind it."""
    text = str(found.value).strip()
    power = _SUFFIXES.get(text[-2:])
    if power is None or not text[:-2].isdigit():
        return found
    return Found(found.key, int(text[:-2]) << power, found.origin)


def _count(reader: Reader, name: str, default: int | None) -> Found:
    found = _images_of(reader.find(name, default=default))
    if isinstance(found.value, bool) or (found.value is not None and not isinstance(found.value, int)):
        return reader.whole(name, default=default, low=0)
    return found


def read(reader: Reader) -> None:
    """Read train.py's (EDM) or train_edm2.py's flags."""
    draft = reader.draft
    second = "edm2" in reader.source.extra.get("program", "") or reader.has("preset")
    chosen = str(reader.word("preset", default="edm2-img512-s").value)
    usual = _PRESETS.get(chosen)
    size = _count(reader, "batch", 2048 if second else 512)
    if not size.value or size.value < 1:
        size = reader.whole("batch", low=1)
    devices = reader.devices(default=launched_devices(reader), assume=1)
    each = _count(reader, "batch_gpu", None)
    draft.values |= {"batch": size.value, "devices": devices if size.value % devices == 0 else 1, "name": "adam"}
    reader.keeps_batch, reader.per_device = True, False
    if each.value:
        draft.values["micro"] = each.value
        reader.link("micro", each, lambda view: view.micro, whole=True, least=1)
    reader.link("batch", size, lambda view: view.batch, whole=True, least=1)
    if second:
        lr = reader.number("lr", default=usual[0] if usual else None, ask=f"the preset {chosen} is not known here")
    else:
        lr = reader.number("lr", default=10e-4)
    reader.say("lr", lr)
    for path, value in (("beta1", 0.9), ("beta2", 0.99 if second else 0.999), ("eps", 1e-8)):
        reader.fix(path, value, "the training script's Adam")
    draft.values["weight_decay"] = 0.0
    million = 1e6
    if second:
        length = _count(reader, "duration", (usual[2] if usual else 2048) << 20)
        _images(reader, "length", length, 1.0)
    else:
        _images(reader, "length", reader.number("duration", default=200), million)
    warm = reader.number("rampup_Mimg" if second else "rampup", default=10)
    if warm.value:
        _images(reader, "warmup", warm, million)
    if second:
        why = f"the preset {chosen} is not known here; batches after which its rate falls"
        decay = reader.number("decay", default=usual[1] if usual else None, ask=why)
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
    value, words = found.value, "millions of images" if each > 1 else "images"
    reader.draft.spans[name] = f"{value * each:.17g} samples"
    reader.link(name, found, lambda view: view.samples(name) / each, words=words)


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
    dashes=True,
)
