"""The domains of the study, and which runs are followed once the sweep knows the critical batch."""

import math
from dataclasses import dataclass
from typing import Any

from isobatch.critical import Point, Sweep, sweep
from isobatch.critical.trial import at
from isobatch.plan import Recipe
from isobatch_studies.noise_scale.probing import NoiseProbe
from isobatch_studies.work import Work


@dataclass(frozen=True)
class Domain:
    """One domain of the grid.

    Args:
        name: of the domain.
        recipe: where the sweep begins.
        unit: what a sample is.
        metric: followed to the goals.
        goals: the easier and the harder one.
        batches: of the sweep.
        limit: steps of a run at most.
        chunk: samples of a chunk of a measurement.
        chunks: how many.
    """

    name: str
    recipe: Recipe
    unit: str
    metric: str
    goals: tuple[float, float]
    batches: tuple[int, ...]
    limit: int
    chunk: int
    chunks: int


def domains(part: dict[str, Any]) -> list[Domain]:
    """Return the domains of a grid.

    Args:
        part: "grid" or "quick" of the criteria.

    Returns:
        Domains in the order in which they are run.
    """
    return [
        Domain(name, Recipe.parse(spec["recipe"]), **{k: _fixed(v) for k, v in spec.items() if k != "recipe"})
        for name, spec in part["domains"].items()
    ]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def critical(domain: Domain, seeds: int, work: Work) -> Sweep:
    """Sweep a domain's batches and learning rates.

    Args:
        domain: the domain.
        seeds: runs at each.
        work: where runs are trained and kept, and until when.

    Returns:
        The sweep.
    """
    return sweep(
        domain.recipe,
        goals=domain.goals,
        batches=domain.batches,
        seeds=seeds,
        limit=domain.limit,
        metric=domain.metric,
        out=work.out,
        workers=work.workers,
        executor=work.executor,
        budget=work.left(),
        on_done=work.on_done,
    )


def nearest(found: Sweep) -> Point | None:
    """Return the sweep's point nearest to the critical batch of the harder goal.

    Args:
        found: the sweep.

    Returns:
        The point, None where there is no fit.
    """
    goal = found.goals[-1]
    if goal.fit is None:
        return None
    centre = math.log(goal.fit.critical.value)
    return min(goal.points, key=lambda point: abs(math.log(point.batch) - centre))


def stops(steps: float, count: int) -> tuple[int, ...]:
    """Return evenly spaced stops from the first share of a run to its end.

    Args:
        steps: of the run.
        count: how many stops at most.

    Returns:
        Rising steps.

    Example:
        >>> stops(100.4, 4)
        (25, 50, 75, 100)
    """
    return tuple(sorted({max(1, round(steps * k / count)) for k in range(1, count + 1)}))


def along(domain: Domain, point: Point, seeds: int, count: int) -> list[NoiseProbe]:
    """Return the runs that are followed in a domain.

    Args:
        domain: the domain.
        point: batch and learning rate.
        seeds: runs.
        count: stops.

    Returns:
        Probes by seed.
    """
    recipe, places = at(domain.recipe, point.batch, point.lr), stops(point.steps, count)
    return _probes(domain.name, recipe, domain, places, seeds)


def beside(part: dict[str, Any], known: list[Domain], seeds: int, count: int) -> dict[str, list[NoiseProbe]]:
    """Return the runs that answer the two questions beside the table: widths, and batches at one temperature.

    Args:
        part: "grid" or "quick" of the criteria.
        known: the domains.
        seeds: runs of each.
        count: stops.

    Returns:
        "widths" and "temperature" -> probes, each labelled by its width or batch.
    """
    found: dict[str, list[NoiseProbe]] = {}
    by_name = {domain.name: domain for domain in known}
    if part["widths"] is not None:
        spec = part["widths"]
        domain = by_name[spec["domain"]]
        found["widths"] = []
        for width in spec["values"]:
            options = {**domain.recipe.options, spec["option"]: width}
            recipe = at(domain.recipe, spec["batch"], spec["lr"]).model_copy(update={"options": options})
            found["widths"] += _probes(f"width {width}", recipe, domain, stops(spec["steps"], count), seeds)
    if part["temperature"] is not None:
        spec = part["temperature"]
        domain = by_name[spec["domain"]]
        found["temperature"] = []
        first = spec["batches"][0]
        for batch in spec["batches"]:
            recipe = at(domain.recipe, batch, spec["lr"] * batch / first)
            places = stops(spec["samples"] / batch, count)
            found["temperature"] += _probes(f"batch {batch}", recipe, domain, places, seeds)
    return found


def _probes(label: str, recipe: Recipe, domain: Domain, places: tuple[int, ...], seeds: int) -> list[NoiseProbe]:
    return [
        NoiseProbe(label, recipe, seed, places, domain.chunk, domain.chunks, domain.metric) for seed in range(seeds)
    ]
