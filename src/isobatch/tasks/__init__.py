"""Tasks: data, model, loss and metric behind one face, make(settings, seed) -> Run."""

from isobatch.installed import need
from isobatch.renamed import old_names

need("torch")

from isobatch.tasks.finding import SHIPPED, beside, find, from_file
from isobatch.tasks.loss_context import LossContext, LossNeeds
from isobatch.tasks.metric import LOSS, PERCENT, Metric
from isobatch.tasks.task import (
    Make,
    Run,
    Samples,
    TensorSamples,
    checked_run,
    device_of,
    make_any,
    make_run,
    seeded,
)

__all__ = [
    "LOSS",
    "PERCENT",
    "SHIPPED",
    "LossContext",
    "LossNeeds",
    "Make",
    "Metric",
    "Run",
    "Samples",
    "TensorSamples",
    "beside",
    "checked_run",
    "device_of",
    "find",
    "from_file",
    "make_any",
    "make_run",
    "seeded",
]

__getattr__ = old_names(
    __name__,
    {"Lesson": "isobatch.tasks.loss_context.LossContext", "Teaching": "isobatch.tasks.loss_context.LossNeeds"},
)
