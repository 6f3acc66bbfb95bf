"""open_clip: a command; a batch per GPU, warm-up in steps, a loss that sees the whole batch."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import clip, optimizer, per_device_batch, share_of_peak

_INERT = (
    "lr_cooldown_power log_every_n_steps save_frequency val_frequency precision "
    "lock_image_unlocked_groups zeroshot_frequency epochs_cooldown lr_scheduler opt_kwargs warmup"
)


def read(reader: Reader) -> None:
    """Read the flags."""
    draft = reader.draft
    micro = reader.whole("batch_size", default=64, low=1)
    passes = reader.whole("accum_freq", default=1, low=1)
    per_device_batch(reader, micro, passes, reader.devices(default=launched_devices(reader)))
    count = reader.whole("train_num_samples", default=None, low=1)
    draft.data_size = count.value or reader.data_size("its epochs are passes over the data")
    optimizer(reader, reader.word("opt", default="adamw"))
    vit = "vit" in str(reader.find("model", default="RN50").value).lower()
    reader.say("lr", reader.number("lr", default=5e-4))
    reader.say("beta1", reader.number("beta1", default=0.9))
    reader.say("beta2", reader.number("beta2", default=0.98 if vit else 0.999))
    reader.say("eps", reader.number("eps", default=1e-6 if vit else 1e-8))
    reader.say("weight_decay", reader.number("wd", default=0.2))
    clip(reader, reader.number("grad_clip_norm", default=None))
    reader.span("length", reader.number("epochs", default=32), "epochs")
    skipped = reader.flag("skip_scheduler").value
    warm = reader.whole("warmup", default=10000)
    if warm.value and not skipped:
        reader.span("warmup", warm, "steps", least=1)
    kind = str(reader.word("lr_scheduler", default="cosine").value)
    if skipped:
        draft.rest = [{"by": "hold"}]
    elif kind == "cosine":
        draft.rest = [{"by": "cosine", "to": 0.0}]
    elif kind == "const":
        draft.rest = [{"by": "hold"}]
    elif kind == "const-cooldown":
        _cooldown(reader)
    else:
        reader.unread("lr_scheduler", f"{kind} has a course of its own; it is left as it is")
        draft.rest = [{"by": "hold"}]
    reader.note("contrastive loss: negatives are those of the whole batch, so that another batch is another loss")
    reader.inert(_INERT)


def _cooldown(reader: Reader) -> None:
    """Enter a constant rate that falls by a power over the last epochs, to a rate that stays its share of the peak."""
    draft = reader.draft
    low = reader.number("lr_cooldown_end", default=None)
    end = share_of_peak(reader, "schedule.final", low) if low.value else 0.0
    ends = reader.number("epochs_cooldown", ask="const-cooldown needs the epochs over which the rate falls")
    power = reader.number("lr_cooldown_power", default=1.0).value
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    flat = draft.samples("length") - warm - ends.value * (draft.data_size or 1)
    draft.spans["stable"] = f"{max(flat, 0.0):.17g} samples"
    how = {"by": "linear"} if power == 1 else {"by": "power", "p": float(power)}
    draft.rest = [{"span": "stable", "by": "hold"}, {**how, "to": end}]


FORMAT = Format(
    "openclip",
    "open_clip",
    {
        "program:open_clip": 3,
        "program:training.main": 2,
        "train_num_samples": 3,
        "accum_freq": 3,
        "grad_clip_norm": 1,
        "local_loss": 1,
        "gather_with_grad": 1,
        "warmup": 1,
        "wd": 1,
    },
    read,
    "mlfoundations/open_clip src/open_clip_train/params.py 272-627",
    dashes=True,
)
