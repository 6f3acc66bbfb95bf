"""nanoGPT: flat globals of a Python file; a batch in tokens, and an accumulation that counts all devices together."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import betas, clip, optimizer


def read(reader: Reader) -> None:
    """Read the globals."""
    draft = reader.draft
    block = reader.whole("block_size", default=1024, low=1)
    micro = reader.whole("batch_size", default=12, low=1)
    passes = reader.whole("gradient_accumulation_steps", default=40, low=1)
    devices = reader.devices(default=launched_devices(reader), assume=1)
    draft.unit, draft.batch["sequence"] = "tokens", block.value
    tokens = micro.value * block.value
    draft.values |= {"batch": tokens * passes.value, "devices": devices, "micro": tokens}
    reader.keeps_batch, reader.per_device = True, False
    reader.link(
        "micro", micro, lambda view: view.micro / block.value, words="sequences of block_size", whole=True, least=1
    )
    reader.link("accumulation", passes, lambda view: view.accumulation * view.devices,
                words="passes of all devices together", whole=True, least=1)  # fmt: skip
    reader.note("gradient_accumulation_steps counts the passes of all devices: on fewer devices the same file is the "
                "same batch, as long as it divides by them")  # fmt: skip
    lr = reader.number("learning_rate", default=6e-4)
    optimizer(reader, reader.word("optimizer", default="adamw"))
    reader.say("lr", lr)
    reader.say("weight_decay", reader.number("weight_decay", default=0.1))
    betas(reader, reader.number("beta1", default=0.9), reader.number("beta2", default=0.95))
    draft.values["eps"] = 1e-8
    reader.fix("eps", 1e-8, "torch's AdamW, which train.py leaves at its default")
    clip(reader, reader.number("grad_clip", default=1.0))
    _schedule(reader, lr.value)
    evaluation = reader.whole("eval_interval", default=None, low=1)
    if evaluation.value:
        reader.span("evaluation", evaluation, "steps", least=1)
    reader.inert("eval_iters", "log_interval", "block_size")


def _schedule(reader: Reader, peak: float) -> None:
    draft = reader.draft
    reader.span("length", reader.whole("max_iters", default=600000, low=1), "steps", least=1)
    if not reader.flag("decay_lr", default=True).value:
        draft.rest = [{"by": "hold"}]
        reader.inert("warmup_iters", "lr_decay_iters", "min_lr")
        return
    reader.span("warmup", reader.whole("warmup_iters", default=2000), "steps", least=1)
    ends = reader.whole("lr_decay_iters", default=600000, low=1)
    least = reader.number("min_lr", default=6e-5)
    share = least.value / peak
    reader.link("schedule.final", least, lambda view: view["lr"] * share, words="share of the peak kept")
    reader.span("decayed", ends, "steps", least=1)
    draft.rest = [{"by": "cosine", "to": share}]
    run, warm = draft.samples("length"), draft.samples("warmup")
    if draft.samples("decayed") < run:
        draft.spans["fall"] = f"{draft.samples('decayed') - warm:.17g} tokens"
        draft.rest = [{"span": "fall", "by": "cosine", "to": share}, {"by": "hold"}]
    elif draft.samples("decayed") > run:
        draft.spans["fall"] = f"{draft.samples('decayed') - warm:.17g} tokens"
        draft.rest = [{"span": "fall", "by": "cosine", "to": share}]


FORMAT = Format(
    "nanogpt",
    "nanoGPT (flat globals)",
    {
        "kind:python": 1,
        "block_size": 1,
        "max_iters": 1,
        "warmup_iters": 1,
        "lr_decay_iters": 2,
        "gradient_accumulation_steps": 1,
        "eval_iters": 1,
        "beta2": 1,
        "program:train.py": 1,
        "not:train": 3,
        "not:optim_wrapper": 9,
        "not:max_steps": 4,
        "not:per_device_train_batch_size": 9,
    },
    read,
    "karpathy/nanoGPT@3adf61e train.py 48-101",
)
