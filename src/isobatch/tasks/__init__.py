"""Tasks: data, model, loss and metric behind one face, make(settings, seed) -> Run."""

from isobatch.installed import need

need("torch")

from isobatch.tasks.face import SHIPPED, Make, Run, Samples, TensorSamples, device_of, find, make_run, seeded
from isobatch.tasks.lesson import Lesson, Teaching
from isobatch.tasks.metric import LOSS, PERCENT, Metric

__all__ = [
    "LOSS",
    "PERCENT",
    "SHIPPED",
    "Lesson",
    "Make",
    "Metric",
    "Run",
    "Samples",
    "Teaching",
    "TensorSamples",
    "device_of",
    "find",
    "make_run",
    "seeded",
]
