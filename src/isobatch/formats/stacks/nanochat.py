"""nanochat: flags of base_train.py, which scales its rates and its decay by the square root of the batch itself."""

import math
from typing import Any

from isobatch.formats.format import Format
from isobatch.formats.reader import Found, Reader
from isobatch.formats.stacks.launchers import launched_devices
from isobatch.formats.stacks.words import periods

REFERENCE = 2**19
"""Tokens of the batch at which its rates are stated."""
_GROUPS = (
    ("embedding", "wte", "embedding_lr", 0.3),
    ("unembedding", "lm_head", "unembedding_lr", 0.008),
    ("scalars", "lambdas", "scalar_lr", 0.5),
)
_INERT = (
    "depth aspect_ratio head_dim max_seq_len window_pattern target_flops target_param_data_ratio fp8 fp8_recipe "
    "resume_from_step eval_tokens core_metric_max_per_task sample_every num_iterations user_config "
    "run model_tag device_type dry_run"
)


def read(reader: Reader) -> None:
    """Read the flags, or the defaults that the script itself gives them."""
    draft = reader.draft
    length = reader.whole("max_seq_len", default=2048, low=1)
    draft.unit, draft.batch["sequence"] = "tokens", length.value
    micro = reader.whole("device_batch_size", default=32, low=1)
    size = reader.whole("total_batch_size", default=-1, low=-1)
    if size.value <= 0:
        why = "the trainer computes it from the depth, and prints it as the auto-computed batch"
        asked = reader.ask("total_batch_size", why, REFERENCE, "--set total_batch_size=524288")
        size = Found(size.key, reader.whole_answer("total_batch_size", asked), "asked")
    devices = reader.devices(default=launched_devices(reader), assume=1)
    tokens = micro.value * length.value
    draft.values |= {"batch": size.value, "devices": devices, "micro": tokens}
    reader.keeps_batch, reader.per_device = True, False
    reader.link("batch", size, lambda view: view.batch, words="tokens of all devices", whole=True, least=1)
    reader.link("micro", micro, lambda view: view.micro / length.value, words="sequences of max_seq_len", whole=True,
                least=1)  # fmt: skip
    _rates(reader, size.value)
    _length(reader)
    periods(reader, {"eval_every": "evaluation", "save_every": "checkpoints", "core_metric_every": "core_metric"})
    reader.note("Muon's momentum is a constant of base_train.py, and stays beside a square-root rate; its ramp "
                "of 400 steps stays")  # fmt: skip
    reader.inert(_INERT)


def _rates(reader: Reader, size: int) -> None:
    draft = reader.draft
    own = reader.source.kind != "python" or "B_REF" in reader.source.text or "batch_ratio" in reader.source.text
    times = math.sqrt(size / REFERENCE) if own else 1.0

    def plain(path: str) -> Any:
        return lambda view: view[path] / (math.sqrt(view.batch / REFERENCE) if own else 1.0)

    words = "times sqrt(batch/524288)" if own else ""
    draft.values["name"] = "muon"
    lr = reader.number("matrix_lr", default=0.02)
    decay = reader.number("weight_decay", default=0.28 if own else 0.0)
    reader.say("lr", lr, lr.value * times, back=plain("lr"), words=words)
    reader.say("weight_decay", decay, decay.value * times, back=plain("weight_decay"), words=words)
    reader.fix("momentum", 0.95, "base_train.py's momentum of Muon")
    if own:
        rule = "every rate and the decay * sqrt(batch/524288)"
        reader.rule("sqrt", "base_train.py (since 2026-02)", rule, REFERENCE)
        reader.reference = REFERENCE
        if decay.value:
            draft.curves["weight_decay"] = [{"by": "cosine", "to": 0.0}]
            reader.note(
                "the decay is further multiplied by the horizon of depth 12 over the run's own, which no batch moves"
            )
    else:
        draft.rules |= {"momentum": "keep"}
    for name, match, key, usual in _GROUPS:
        found = reader.number(key, default=usual if own or name != "scalars" else None)
        if found.value is None:
            continue
        path = f"groups[{len(draft.groups)}]"
        one, two = reader.number("adam_beta1", default=0.8), reader.number("adam_beta2", default=0.95)
        group = {"name": name, "match": match, "optimizer": "adamw", "lr": found.value * times, "weight_decay": 0.0}
        draft.groups.append(group | {"betas": [one.value, two.value], "eps": 1e-10})
        reader.link(f"{path}.lr", found, plain(f"{path}.lr"), words=words)
        if (one.said or two.said) and len(draft.groups) > 1:
            continue  # one pair of flags serves all groups
        if one.said or two.said:
            for index, flag in enumerate((one, two)):
                reader.link(f"{path}.betas[{index}]", flag, _moment(path, index))
        else:
            reader.fix(f"{path}.betas", [0.8, 0.95], "gpt.py's setup_optimizer (later versions: up to 0.995)")


def _moment(path: str, index: int) -> Any:
    return lambda view: view[f"{path}.betas[{index}]"]


def _length(reader: Reader) -> None:
    draft = reader.draft
    steps = reader.number("num_iterations", default=-1, low=-1)
    if steps.value > 0 and steps.origin != "asked":
        reader.span("length", steps, "steps", least=1)
    else:
        why = "the file says no num_iterations; the trainer prints the total number of training tokens, which stay"
        tokens = reader.ask("training_tokens", why, 10**10, "--set training_tokens=11219763200")
        draft.spans["length"] = f"{reader.whole_answer('training_tokens', tokens)} tokens"
    warm, share = reader.number("warmup_steps", default=None), reader.number("warmup_ratio", default=None)
    if warm.value is None and share.value is None:
        warm = Found(("warmup_steps",), 40, "default")
    if warm.value:
        reader.span("warmup", warm, "steps", least=1)
    elif share.value:
        reader.span("warmup", share, "length")
    down, end = reader.number("warmdown_ratio", default=0.65), reader.number("final_lr_frac", default=0.05)
    reader.link("curves.lr", down, lambda view: down.value, words="share of the run")
    reader.link("schedule.final", end, lambda view: end.value, words="share of the peak")
    run = draft.samples("length")
    warmed = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    falls = min(run * min(down.value, 1.0), max(run - warmed, 0.0))
    draft.spans["stable"] = f"{max(run - warmed - falls, 0.0):.17g} tokens"
    draft.spans["fall"] = f"{falls:.17g} tokens"
    fall = {"span": "fall", "by": "linear", "to": end.value}
    draft.rest = [{"span": "stable", "by": "hold"}, fall] if falls else [{"by": "hold"}]


FORMAT = Format(
    "nanochat",
    "nanochat (base_train.py)",
    {
        "program:scripts.base_train": 6,
        "program:base_train.py": 4,
        "matrix_lr": 3,
        "unembedding_lr": 2,
        "total_batch_size": 1,
        "device_batch_size": 2,
        "target_param_data_ratio": 1,
        "depth": 1,
    },
    read,
    "karpathy/nanochat@92d63d4 scripts/base_train.py 259-315 (2026-07-03)",
    dashes=True,
)
