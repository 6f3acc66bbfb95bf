"""isobatch: the same training run, at any batch size.

Every room is reachable as `isobatch.room`; rooms and the names that need torch are loaded when first used.
"""

import os
import sys

# `python -m isobatch` and an empty part of PYTHONPATH put the current folder first, where a user's re.py would hide
# Python's own before __main__ begins; main() puts it behind. argv[0] is "-m" while Python looks for the module.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("isobatch", "-misobatch"):
    try:
        _here = os.getcwd()  # noqa: PTH109 (pathlib needs re)
    except FileNotFoundError:
        _here = ""
    sys.path[:] = [path for path in sys.path if path not in ("", _here)]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isobatch.errors import InputError, IsobatchError, NonFiniteError
from isobatch.installed import VERSION as __version__

if TYPE_CHECKING:
    from isobatch import (
        augment,
        average,
        checkpoint,
        cli,
        control,
        critical,
        curves,
        data,
        decentralized,
        errors,
        executors,
        export,
        formats,
        gradients,
        installed,
        integrations,
        logs,
        markup,
        modules,
        noise,
        optimizers,
        plan,
        published,
        recipe,
        renamed,
        report,
        results,
        rules,
        schedules,
        split,
        student,
        tasks,
        testing,
        topologies,
        train,
        units,
        verify,
    )
    from isobatch.average import ModelEMA
    from isobatch.noise import NoiseScale
    from isobatch.optimizers import InvariantAdam, InvariantAdamW, InvariantRMSprop
    from isobatch.plan import Plan, Recipe
    from isobatch.train import SampleClock, SampleScheduler, rescale

_HOME = {
    "InvariantAdam": "optimizers",
    "InvariantAdamW": "optimizers",
    "InvariantRMSprop": "optimizers",
    "ModelEMA": "average",
    "NoiseScale": "noise",
    "Plan": "plan",
    "Recipe": "plan",
    "SampleClock": "train",
    "SampleScheduler": "train",
    "rescale": "train",
}

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
    "SampleClock",
    "SampleScheduler",
    "__version__",
    "augment",
    "average",
    "checkpoint",
    "cli",
    "control",
    "critical",
    "curves",
    "data",
    "decentralized",
    "errors",
    "executors",
    "export",
    "formats",
    "gradients",
    "installed",
    "integrations",
    "logs",
    "markup",
    "modules",
    "noise",
    "optimizers",
    "plan",
    "published",
    "recipe",
    "renamed",
    "report",
    "rescale",
    "results",
    "rules",
    "schedules",
    "split",
    "student",
    "tasks",
    "testing",
    "topologies",
    "train",
    "units",
    "verify",
]


if not TYPE_CHECKING:  # a type checker knows every name from the imports above, and no other

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(import_module(f"isobatch.{_HOME[name]}"), name)
        if name in __all__:
            return import_module(f"isobatch.{name}")
        raise AttributeError(f"module 'isobatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
