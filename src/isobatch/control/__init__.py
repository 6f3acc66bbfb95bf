"""Control of the batch, numbers in and numbers out: schedules, exchanges, the adaptive controller, elastic, memory."""

from isobatch.control.adaptive import AdaptiveBatch
from isobatch.control.batch_schedule import BatchSchedule
from isobatch.control.elastic import Split, WorldChange, change_world, even_split, nearest_splits
from isobatch.control.evidence import Action, Decision, Evidence, temperature
from isobatch.control.exchange import Exchange, Milestones, seesaw, smith
from isobatch.control.limits import Limits
from isobatch.control.memory import Fallback, after_out_of_memory

__all__ = [
    "Action",
    "AdaptiveBatch",
    "BatchSchedule",
    "Decision",
    "Evidence",
    "Exchange",
    "Fallback",
    "Limits",
    "Milestones",
    "Split",
    "WorldChange",
    "after_out_of_memory",
    "change_world",
    "even_split",
    "nearest_splits",
    "seesaw",
    "smith",
    "temperature",
]
