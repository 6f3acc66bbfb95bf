"""More seeds, honestly: looks fixed before the run, with the error rates spent over them."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import integrate, optimize, special

from isobatch.errors import InputError
from isobatch.units import whole
from isobatch.verify.intervals import LEVEL, Level

MOST_LOOKS = 4
_POINTS, _FAR = 2001, 8.0


@dataclass(frozen=True)
class Looks:
    """A group-sequential design: numbers of seeds after which a verdict may be reached.

    After n_k of N seeds the share n_k/N of each error rate has been spent (Lan-DeMets, linear). SAME: the nominal level
    of a look is the one at which a test of normal gaps first passes there with the probability that is spent there.
    DIFFERENT: the nominal level is what is spent (Bonferroni over looks), which holds for any number of marks.

    Args:
        seeds: at each look, rising.

    Raises:
        InputError: no looks, or looks that do not rise.

    Example:
        >>> looks = Looks.between(10, 40)
        >>> looks.seeds
        (10, 20, 30, 40)
        >>> [round(looks.level(i).same, 4) for i in range(4)]
        [0.0125, 0.0168, 0.0218, 0.0271]
        >>> Looks.between(20, 20).level(0)
        Level(same=0.05, different=0.025)

    References:
        Lan and DeMets, Biometrika 70 (1983); Jennison and Turnbull, Group Sequential Methods (2000), chapters 3 and 7.
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.seeds))
        if not self.seeds or self.seeds[0] < 2 or not rising:
            raise InputError(f"seeds={self.seeds} must be rising whole numbers from 2 on, such as (10, 20, 40)")

    @classmethod
    def between(cls, least: int, most: int) -> "Looks":
        """Return at most four looks at equal distances, each with at least half as many new seeds as the first.

        Args:
            least: seeds at the first look.
            most: seeds at the last.

        Returns:
            The design.

        Raises:
            InputError: most below least, or fewer than two seeds.
        """
        if whole("most", most) < whole("least", least, 2):
            raise InputError(f"most={most} must be at least least={least}: {least}..{2 * least}, for example")
        steps = min(MOST_LOOKS - 1, math.ceil(2 * (most - least) / least))
        return cls(tuple(least + round(i * (most - least) / steps) for i in range(steps + 1)) if steps else (least,))

    def level(self, index: int) -> Level:
        """Return the error rates of the test at one look.

        Args:
            index: of the look, from 0.

        Returns:
            Nominal levels.

        Raises:
            InputError: no such look.
        """
        if not 0 <= whole("index", index, 0) < len(self.seeds):
            raise InputError(f"index={index} must be from 0 to {len(self.seeds) - 1}: looks={len(self.seeds)}")
        before = self.seeds[index - 1] if index else 0
        spent = LEVEL.different * (self.seeds[index] - before) / self.seeds[-1]
        return Level(_nominal(self.seeds, LEVEL.same)[index], spent)


@lru_cache(maxsize=64)
def _nominal(seeds: tuple[int, ...], rate: float) -> tuple[float, ...]:
    """Levels at which a normal sum first crosses with the probability spent at each look.

    The density of the sum of n_k standard normal values that has not crossed is carried from look to look on a grid.
    """
    if len(seeds) == 1:
        return (rate,)
    levels = [rate * seeds[0] / seeds[-1]]
    reach = _FAR * math.sqrt(seeds[0])
    bound = -math.sqrt(seeds[0]) * special.ndtri(levels[0])
    grid = np.linspace(-reach, bound, _POINTS)
    density = _normal(grid / math.sqrt(seeds[0])) / math.sqrt(seeds[0])
    for before, now in pairwise(seeds):
        scale, spent = math.sqrt(now - before), rate * (now - before) / seeds[-1]

        def excess(bound: float, grid=grid, density=density, scale=scale, spent=spent) -> float:
            return float(integrate.trapezoid(density * special.ndtr((grid - bound) / scale), grid)) - spent

        bound = optimize.brentq(excess, 0.0, _FAR * math.sqrt(now))
        levels.append(float(special.ndtr(-bound / math.sqrt(now))))
        finer = np.linspace(-_FAR * math.sqrt(now), bound, _POINTS)
        steps = _normal((finer[:, None] - grid) / scale) / scale
        grid, density = finer, integrate.trapezoid(density * steps, grid, axis=1)
    return tuple(levels)


def _normal(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
