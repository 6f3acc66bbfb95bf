"""Tasks: data, model, loss and metric behind one face, make(settings, seed) -> Run."""

from isobatch.tasks.face import SHIPPED, Make, Run, Samples, TensorSamples, find, make_run, seeded

__all__ = ["SHIPPED", "Make", "Run", "Samples", "TensorSamples", "find", "make_run", "seeded"]
