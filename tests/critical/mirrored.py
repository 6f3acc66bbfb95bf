"""A quadratic whose loss has three names and two directions."""

import dataclasses

from isobatch.tasks import Metric
from isobatch.tasks.quadratic import make as plain


def make(settings, seed):
    run = plain(settings, seed)

    def metrics(model):
        loss = run.metrics(model)["loss"]
        return {"loss": loss, "cost": loss, "credit": 2 - loss}

    declared = {
        "loss": Metric("ratio", better="lower"),
        "cost": Metric("ratio", better="lower"),
        "credit": Metric("difference", better="higher", unit="points", scale=1.0),
    }
    return dataclasses.replace(run, metrics=metrics, declared=declared)
