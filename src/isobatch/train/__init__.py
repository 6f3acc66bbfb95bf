"""Training: the one loop, its guard, and what a change of the batch moves."""

from isobatch.installed import need
from isobatch.renamed import old_names

need("torch")

from isobatch.train.guard import Guard, Judgement, StepVerdict
from isobatch.train.loop import Step, Trainer
from isobatch.train.rate_search import AutoWarmup
from isobatch.train.rescaling import Rescaled, rescale
from isobatch.train.sample_clock import SampleClock
from isobatch.train.sample_scheduler import SampleScheduler
from isobatch.train.setup import make_average, make_optimizer, rescale_state
from isobatch.train.world import Device

__all__ = [
    "AutoWarmup",
    "Device",
    "Guard",
    "Judgement",
    "Rescaled",
    "SampleClock",
    "SampleScheduler",
    "Step",
    "StepVerdict",
    "Trainer",
    "make_average",
    "make_optimizer",
    "rescale",
    "rescale_state",
]

__getattr__ = old_names("isobatch.train", {"Verdict": "isobatch.train.guard.StepVerdict"})
