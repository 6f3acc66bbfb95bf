"""The studies: what each one asks; a study's own modules are loaded when it runs."""

import importlib
from dataclasses import dataclass
from typing import Any


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
            **options: quick, out, workers, executor, budget, on_estimate, on_done, and those that the study takes.

        Returns:
            What goes into result.json.
        """
        return importlib.import_module(f"isobatch_studies.{self.name.replace('-', '_')}.study").run(**options)


_GRID = frozenset({"grid"})
_TEACHER = frozenset({"device", "grid"})

ADAM = Study("adam", "Adam at any batch size: which rule holds when", _GRID)
ADAPTIVE = Study("adaptive", "A batch that follows the noise scale, against fixed batches", _GRID)
AUTOWU = Study("autowu", "AutoWU: a learning rate found without tuning, and a short budget mended", _GRID)
BATCH_AUGMENTATION = Study("batch-augmentation", "Batch augmentation: many views of each sample in one update", _GRID)
BYOL = Study("byol", "BYOL: the average is the teacher", _TEACHER)
BYOL_24576 = Study("byol-24576", "BYOL from batch 4,096 to 24,576: the paper's own step", _TEACHER)
CONCURRENT_ADVERSARIAL = Study("concurrent-adversarial", "Adversarial examples made ahead by older weights", _GRID)
DECENTLAM = Study(
    "decentlam", "Decentralized momentum: who amplifies the inconsistency bias", frozenset({"simulate_nodes"})
)
DINO = Study("dino", "DINO: the average is the teacher, and its centre an average too", _TEACHER)
LEGW = Study("legw", "LEGW: sixteen times the batch with nothing retuned", _GRID)
NOISE_SCALE = Study("noise-scale", "The gradient noise scale against the critical batch, domain by domain", _GRID)
POLYAK = Study("polyak", "Averaged weights: the rule, the width of the place, the average as a teacher", _TEACHER)
PROGRESSIVE = Study("progressive", "Changing the batch in the middle of a run")
PSEUDO_LABEL = Study("pseudo-label", "Continual pseudo-labelling: the average labels the data", frozenset({"device"}))
