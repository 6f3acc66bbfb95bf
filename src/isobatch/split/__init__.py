"""split: does one update depend on how its batch is split, and if so, why?"""

from isobatch.installed import need

need("torch")

from isobatch.split.accelerated import AccelerateLoop
from isobatch.split.fitted import LightningFit
from isobatch.split.hugging import TrainerFit
from isobatch.split.result import SplitReport
from isobatch.split.run import split
from isobatch.split.target import Loop, Subject, pieces

__all__ = [
    "AccelerateLoop",
    "LightningFit",
    "Loop",
    "SplitReport",
    "Subject",
    "TrainerFit",
    "pieces",
    "split",
]
