"""The SYNTHETIC corpus: digits and words spoken by espeak-ng, split by voice, made once and kept.

No evidence about human speech: it gives unlimited labels, many voices and a gap between the labelled few and the rest.
"""

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from isobatch.errors import InputError
from isobatch_studies.tasks.speech.espeak import speak
from isobatch_studies.tasks.speech.features import log_mel
from isobatch_studies.tasks.speech.utterances import Utterances, quantise

_WORDS = "zero one two three four five six seven eight nine yes no stop go"
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_VARIANTS = (
    "Alex Andrea Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike "
    "Nguyen RicishayMax RicishayMax2 RicishayMax3 Tweaky adam anika announcer antonio aunty belinda benjamin boris "
    "david ed edward edward2 f1 f4 grandma grandpa gustave ian iven iven2 iven3 iven4 john kaukovalta klatt klatt2 "
    "klatt3 klatt4 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel mike2 norbert pablo paul pedro quincy rob "
    "robert shelby steph steph2 steph3 travis zac"
)
WORDS, VARIANTS = _WORDS.split(), _VARIANTS.split()
"""Words, and the voice variants that speak the same way in every process; those with breath are noisy, and left out."""
_VERSION = 1


@dataclass(frozen=True)
class Sizes:
    """Utterances and voices of each part; no voice is in two parts.

    Args:
        labelled: utterances with a transcript in training.
        unlabelled: utterances without one.
        dev: held-out utterances that decide the start of pseudo-labelling.
        test: held-out utterances that are reported.
        labelled_voices: voice variants of the labelled part.
        dev_voices: voice variants of dev.
        test_voices: voice variants of test.
    """

    labelled: int = 512
    unlabelled: int = 1536
    dev: int = 96
    test: int = 384
    labelled_voices: int = 4
    dev_voices: int = 8
    test_voices: int = 16


Phrase = tuple[str, str, int, int]


def phrases(sizes: Sizes, seed: int) -> dict[str, list[Phrase]]:
    """Return what is said by whom: one or two words, any speed from 140 to 200 words a minute.

    Args:
        sizes: of the parts.
        seed: of words, voices, speeds and pitches.

    Returns:
        part -> (text, voice, words per minute, pitch).

    Raises:
        InputError: more voices than there are.
    """
    chance = random.Random(f"isobatch speech {seed}")
    variants = chance.sample(VARIANTS, len(VARIANTS))
    counts = (sizes.labelled_voices, sizes.dev_voices, sizes.test_voices)
    if min(counts) < 1 or sum(counts) >= len(variants):
        raise InputError(f"voices {counts} must each be at least 1, and fewer than {len(variants)} in all")
    ends = [sum(counts[:i]) for i in range(4)]
    few, dev, test, rest = (variants[a:b] for a, b in zip(ends, [*ends[1:], None], strict=True))
    found: dict[str, list[Phrase]] = {}
    for part, voices, accents in (
        ("labelled", few, ACCENTS),
        ("unlabelled", rest, ACCENTS),
        ("dev", dev, ACCENTS),
        ("test", test, ACCENTS),
    ):
        found[part] = [
            (
                " ".join(chance.choices(WORDS, k=chance.randint(1, 2))),
                f"{chance.choice(accents)}+{chance.choice(voices)}",
                chance.randint(140, 200),
                chance.randint(25, 75),
            )
            for _ in range(getattr(sizes, part))
        ]
    return found


def corpus(sizes: Sizes, seed: int = 0, bands: int = 32) -> dict[str, Utterances]:
    """Return the parts of the corpus, spoken now or read from the cache.

    Args:
        sizes: of the parts.
        seed: of what is said by whom.
        bands: mel bands.

    Returns:
        part -> utterances.

    Raises:
        InputError: nothing cached and the extra `speech` is not installed.
    """
    said = phrases(sizes, seed)
    key = json.dumps([_VERSION, asdict(sizes), seed, bands, said], sort_keys=True)
    path = cache_folder() / f"speech-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        write_atomically(path, _speak_all(said, bands))
    tensors = load_file(path)
    parts = {}
    for part, lines in said.items():
        texts, voices = [line[0] for line in lines], [line[1] for line in lines]
        parts[part] = Utterances(tensors[f"{part}.frames"], tensors[f"{part}.lengths"], texts, voices)
    return parts


def fingerprint(parts: Mapping[str, Utterances]) -> str:
    """Return a hash of the features of all parts, to stand beside every result.

    Args:
        parts: part -> utterances.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(parts[part].frames.numpy().tobytes() + "\n".join(parts[part].texts).encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return where made corpora are kept: $ISOBATCH_DATA, or isobatch in the user's cache folder.

    Returns:
        A folder; it need not exist.
    """
    own = os.environ.get("ISOBATCH_DATA")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "isobatch"


def write_atomically(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors under a name of their own and rename: a reader sees the whole file or none.

    Args:
        path: of the file; its folder is made.
        tensors: its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _speak_all(said: dict[str, list[Phrase]], bands: int) -> dict[str, torch.Tensor]:
    waves, rate = speak([line for lines in said.values() for line in lines])
    left = iter(waves)
    tensors = {}
    for part, lines in said.items():
        features = [log_mel(torch.from_numpy(next(left)), rate, bands) for _ in lines]
        tensors[f"{part}.frames"] = quantise(torch.cat(features))
        tensors[f"{part}.lengths"] = torch.tensor([len(x) for x in features])
    return tensors
