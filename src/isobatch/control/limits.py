"""Which batches are allowed: bounds, memory, data, and the grain that devices and micro-batches set."""

from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.units import whole


def multiples_near(value: int, grain: int) -> str:
    """Return the positive multiples of a grain on both sides of a value, for messages.

    Args:
        value: a positive number.
        grain: positive.

    Returns:
        Text.

    Example:
        >>> multiples_near(50, 24), multiples_near(5, 24)
        ('48 or 72', '24')
    """
    below = value // grain * grain
    return f"{below} or {below + grain}" if below else f"{grain}"


@dataclass(frozen=True)
class Limits:
    """The batches that a run may use: multiples of grain from least up to the smallest upper limit.

    Args:
        least: smallest batch.
        most: largest batch wanted, such as the critical batch size; None for no limit.
        memory: largest batch that fits, devices x micro x the accumulation you accept; None for no limit.
        data: samples of the data set: a larger batch would repeat samples within a step; None for no limit.
        grain: what every batch is a multiple of, devices x micro.

    Raises:
        InputError: a limit that is not a positive whole number, or limits between which no multiple lies.

    Example:
        >>> limits = Limits(least=8, memory=500, data=1437, grain=8)
        >>> limits.low, limits.high, limits.nearest(99.0), limits.binding
        (8, 496, 96, 'the memory limit 500')
    """

    least: int = 1
    most: int | None = None
    memory: int | None = None
    data: int | None = None
    grain: int = 1

    def __post_init__(self) -> None:
        whole("grain", self.grain)
        whole("least batch", self.least)
        for name, limit in self._upper():
            whole(name, limit)
        if self.high is not None and self.high < self.low:
            raise InputError(
                f"no multiple of grain={self.grain} lies in [{self.least}, {self.binding}]; "
                f"multiples near {self.least}: {multiples_near(self.least, self.grain)}; move a limit or the grain"
            )

    @property
    def low(self) -> int:
        """Smallest allowed batch."""
        return -(-self.least // self.grain) * self.grain

    @property
    def high(self) -> int | None:
        """Largest allowed batch, None without an upper limit."""
        upper = [limit for _, limit in self._upper()]
        return min(upper) // self.grain * self.grain if upper else None

    @property
    def binding(self) -> str:
        """The upper limit that acts, in words."""
        upper = self._upper()
        return "the {} {}".format(*min(upper, key=lambda item: item[1])) if upper else "no upper limit"

    def allows(self, batch: int) -> bool:
        """Return whether a batch is inside the limits and on the grain.

        Args:
            batch: global batch.

        Returns:
            True or False.
        """
        return batch % self.grain == 0 and batch >= self.low and (self.high is None or batch <= self.high)

    def nearest(self, batch: float) -> int:
        """Return the allowed batch nearest to a number.

        Args:
            batch: any positive number.

        Returns:
            The batch; of two at the same distance the larger one.
        """
        rounded = max(self.low, int(batch / self.grain + 0.5) * self.grain)
        return rounded if self.high is None else min(rounded, self.high)

    def _upper(self) -> list[tuple[str, int]]:
        limits = (("largest batch", self.most), ("memory limit", self.memory), ("data limit", self.data))
        return [(name, limit) for name, limit in limits if limit is not None]
