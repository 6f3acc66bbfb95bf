"""What six times the devices would save: a model of wall-clock time from the measured speed, not a measurement."""

from typing import Any

import torch

from isobatch.decentralized.cost import Link, allreduce_seconds
from isobatch.plan import Recipe
from isobatch_studies.tasks.byol import Siamese
from isobatch_studies.tasks.resnet import from_options

LINKS = {"20 us, 10 GB/s": Link(20e-6, 10e9), "100 us, 1 GB/s": Link(100e-6, 1e9), "1 ms, 0.1 GB/s": Link(1e-3, 1e8)}
"""Networks that are assumed, not measured: seconds a message costs, bytes a second."""
FEWER, MORE = 8, 48


def seconds(samples: int, batch: int, devices: int, speed: float, size: float, link: Link) -> float:
    """Return the modelled time of a run: steps times (B/n samples at the measured speed, then a ring all-reduce).

    samples/B * (B/(n speed) + 2(n-1) (alpha + S/(n bandwidth)))

    Args:
        samples: of the run.
        batch: samples of a step, B.
        devices: n.
        speed: samples a second of one device.
        size: bytes of a gradient, S.
        link: alpha and bandwidth.

    Returns:
        Seconds; data, stragglers and evaluation cost nothing, and nothing overlaps.

    Example:
        >>> seconds(4096, 1024, 4, 256.0, 0.0, Link(0.0, 1.0))
        4.0
    """
    return samples / batch * (batch / (devices * speed) + allreduce_seconds(link, size, devices))


def markdown(data: dict[str, Any] | None) -> str:
    """Return the modelled times of reference and rule as a table.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown.
    """
    rows = [] if data is None else [row for row in data["rows"] if row["arm"] == "rule"]
    if data is None or not rows:
        return "No pair of runs is complete.\n"
    (row,), variant = rows, rows[0]["variant"]
    recipe = Recipe.parse(data["recipe"][variant])
    samples, size = data["stops"][variant][-1], 4.0 * parameters(recipe)
    speeds = samples / row["reference"]["seconds"], samples / row["seconds"]
    batches = recipe.batch.size, row["batch"]
    lines = [
        f"| link (assumed) | {batches[0]:,} on {FEWER} devices | {batches[1]:,} on {MORE} devices | times faster |",
        "|---|---|---|---|",
    ]
    for name, link in LINKS.items():
        few, many = (
            seconds(samples, batch, devices, speed, size, link)
            for batch, devices, speed in zip(batches, (FEWER, MORE), speeds, strict=True)
        )
        lines.append(f"| {name} | {few:.1f} s | {many:.1f} s | {few / many:.1f} |")
    return "\n".join(lines) + "\n"


def parameters(recipe: Recipe) -> int:
    """Return the number of parameters whose gradients travel.

    Args:
        recipe: of the study.

    Returns:
        Numbers.
    """
    with torch.device("meta"):
        encoder = from_options(recipe, 3)
        hidden, out = (int(recipe.options[name]) for name in ("hidden", "out"))
        model = Siamese(encoder, hidden, out, "batch")
    return sum(weight.numel() for weight in model.parameters())
