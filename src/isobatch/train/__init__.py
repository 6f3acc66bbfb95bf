"""Training: the one loop, its guard, and what a change of the batch moves."""

from isobatch.train.guard import Guard, Judgement, Verdict
from isobatch.train.loop import Step, Trainer, make_average, make_optimizer

__all__ = ["Guard", "Judgement", "Step", "Trainer", "Verdict", "make_average", "make_optimizer"]
