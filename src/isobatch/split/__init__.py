"""split: does one update depend on how its batch is split, and if so, why?"""

from isobatch.installed import need

need("torch")

from isobatch.split.hugging_face import TrainerFit
from isobatch.split.result import SplitReport
from isobatch.split.run import split
from isobatch.split.target import Loop, Subject, pieces
from isobatch.split.wrappers import AccelerateLoop, LightningFit

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
