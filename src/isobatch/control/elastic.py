"""Another number of devices: the global batch kept by a new split, or scaled with the devices."""

from dataclasses import dataclass

from isobatch.errors import InputError
from isobatch.units import whole

MODES = ("keep", "scale")


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
        whole("devices", self.devices)
        whole("micro", self.micro)
        if whole("batch", self.batch) < self.devices:
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


@dataclass(frozen=True)
class WorldChange:
    """What another number of devices means for a run.

    Args:
        split: the new split.
        kappa: new batch / old batch; every setting and state follows it, nothing moves at 1.
        reason: in words.
    """

    split: Split
    kappa: float
    reason: str


def even_split(batch: int, devices: int, micro: int) -> Split:
    """Spread a batch evenly, or refuse it before the first step.

    Args:
        batch: global samples of a step.
        devices: data-parallel devices.
        micro: samples in one forward pass of a device.

    Returns:
        The even split.

    Raises:
        InputError: batch is no multiple of devices x micro; the nearest splits are listed.

    Example:
        >>> print(even_split(64, devices=4, micro=8))
        64 = 4 devices x micro 8 x 2
    """
    asked = Split(batch, devices, micro)
    if not asked.even:
        raise InputError(
            f"batch={batch} must be a multiple of devices x micro = {devices * micro}; nearest even splits: "
            f"{'; '.join(map(str, nearest_splits(batch, devices, micro)))}; or an uneven one, weighted: {asked}"
        )
    return asked


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
    fewer = max(count for count in range(1, devices) if batch % count == 0) if devices > 1 else devices
    kept = [Split(batch, n, largest_divisor(batch // n, micro)) for n in (devices, fewer) if batch % n == 0]
    below = asked.batch // (devices * micro) * devices * micro
    others = [Split(near, devices, micro) for near in (below, below + devices * micro) if near]
    others.sort(key=lambda near: abs(near.batch - batch))
    return tuple(dict.fromkeys(kept + others))


def change_world(
    batch: int, devices: int, new_devices: int, micro: int, *, mode: str = "keep", uneven: bool = False
) -> WorldChange:
    """Return what a run does when the number of its devices changes.

    keep: the same global batch, so the same run; micro-batch and accumulation are planned again. The micro-batch stays
    where it divides a device's share, else the largest divisor below it is taken. scale: the same share a device, so
    batch * new/old, and every setting follows by the plan.

    Args:
        batch: global samples of a step until now.
        devices: devices until now.
        new_devices: devices from now on.
        micro: most samples in one forward pass.
        mode: keep or scale.
        uneven: whether devices may take unequal shares, for a loop that weights means by their samples.

    Returns:
        The new split, kappa and the reason.

    Raises:
        InputError: a batch that the new devices cannot share evenly, with the nearest splits, or a mode unknown.

    Example:
        >>> print(change_world(64, 4, 2, micro=8).reason)
        the batch stays 64 = 2 devices x micro 8 x 4; nothing else changes
        >>> change_world(64, 4, 3, micro=8, mode="scale").kappa
        0.75

    References:
        arXiv 1706.02677 (one update of B is the same however it is split, batch statistics apart).
    """
    if mode not in MODES:
        raise InputError(f"mode={mode!r} must be one of {', '.join(MODES)}")
    old, count = Split(batch, devices, micro), whole("new_devices", new_devices)
    if mode == "scale":
        if batch * count % devices:
            raise InputError(
                f"batch={batch} x {count}/{devices} devices is not whole; keep the batch, or start from a multiple "
                f"of {devices}"
            )
        size = batch * count // devices
        new = _even_or_uneven(size, count, micro, uneven)
        because = f"the batch becomes {new}; kappa = {count}/{devices}, every setting follows the plan"
        return WorldChange(new, size / batch, because)
    new = _even_or_uneven(old.batch, count, micro, uneven)
    kept = new.widest == old.widest
    effect = "nothing else changes" if kept else f"the micro-batch was {old.widest}, which only batch norm sees"
    return WorldChange(new, 1.0, f"the batch stays {new}; {effect}")


def _even_or_uneven(batch: int, devices: int, micro: int, uneven: bool) -> Split:
    if batch % devices == 0:
        share = batch // devices
        divisor = largest_divisor(share, micro)
        # An awkward share would run a sample at a time to stay even; where weights allow, a small last pass is better.
        return Split(batch, devices, micro if uneven and 2 * divisor < min(share, micro) else divisor)
    return Split(batch, devices, micro) if uneven else even_split(batch, devices, micro)


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
