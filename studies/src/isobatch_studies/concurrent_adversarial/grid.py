"""The arms of the adversarial study: plain, adversaries of every age, random signs, and other ways to spend the run."""

from typing import Any

from isobatch.plan import Recipe
from isobatch.verify.workers import Job
from isobatch_studies.folds import fold_options, selection_seeds

PLAIN, NOISE, TWO, SUM, SMALL = (
    "plain",
    "random signs",
    "tau = 1, two batch norms",
    "tau = 1, sum of losses",
    "small batch",
)
CONTROLS = (NOISE, TWO, SUM, SMALL)
FEWER, ITS_EPS = "fewer updates", "eps of the adversary"
_MEAN, _BOUNDS = [0.5, 0.5], [0.0, 1.0]


def controls(rules: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the control arms.

    Args:
        rules: the study's criteria.

    Returns:
        Names, all unless the grid lists some.
    """
    return tuple(rules.get("controls", CONTROLS))


def stale(tau: int) -> str:
    """Return the name of the arm with directions tau steps old.

    Args:
        tau: steps.

    Returns:
        A name.
    """
    return f"tau = {tau}"


def recipe(rules: dict[str, Any], rate: float, seed: int, adversary: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe of a full-batch arm.

    Args:
        rules: the study's criteria.
        rate: learning rate.
        seed: decides which fold is held out.
        adversary: the [adversary] part without weights and bounds, None for a plain run.

    Returns:
        The recipe.
    """
    size = rules["train"]
    values: dict[str, Any] = {
        "task": "digits-cnn",
        "batch": {"size": size},
        "optimizer": {"name": "sgd", "lr": rate, "momentum": 0.9},
        "schedule": {"length": f"{rules['updates'] * size} samples", "shape": "cosine"},
        "options": {"width": 8, **fold_options(seed, size)},
    }
    if adversary is not None:
        values["adversary"] = {"weights": _MEAN, "bounds": _BOUNDS, **adversary}
    return Recipe.parse(values)


def rate_selection(rules: dict[str, Any], repeats: int) -> list[Job]:
    """Return the plain runs that choose the rate of every fold.

    Args:
        rules: the study's criteria.
        repeats: runs a fold and rate.

    Returns:
        Jobs.
    """
    seeds = selection_seeds(repeats)
    return [_job(f"select {rate:g}", recipe(rules, rate, seed), seed, 20) for seed in seeds for rate in rules["rates"]]


def eps_selection(rules: dict[str, Any], rates: dict[int, float], repeats: int) -> list[Job]:
    """Return the runs that choose eps of the adversary, and of random signs, for every fold.

    Args:
        rules: the study's criteria.
        rates: fold -> rate.
        repeats: runs a fold and setting.

    Returns:
        Jobs.
    """
    found = []
    for seed in selection_seeds(repeats):
        rate = rates[seed % len(rates)]
        for eps in rules["eps"]:
            found.append(_job(f"adversary {eps:g}", recipe(rules, rate, seed, {"eps": eps}), seed, 21))
        for eps in rules["noise_eps"]:
            made = recipe(rules, rate, seed, {"eps": eps, "form": "random-sign"})
            found.append(_job(f"noise {eps:g}", made, seed, 22))
    return found


def reported(
    rules: dict[str, Any], rates: dict[int, float], eps: dict[int, float], noise: dict[int, float], seeds: int
) -> list[list[Job]]:
    """Return the runs of the study in groups of one seed.

    Args:
        rules: the study's criteria.
        rates: fold -> rate.
        eps: fold -> eps of the adversary.
        noise: fold -> eps of random signs.
        seeds: how many.

    Returns:
        Groups of jobs.
    """
    groups = []
    for seed in range(seeds):
        fold = seed % len(rates)
        rate, size = rates[fold], {"eps": eps[fold]}
        arms: dict[str, Recipe] = {PLAIN: recipe(rules, rate, seed)}
        arms |= {stale(tau): recipe(rules, rate, seed, {**size, "tau": tau}) for tau in rules["taus"]}
        arms[NOISE] = recipe(rules, rate, seed, {"eps": noise[fold], "form": "random-sign"})
        arms[TWO] = recipe(rules, rate, seed, {**size, "norms": "two"})
        arms[SUM] = recipe(rules, rate, seed, {**size, "weights": [1.0, 1.0]})
        arms[SMALL] = _small(rules, arms[PLAIN])
        kept = {name: made for name, made in arms.items() if name not in CONTROLS or name in controls(rules)}
        kept |= beside(rules, rate, seed, eps[fold], noise[fold])
        groups.append([_job(name, made, seed, place) for place, (name, made) in enumerate(kept.items())])
    return groups


def beside(rules: dict[str, Any], rate: float, seed: int, eps: float, noise: float) -> dict[str, Recipe]:
    """Return arms on which no claim rests: the pair in fewer updates, and random signs as large as the adversary.

    Args:
        rules: the study's criteria.
        rate: learning rate.
        seed: decides which fold is held out.
        eps: of the adversary.
        noise: eps of random signs.

    Returns:
        Arm -> recipe, none unless the grid asks for them.
    """
    if "beside" not in rules:
        return {}
    fewer = {**rules, "updates": rules["beside"]["updates"]}
    return {
        f"{stale(1)}, {FEWER}": recipe(fewer, rate, seed, {"eps": eps, "tau": 1}),
        f"{NOISE}, {FEWER}": recipe(fewer, rate, seed, {"eps": noise, "form": "random-sign"}),
        f"{NOISE}, {ITS_EPS}": recipe(rules, rate, seed, {"eps": eps, "form": "random-sign"}),
    }


def _small(rules: dict[str, Any], plain: Recipe) -> Recipe:
    """The same images in small batches, at the rate that keeps rate per sample."""
    size = rules["small"]
    optimizer = plain.optimizer.model_copy(update={"lr": plain.optimizer.lr * size / plain.batch.size})
    return plain.model_copy(update={"batch": plain.batch.model_copy(update={"size": size}), "optimizer": optimizer})


def _job(name: str, made: Recipe, seed: int, stream: int) -> Job:
    return Job(name, made, seed, stream, (int(made.staircase().length),))
