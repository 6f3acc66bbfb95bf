"""Which keys of a file act on what a batch touches, told by the words in their names."""

import re
from typing import Any

_WORDS = re.compile(
    r"(?:^|[_.\-/])(?:"
    r"lr|lrs|blr|lrf|lr\d|min_?lr|max_?lr|learning_?rates?|rate|peak_?lr|base_?lr|eta_?min|eta_?max|"
    r"batch|batch_?size|bs|bsz|micro_?batch\w*|global_?batch\w*|mini_?batch\w*|samples_?per_?gpu|ims_per_batch|nbs|"
    r"accum\w*|accumulat\w*|grad_?accum\w*|update_?freq|iters?_to_accumulate|"
    r"warm_?ups?|warmup\w*|ramp\w*|anneal\w*|cooldown\w*|cool_?down\w*|decay\w*|sched|schedules?|scheduler\w*|lrs?_?sched\w*|"
    r"momentum\w*|beta\d?s?|betas|adam\w*|eps|epsilon|ema\w*|averag\w*|swa\w*|polyak|tau|half_?life\w*|teacher\w*|"
    r"wd|weight_?decay\w*|l2|clip\w*|clipping|max_?(?:grad_?)?norm|grad_?norm|"
    r"epochs?|epoches|steps?|iters?|iterations|updates?|max_?iters?|max_?steps?|milestones?|gamma|"
    r"optim\w*|optimi[sz]er\w*|opt|loss_?reduction|reduction|total_?tokens|train_?tokens|train_?samples|"
    r"layer_?decay|layerwise\w*|lr_?mult\w*|no_?decay\w*|freeze\w*|bn_?momentum|bn_?mom|sync_?bn|auto_?scale\w*|auto_?find\w*|"
    r"num_?generations|total_?episodes|temp|temps|temperature\w*|interval|intervals|period|periods|every"
    r")(?=$|[_.\-/\[\d])"
)
_RATES = re.compile(r"(?:^|_)(?:lrs?|learning_?rates?|weight_?decay|momentum|betas?)(?=$|[_\d])")
"""Numbers under these names act whatever stands beside them: mm_projector_lr."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NEVER = re.compile(
    r"(?:^|_)(?:log|logs|logging|log\w*|save|saves|saving|saved|print|eval|evals?|evaluat\w*|test\w*|val|valid\w*|wandb\w*|"
    r"tensorboard|ckpts?|checkpoint\w*|seed|port|dirs?|paths?|files?|filename|names?|project|projects|report\w*|profil\w*|"
    r"vis\w*|outputs?|inputs?|resume\w*|dtype|device_map|workers?|timeout|dataloader|dataset_path|use_fast|flash\w*|"
    r"quantiz\w*|rope\w*|images?|img|export\w*|predict\w*|metrics?|summary|dump\w*|sample_every|fast)(?=$|[_\d])"
)


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
    if _RATES.search(last) and _number_like(value):
        return True
    if _NEVER.search(last):
        return False
    return bool(_WORDS.search(last) or (_WORDS.search(text) and _number_like(value)))


def _number_like(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_number_like(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
