"""isobatch: the same training run, at any batch size.

Names that need torch are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isobatch.errors import InputError, IsobatchError, NonFiniteError

if TYPE_CHECKING:
    from isobatch.average import ModelEMA
    from isobatch.noise import NoiseScale
    from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop
    from isobatch.plan import Plan, Recipe
    from isobatch.train import SampleScheduler, rescale

__version__ = "0.1.0"

_LAZY = {
    "InvariantAdam": "isobatch.optimizers",
    "InvariantAdamW": "isobatch.optimizers",
    "InvariantRMSprop": "isobatch.optimizers",
    "ModelEMA": "isobatch.average",
    "NoiseScale": "isobatch.noise",
    "Plan": "isobatch.plan",
    "Recipe": "isobatch.plan",
    "SampleScheduler": "isobatch.train",
    "rescale": "isobatch.train",
}
_MODULES = ("control", "critical", "curves", "noise", "plan", "recipe", "rules", "schedules", "units", "verify")

__all__ = [
    "InputError",
    "InvariantAdam",
    "InvariantAdamW",
    "InvariantRMSprop",
    "IsobatchError",
    "ModelEMA",
    "NoiseScale",
    "NonFiniteError",
    "Plan",
    "Recipe",
    "SampleScheduler",
    "__version__",
    "rescale",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"isobatch.{name}")
    raise AttributeError(f"module 'isobatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
