"""Which keys act on what a batch touches, and which devices share a model, told by the words in their names."""

import math
import re
from typing import Any

from isobatch.formats.texts import leaves, spelled

_WORDS = re.compile(
    r"(?:^|[_.\-/])(?:"
    r"lr|lrs|blr|lrf|lr\d|min_?lr|max_?lr|learning_?rates?|rate|peak_?lr|base_?lr|eta_?min|eta_?max|"
    r"batch|batches|\w*num_batch\w*|batch_?size|samples_?per_?gpu|ims_per_batch|bs|bsz|micro_?batch\w*|global_?batch\w*|mini_?batch\w*|nbs|"
    r"accum\w*|accumulat\w*|grad_?accum\w*|update_?freq|iters?_to_accumulate|"
    r"warm_?ups?|warmup\w*|ramp\w*|anneal\w*|cooldown\w*|cool_?down\w*|decay\w*|sched|schedules?|scheduler\w*|lrs?_?sched\w*|"
    r"momentum\w*|beta\d?s?|betas|adam\w*|eps|epsilon|ema\w*|averag\w*|swa\w*|polyak|tau|half_?life\w*|teacher\w*|"
    r"wd|weight_?decay\w*|l2|clip\w*|clipping|max_?(?:grad_?)?norm|grad_?norm|"
    r"epochs?|epoches|steps?|iters?|iterations|updates?|max_?iters?|max_?steps?|milestones?|t_max|gamma|"
    r"optim\w*|optimi[sz]er\w*|opt|loss_?reduction|reduction|total_?tokens|train_?tokens|train_?samples|"
    r"layer_?decay|layerwise\w*|lr_?mult\w*|no_?decay\w*|freeze\w*|bn_?momentum|bn_?mom|sync_?bn|auto_?scale\w*|auto_?find\w*|"
    r"num_?generations|total_?episodes|temp|temps|temperature\w*|interval|intervals|period|periods|every"
    r")(?=$|[_.\-/\[\d])"
)
_RATES = re.compile(r"(?:^|_)(?:lrs?|learning_?rates?|weight_?decay|momentum|betas?)(?=$|[_\d])")
"""Numbers under these names act whatever stands beside them: mm_projector_lr."""
_BATCHES = re.compile(
    r"^(?!(?:test|val|valid|eval)\w*_)(?:\w*_)?(?:ims|imgs?|images?|samples?|sequences?|seqs?)_?per_?"
    r"(?:batch|gpu|device|rank|node|step|update)"
)
"""Batches under these names act whatever stands beside them: img_per_batch_label."""
_AVERAGE = re.compile(r"(?:^|[._])ema(?:$|[._])|(?:^|[._])momentum$")
_ASIDE = re.compile(r"(?:^|[._])(?:test\w*|val\w*|eval\w*)\.")
_PASSES = re.compile(
    r"update_freq|iters?_to_accumulate|accum(?:ulate|ulation|ulative)?(?:_(?:iters?|steps?|freq|counts?|grad\w*))?|"
    r"(?:grad(?:ient)?s?)_?acc(?:um(?:ulat\w*)?)?(?:_(?:iters?|steps?|freq|counts?))?"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NEVER = re.compile(
    r"(?:^|_)(?:log|logs|logging|log\w*|save|saves|saving|saved|print|eval|evals?|evaluat\w*|test\w*|val|valid\w*|wandb\w*|"
    r"tensorboard|ckpts?|checkpoint\w*|seed|port|dirs?|paths?|files?|filename|names?|project|projects|report\w*|profil\w*|"
    r"vis\w*|outputs?|inputs?|resume\w*|dtype|device_map|workers?|timeout|dataloader|dataset_path|use_fast|flash\w*|"
    r"quantiz\w*|rope\w*|images?|img|export\w*|predict\w*|metrics?|summary|dump\w*|sample_every|fast)(?=$|[_\d])"
)


_DEGREES = {
    "tensor": ("tensor_model_parallel_size", "tensor_parallel_size", "tensor_parallel_degree", "tensor_parallel_dim",
               "model_parallel_size", "autotp_size", "tp_size", "tp_degree"),
    "pipeline": ("pipeline_model_parallel_size", "pipeline_parallel_size", "pipeline_parallel_degree",
                 "pipe_parallel_size", "pp_size", "pp_degree"),
    "context": ("context_parallel_size", "context_parallel_degree", "context_parallel_dim", "sequence_parallel_size",
                "sequence_parallel_degree", "ulysses_sequence_parallel_size", "cp_size", "cp_degree", "sp_size"),
}  # fmt: skip
"""Kinds of sharing -> what stacks call its degree."""
_KINDS = {name: kind for kind, names in _DEGREES.items() for name in names}
_ELSEWHERE = {"rollout", "ref", "critic", "reward_model", "reward", "eval", "evaluation", "validation", "inference"}
"""Tables of other models than the one whose batch is planned."""


def acts(key: str, value: Any) -> bool:
    """Return whether a key's name says that it acts on rates, averages, batches or spans.

    Args:
        key: as people write it.
        value: as it stands; None and an empty value do not act.

    Returns:
        True for what must be read or named.

    Example:
        >>> acts("optim.layerwise_decay", 0.9), acts("model.num_heads", 12), acts("save_steps", 100)
        (True, False, False)
    """
    if value is None or value is False or value == "" or value == 0 or value in ([], {}):
        return False
    text = _CAMEL.sub("_", key).lower()
    last = re.sub(r"\[\d+\]", "", text).rsplit(".", 1)[-1]
    if (_RATES.search(last) or (_BATCHES.search(last) and not _ASIDE.search(text))) and _number_like(value):
        return True
    if _NEVER.search(last):
        return False
    return bool(_WORDS.search(last) or (_WORDS.search(text) and _number_like(value)))


def averages(key: str, value: Any) -> bool:
    """Return whether a key is the decay of an average, even inside a table that is else of no account.

    Args:
        key: as people write it.
        value: as it stands.

    Returns:
        True for a number between 0 and 1 under the name of a momentum or an EMA.

    Example:
        >>> averages("model.base_momentum", 0.99), averages("MODEL.EMA.DECAY", 0.999), averages("model.dropout", 0.1)
        (True, True, False)
    """
    text = _CAMEL.sub("_", key).lower()
    inside = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1
    return inside and bool(_AVERAGE.search(text))


def accumulates(key: str, value: Any) -> bool:
    """Return whether a key's name says that an update holds several passes.

    Args:
        key: as people write it.
        value: as it stands.

    Returns:
        True for a whole number above 1 under the name of an accumulation.

    Example:
        >>> accumulates("update_freq", 8), accumulates("TRAIN.ACCUMULATION_STEPS", 2), accumulates("ema.update_freq", 8)
        (True, True, False)
    """
    *tables, last = _CAMEL.sub("_", key).lower().split(".")
    inside = {word for table in tables for word in table.split("_")} & {"ema", "model", "eval", "teacher", "gram"}
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 1
    return whole and not inside and bool(_PASSES.fullmatch(last.lstrip("-").replace("-", "_")))


def sharing(tree: Any) -> dict[str, int]:
    """Return the degrees by which devices share a model, by the keys that say them.

    Args:
        tree: of a file.

    Returns:
        Key -> devices, those of 1 left out; the first key of each kind of sharing.

    Example:
        >>> sharing({"tensor_parallel_size": 2, "rollout": {"tensor_parallel_size": 4}})
        {'tensor_parallel_size': 2}
    """
    found: dict[str, tuple[str, int]] = {}
    for key, value in leaves(tree):
        parts = [str(part).replace("-", "_").lower() for part in key]
        kind = "pipeline" if parts[-2:] == ["pipeline", "stages"] else _KINDS.get("".join(parts[-1:]))
        if kind is None or _ELSEWHERE & set(parts[:-1]) or isinstance(value, bool):
            continue
        if isinstance(value, int) and value > 1:
            found.setdefault(kind, (spelled(key), value))
    return dict(found.values())


def devices_of_a_model(tree: Any) -> int:
    """Return the devices that hold one model together, 1 where none share."""
    return math.prod(sharing(tree).values())


def _number_like(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_number_like(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
