"""The utterances of a run: labelled and unlabelled for training, dev for the start, test for the report."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import finite, whole
from isobatch_studies.tasks.speech import librispeech
from isobatch_studies.tasks.speech.synthetic import Sizes, corpus, fingerprint
from isobatch_studies.tasks.speech.utterances import UtteranceBatch, Utterances

_BANDS = 32
_SPLITS = {"labelled": "train-clean-100", "unlabelled": "train-clean-360", "dev": "dev-clean", "test": "test-clean"}


@dataclass(frozen=True)
class Pools:
    """Training utterances in slots, and what is held out.

    A slot is one sample of an epoch. The first `len(slots) - unlabelled` slots hold labelled utterances, each as often
    as it takes; every other slot holds an unlabelled one once pseudo-labelling has begun, a labelled one before.

    Args:
        train: labelled utterances, then unlabelled ones.
        labelled: how many are labelled.
        slots: samples of an epoch.
        dev: utterances that decide the start.
        test: utterances that are reported.
        facts: what the data is.
    """

    train: Utterances
    labelled: int
    slots: int
    dev: Utterances
    test: Utterances
    facts: dict[str, str]

    def batch(self, slots: torch.Tensor, mixed: bool) -> UtteranceBatch:
        """Return the utterances of some slots.

        Args:
            slots: int64 of shape (batch,).
            mixed: whether pseudo-labelling has begun.

        Returns:
            The batch; `labelled` tells which rows have a transcript.
        """
        fixed = self.slots - (len(self.train) - self.labelled)
        unlabelled = (slots >= fixed) & mixed
        return self.train.batch(
            torch.where(unlabelled, self.labelled + slots - fixed, slots % self.labelled), ~unlabelled
        )


class Slots:
    """The samples of a run as their slots; the loss makes the batch, because the clock decides what a slot holds.

    Args:
        count: slots.
    """

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return indices


def pools(settings: Recipe) -> Pools:
    """Return the utterances that a recipe asks for.

    Args:
        settings: options.share of pseudo-labelled samples (0.5). With options.folder, LibriSpeech: the splits are
            options.labelled_split, unlabelled_split, dev_split and test_split, options.limit recordings of each.
            Without it the synthetic corpus: options by the names of `Sizes`, and options.corpus_seed (0).

    Returns:
        The pools.

    Raises:
        InputError: a share outside (0, 1), or data that is not there.
    """
    options = settings.options
    share = finite("options.share", options.get("share", 0.5), 0, 1, open_low=True)
    if share == 1:
        raise InputError("options.share=1 leaves no labelled samples; it must lie between 0 and 1")
    parts, facts = _librispeech(options) if "folder" in options else _synthetic(options)
    labelled, unlabelled = parts["labelled"], parts["unlabelled"]
    slots = round(len(unlabelled) / share)
    return Pools(labelled + unlabelled, len(labelled), slots, parts["dev"], parts["test"], facts)


def _synthetic(options: dict[str, Any]) -> tuple[dict[str, Utterances], dict[str, str]]:
    sizes = Sizes(**{f.name: whole(f"options.{f.name}", options.get(f.name, f.default)) for f in fields(Sizes)})
    parts = corpus(sizes, whole("options.corpus_seed", options.get("corpus_seed", 0), 0), _BANDS)
    text = f"SYNTHETIC speech (espeak-ng), {sizes.labelled} labelled, {sizes.unlabelled} unlabelled, {sizes.test} test"
    return parts, {"data": text, "features_sha256": fingerprint(parts)}


def _librispeech(options: dict[str, Any]) -> tuple[dict[str, Utterances], dict[str, str]]:
    root = Path(str(options["folder"]))
    limit = whole("options.limit", options["limit"]) if "limit" in options else None
    names = {part: str(options.get(f"{part}_split", name)) for part, name in _SPLITS.items()}
    parts = {part: librispeech.read(root / name, _BANDS, limit) for part, name in names.items()}
    text = ", ".join(f"{names[part]} ({len(parts[part])})" for part in parts)
    return parts, {"data": f"LibriSpeech: {text}", "features_sha256": fingerprint(parts)}
