"""The variance of the gradient at trained weights: its two terms, and what it is at each M."""

import time
from typing import Any

import torch
from torch import Tensor

from isobatch.augment import BatchAugmentation, measure_views, shift_cutout
from isobatch.tasks import Run, make_run
from isobatch.train import Trainer
from isobatch.verify.workers import Curve, Job
from isobatch_studies.batch_augmentation.grid import recipe
from isobatch_studies.claims import criteria


def jobs(rates: dict[int, float], seeds: int) -> list[list[Job]]:
    """Return one measurement a seed.

    Args:
        rates: fold -> the rate that validation chose.
        seeds: how many.

    Returns:
        Groups of one job; its only stop is where the weights are taken.
    """
    rules = criteria("batch-augmentation")
    stop = rules["variance"]["after"] * rules["batch"]
    return [[Job("variance", recipe(rules, rates[s % len(rates)], s), s, 0, (stop,))] for s in range(seeds)]


def measured(job: Job) -> Curve:
    """Train to the stop of a job and measure the variance there.

    Args:
        job: one of `jobs`.

    Returns:
        A curve whose values are "between", "views", "share", "pays" and the variance at each "M".
    """
    rules, began = criteria("batch-augmentation"), time.perf_counter()
    run = make_run(job.recipe, job.seed)
    trainer = Trainer(run, job.recipe, order_seed=job.order_seed)
    trainer.train_to(job.stops[0])
    part, size = rules["variance"], rules["batch"]
    generator = torch.Generator().manual_seed(job.seed)
    with torch.random.fork_rng(devices=[]):
        terms = measure_views(
            run.loss, run.model, [_draw(run, size, generator) for _ in range(part["chunks"])], shift_cutout,
            views=part["views"], seed=1,
        )  # fmt: skip
        values = {"between": terms.between, "views": terms.views, "share": terms.share, "pays": float(terms.pays())}
        for m in rules["views"]:
            values[f"M={m}"] = _variance(run, m, part["batches"], size, generator)
            values[f"law {m}"] = terms.at(m, size)
    found = {name: [value] for name, value in values.items()}
    return Curve("variance", job.seed, {"raw": found}, trainer.steps, time.perf_counter() - began)


def _draw(run: Run, size: int, generator: torch.Generator) -> Any:
    """Return independent draws of the training samples, so that the law needs no correction for a finite set."""
    return run.samples[torch.randint(len(run.samples), (size,), generator=generator)]


def _variance(run: Run, views: int, batches: int, size: int, generator: torch.Generator) -> float:
    parameters = list(run.model.parameters())
    augmentation, rows = BatchAugmentation(shift_cutout, views, "copies", seed=2), []
    for number in range(batches):
        batch, places = _draw(run, size, generator), torch.arange(number * size, (number + 1) * size)
        mean: Tensor | None = None
        for copy in range(views):
            loss = run.step(augmentation.rows(batch, places, copy))
            row = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
            mean = row if mean is None else mean + row
        rows.append(mean / views if mean is not None else torch.zeros(()))
    return float(torch.stack(rows).var(0).sum())
