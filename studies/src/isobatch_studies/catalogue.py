"""The studies: what each one asks; a study's own modules are loaded when it runs."""

import importlib
from dataclasses import dataclass
from typing import Any

_SOME = frozenset({"device", "grid", "simulate_nodes"})


@dataclass(frozen=True)
class Study:
    """One study, as an entry point of the group "isobatch.studies" gives it.

    Args:
        name: of the study; its folder has underscores for dashes.
        question: what it asks, in a line.
        takes: options of `run` beside those of every study: "device", "grid", "simulate_nodes".
    """

    name: str
    question: str
    takes: frozenset[str] = frozenset()

    def run(self, **options: Any) -> dict[str, Any]:
        """Train, judge and write.

        Args:
            **options: fields of `isobatch_studies.work.Work`, and "simulate_nodes", as far as the study takes them.

        Returns:
            What goes into result.json.

        Raises:
            TypeError: an option that only other studies take.
        """
        if spare := options.keys() & _SOME - self.takes:
            raise TypeError(f"study {self.name} does not take {', '.join(sorted(spare))}")
        own = {option: options.pop(option) for option in options.keys() & {"simulate_nodes"}}
        study = importlib.import_module(f"isobatch_studies.{self.name.replace('-', '_')}.study")
        return study.run(importlib.import_module("isobatch_studies.work").Work(**options), **own)


_GRID = frozenset({"grid"})
_DEVICE = frozenset({"device"})
_TEACHER = _GRID | _DEVICE

ADAM = Study("adam", "Adam at any batch size: which rule holds when", _GRID)
ADAPTIVE = Study("adaptive", "A batch that follows the noise scale, against fixed batches", _GRID)
AUTOWU = Study("autowu", "AutoWU: a learning rate found without tuning, and a short budget mended", _GRID)
BATCH_AUGMENTATION = Study("batch-augmentation", "Batch augmentation: many views of each sample in one update", _GRID)
BYOL = Study("byol", "BYOL: the average is the teacher", _DEVICE)
BYOL_24576 = Study("byol-24576", "BYOL from batch 4,096 to 24,576: the paper's own step", _DEVICE)
CONCURRENT_ADVERSARIAL = Study("concurrent-adversarial", "Adversarial examples made ahead by older weights", _GRID)
DECENTLAM = Study(
    "decentlam", "Decentralized momentum: who amplifies the inconsistency bias", frozenset({"simulate_nodes"})
)
DINO = Study("dino", "DINO: the average is the teacher, and its centre an average too", _TEACHER)
LEGW = Study("legw", "LEGW: sixteen times the batch with nothing retuned", _GRID)
NOISE_SCALE = Study("noise-scale", "The gradient noise scale against the critical batch, domain by domain", _GRID)
POLYAK = Study("polyak", "Averaged weights: the rule, the width of the place, the average as a teacher", _TEACHER)
PROGRESSIVE = Study("progressive", "Changing the batch in the middle of a run")
PSEUDO_LABEL = Study("pseudo-label", "Continual pseudo-labelling: the average labels the data", _DEVICE)
