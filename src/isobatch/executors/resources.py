"""What one run takes of a machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What one run takes.

    Args:
        cpus: cores.
        gpus: GPUs; 0.25 lets four runs share one.
        memory_gb: memory in GB, None for what there is.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float | None = None
