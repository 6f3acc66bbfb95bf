"""Past the noise scale: the published remedies that apply to a recipe, what each costs, and its evidence."""

from collections.abc import Iterator
from dataclasses import dataclass

from isobatch import rules
from isobatch.errors import InputError
from isobatch.plan.settings import curve, lr_rule_of, row_of
from isobatch.recipe import RecipeData
from isobatch.units import finite


@dataclass(frozen=True)
class Remedy:
    """One way to keep a batch useful that is larger than the noise scale.

    Args:
        name: what it is called.
        how: where it is switched on.
        cost: what it takes.
        evidence: who says that it helps, and which study here asks again.
    """

    name: str
    how: str
    cost: str
    evidence: str


def remedies(recipe: RecipeData, size: int, noise_scale: float | None) -> tuple[Remedy, ...]:
    """Return what applies when a batch goes past the noise scale; nothing below it, or where none is known.

    Args:
        recipe: the reference recipe; its own measured noise scale counts where none is given.
        size: the batch that is planned.
        noise_scale: in the recipe's unit, None where it was not given.

    Returns:
        Remedies, the cheapest first.
    """
    if noise_scale is None and recipe.critical is not None:
        noise_scale = recipe.critical.noise_scale
    if noise_scale is None or size <= finite("noise scale", noise_scale, 0) or size <= recipe.batch.size:
        return ()
    return tuple(_all(recipe, size, noise_scale))


def _all(recipe: RecipeData, size: int, noise_scale: float) -> Iterator[Remedy]:
    kappa, row = size / recipe.batch.size, row_of(recipe)
    if recipe.schedule is not None and not recipe.schedule.searches:
        if _warmup_fits(recipe, kappa):
            yield Remedy(
                "LEGW",
                "isobatch plan --rule legw",
                "nothing per step; the full rate comes later",
                "arXiv 1901.08256; study legw: 1.6 points lost at 16x, 1.1 without the longer warm-up",
            )
        yield Remedy(
            "AutoWU",
            'schedule.shape = "autowu", optimizer.lr = the highest rate to try',
            "up to half the run is the search; a few ms a test",
            "arXiv 2107.05855; study autowu. It finds a usable rate, not a better one than tuning",
        )
    if not (row.sign_like or row.adaptive or row.convention or recipe.optimizer.momentum):  # plain SGD
        worth = rules.gain(size, recipe.batch.size, noise_scale)
        yield Remedy(
            "AdaScale",
            "isobatch.control.AdaScale in your own loop",
            f"a step is worth {worth:.3g} base steps, so the run takes {kappa / worth:.3g} times the samples",
            "arXiv 2007.05105",
        )
    yield from _others(row)


def _others(row: rules.OptimizerRow) -> Iterator[Remedy]:
    if row.decay != "trust-ratio":
        other = "lamb" if row.adaptive else "lars"
        yield Remedy(
            other.upper(),
            f'optimizer.name = "{other}"',
            "another optimizer: its rate must be found anew",
            "arXiv 1904.00962, 1708.03888; but tuned Nesterov and Adam match them at 32K (2102.06356)",
        )
    yield Remedy(
        "batch augmentation",
        "isobatch.augment: M views of each sample",
        "M times the work a step, on parallel hardware the same time",
        "arXiv 1901.09335; study batch-augmentation. More updates on the same images do more, where there is time",
    )
    yield Remedy(
        "concurrent adversarial",
        "isobatch.augment: one-step perturbations made ahead",
        "twice the rows a step, and one more pass that may run beside it",
        "arXiv 2106.00221; study concurrent-adversarial. Noise of its own best size may do as well",
    )


def _warmup_fits(recipe: RecipeData, kappa: float) -> bool:
    stairs = curve(recipe)
    try:
        rules.legw(recipe.optimizer.lr, stairs.warmup, kappa, stairs.length)
    except InputError:
        return False
    return lr_rule_of(recipe).others is None
