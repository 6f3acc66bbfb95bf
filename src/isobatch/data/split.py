"""How one global batch becomes micro-batches on ranks, and which splits are even."""

from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.units import whole


@dataclass(frozen=True)
class Split:
    """How one global batch is spread: the first devices take one sample more where it does not divide.

    Args:
        batch: global samples of a step, at least one a device.
        devices: data-parallel devices.
        micro: most samples in one forward pass of a device.

    Raises:
        InputError: a value that is not a positive whole number, or fewer samples than devices.

    Example:
        >>> uneven = Split(64, devices=3, micro=8)
        >>> uneven.even, uneven.micro_batches(0), uneven.accumulation
        (False, (8, 8, 6), 3)
    """

    batch: int
    devices: int
    micro: int

    def __post_init__(self) -> None:
        for name in ("devices", "micro", "batch"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))  # numpy's numbers become Python's
        if self.batch < self.devices:
            raise InputError(
                f"batch={self.batch} must be at least devices={self.devices}, one sample each; use fewer devices"
            )

    @property
    def even(self) -> bool:
        """Whether all devices take the same equal micro-batches, so that a plain mean of means is the mean."""
        return self.batch % self.devices == 0 and self.share(0) % self.widest == 0

    @property
    def widest(self) -> int:
        """Samples of the largest micro-batch."""
        return min(self.micro, self.share(0))

    @property
    def accumulation(self) -> int:
        """Most micro-batches of any device in a step."""
        return -(-self.share(0) // self.micro)

    def share(self, device: int) -> int:
        """Return the samples of a device.

        Args:
            device: its rank, from 0.

        Returns:
            Samples of a step.
        """
        rank = whole("device", device, 0)
        if rank >= self.devices:
            raise InputError(f"device={rank} must be in [0, {self.devices - 1}]")
        return self.batch // self.devices + (rank < self.batch % self.devices)

    def micro_batches(self, device: int) -> tuple[int, ...]:
        """Return the sizes of a device's micro-batches; each mean counts with the weight size/batch.

        Args:
            device: its rank, from 0.

        Returns:
            Sizes, whole ones first.
        """
        full, rest = divmod(self.share(device), self.micro)
        return (self.micro,) * full + (rest,) * (rest > 0)

    def __str__(self) -> str:
        tail = "" if self.even else ", uneven"
        return f"{self.batch} = {self.devices} devices x micro {self.widest} x {self.accumulation}{tail}"


def nearest_splits(batch: int, devices: int, micro: int) -> tuple[Split, ...]:
    """Return the even splits nearest to what was asked, those that keep the batch first.

    Args:
        batch: global samples of a step.
        devices: data-parallel devices.
        micro: most samples in one forward pass.

    Returns:
        The same batch on the same devices and on the most devices below that divide it, and the multiples of devices x
        micro on both sides.

    Example:
        >>> [str(near) for near in nearest_splits(64, 3, 8)]
        ['64 = 2 devices x micro 8 x 4', '72 = 3 devices x micro 8 x 3', '48 = 3 devices x micro 8 x 2']
    """
    asked = Split(batch, devices, micro)
    batch, devices, micro = asked.batch, asked.devices, asked.micro
    fewer = max(count for count in range(1, devices) if batch % count == 0) if devices > 1 else devices
    kept = [Split(batch, n, largest_divisor(batch // n, micro)) for n in (devices, fewer) if batch % n == 0]
    below = asked.batch // (devices * micro) * devices * micro
    others = [Split(near, devices, micro) for near in (below, below + devices * micro) if near]
    others.sort(key=lambda near: abs(near.batch - batch))
    return tuple(dict.fromkeys(kept + others))


def largest_divisor(share: int, most: int) -> int:
    """Return the largest divisor of a share that is at most a limit.

    Args:
        share: samples of a device.
        most: the limit.

    Returns:
        The divisor, at least 1.

    Example:
        >>> largest_divisor(20, 8)
        5
    """
    return max(size for size in range(1, min(share, most) + 1) if share % size == 0)
