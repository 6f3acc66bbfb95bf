"""Control of the batch, numbers in and numbers out: schedules, exchanges, AdaScale, the adaptive controller."""

from isobatch.control.adaptive import AdaptiveBatch
from isobatch.control.adascale import AdaScale
from isobatch.control.batch_schedule import BatchSchedule
from isobatch.control.evidence import Action, Decision, Evidence, temperature
from isobatch.control.exchange import Exchange, Milestones, seesaw, smith
from isobatch.control.limits import Limits
from isobatch.renamed import old_names

__all__ = [
    "Action",
    "AdaScale",
    "AdaptiveBatch",
    "BatchSchedule",
    "Decision",
    "Evidence",
    "Exchange",
    "Limits",
    "Milestones",
    "seesaw",
    "smith",
    "temperature",
]

_WORLD = "isobatch.data.split_batch for the new ranks, and recipe.at(batch, devices=...) where the batch changes"
__getattr__ = old_names(
    __name__,
    {"Split": "isobatch.data.Split", "nearest_splits": "isobatch.data.nearest_splits"},
    {
        "Fallback": "isobatch.data.split_batch with half the micro-batch",
        "WorldChange": _WORLD,
        "after_out_of_memory": "isobatch.data.split_batch with half the micro-batch",
        "change_world": _WORLD,
        "even_split": "isobatch.data.split_batch",
    },
)
