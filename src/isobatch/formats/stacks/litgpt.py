"""litgpt: a global batch of samples under `train`, accumulated by what the devices leave over."""

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import on_nodes
from isobatch.formats.stacks.words import clip, moments, optimizer


def read(reader: Reader) -> None:
    """Read `train` and `optimizer`."""
    draft = reader.draft
    size = reader.whole("train.global_batch_size", ask="samples per optimizer step", low=1)
    micro = reader.whole("train.micro_batch_size", default=1, low=1)
    count = reader.source.get(("devices",))  # as the file says it, whatever an answer of this name says
    reader.inert("devices")
    nodes = reader.whole("num_nodes", default=1, low=1)
    told = count * nodes.value if isinstance(count, int) and count > 0 else None
    devices = reader.devices('the file says devices = "auto"', default=told)
    reader.keeps_batch, reader.per_device = True, False
    draft.values |= {"batch": int(size.value), "devices": devices, "micro": int(micro.value)}
    reader.link("batch", size, lambda view: view.batch, whole=True, least=1)
    reader.link("micro", micro, lambda view: view.micro, whole=True, least=1)
    if isinstance(count, int) and told == devices:
        on_nodes(reader, Found(("devices",), count), nodes)
    lr = reader.number("optimizer.init_args.lr", "train.learning_rate", default=None,
                       ask="the learning rate stands in the optimizer's defaults")  # fmt: skip
    name = optimizer(reader, reader.word("optimizer.class_path", "optimizer", default="AdamW"))
    reader.say("lr", lr)
    reader.say("weight_decay", reader.number("optimizer.init_args.weight_decay", "train.weight_decay", default=0.01))
    moments(reader, name, "optimizer.init_args")
    clip(reader, reader.number("train.max_norm", default=None))
    _schedule(reader, lr)
    for name, key in (("evaluation", "eval.interval"), ("checkpoints", "train.save_interval")):
        found = reader.whole(key, default=None)
        if found.value:
            reader.span(name, found, "steps", least=1)
    reader.inert("eval", "train.log_interval", "optimizer.init_args.fused")


def _schedule(reader: Reader, lr: Found) -> None:
    draft = reader.draft
    sequence = reader.whole("train.max_seq_length", "model_config.block_size", default=None, low=1)
    steps, tokens = reader.whole("train.max_steps", default=None), reader.whole("train.max_tokens", default=None)
    if steps.value:
        reader.span("length", steps, "steps", least=1)
    elif tokens.value:
        length = sequence.value or reader.ask("sequence", "the run is given in tokens; tokens in a sample", 1024)
        draft.batch["sequence"] = int(length)
        reader.span("length", tokens, "tokens")
    else:
        reader.span("length", reader.number("train.epochs", default=1.0), "epochs")
    warm = reader.number("train.lr_warmup_steps", default=None)
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    else:
        share = reader.number("train.lr_warmup_fraction", default=None)
        if share.value:
            reader.span("warmup", share, "length")
    least = reader.number("train.min_lr", default=6e-5)
    part = least.value / lr.value
    reader.link("schedule.final", least, lambda view: view["lr"] * part, words="share of the peak kept")
    draft.rest = [{"by": "cosine", "to": part}]


FORMAT = Format(
    "litgpt",
    "litgpt",
    {
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.lr_warmup_steps": 1,
        "optimizer.class_path": 1,
        "train.max_tokens": 1,
    },
    read,
    "Lightning-AI/litgpt config_hub and litgpt/args.py (2026-11)",
)
