"""Inside the trainers that people use: HF Trainer, Lightning, Accelerate; and the averaged weights in their files.

Each trainer has a module of its own, which needs the extra of that name:
`isobatch.integrations.hf`, `isobatch.integrations.lightning`, `isobatch.integrations.accelerate`.
"""

from isobatch.installed import need

need("torch")

from importlib import import_module
from typing import Any

from isobatch.integrations.export import save_average
from isobatch.integrations.peers import Adopted, load_peer
from isobatch.integrations.report import is_larger_worth_it
from isobatch.integrations.settings import Following

__all__ = ["Adopted", "Following", "is_larger_worth_it", "load_peer", "save_average"]

_TRAINERS = ("accelerate", "hf", "lightning")


def __getattr__(name: str) -> Any:
    if name in _TRAINERS:
        return import_module(f"isobatch.integrations.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_TRAINERS})
