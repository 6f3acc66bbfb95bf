"""Training: the one loop, its guard, and what a change of the batch moves."""

from isobatch.installed import need

need("torch")

from isobatch.train.guard import Guard, Judgement, Verdict
from isobatch.train.loop import Step, Trainer
from isobatch.train.rate_search import AutoWarmup
from isobatch.train.rescaling import Rescaled, rescale
from isobatch.train.sample_scheduler import SampleScheduler
from isobatch.train.setup import make_average, make_optimizer, rescale_state
from isobatch.train.world import Device

__all__ = [
    "AutoWarmup",
    "Device",
    "Guard",
    "Judgement",
    "Rescaled",
    "SampleScheduler",
    "Step",
    "Trainer",
    "Verdict",
    "make_average",
    "make_optimizer",
    "rescale",
    "rescale_state",
]
