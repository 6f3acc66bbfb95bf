"""LibriSpeech's layout: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac beside SPEAKER-CHAPTER.trans.txt."""

from pathlib import Path

import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.speech.features import log_mel
from isobatch_studies.tasks.speech.utterances import Utterances


def transcripts(folder: str | Path) -> list[tuple[Path, str]]:
    """Return the recordings of one split and what is said in them, in a fixed order.

    Args:
        folder: such as LibriSpeech/train-clean-100.

    Returns:
        (path of the FLAC file, text) pairs.

    Raises:
        InputError: no transcripts, a line without text, or a recording that is missing.
    """
    root, found = Path(folder), []
    for page in sorted(root.glob("*/*/*.trans.txt")):
        for line in page.read_text("utf-8").splitlines():
            name, _, text = line.partition(" ")
            path = page.parent / f"{name}.flac"
            if not text.strip():
                raise InputError(f"{page}: the line {line!r} has no text; it must read NAME TEXT")
            if not path.is_file():
                raise InputError(f"{page} names {path.name}, which is not there; unpack the archive again")
            found.append((path, text.strip().lower()))
    if not found:
        raise InputError(f"{root} holds no SPEAKER/CHAPTER/*.trans.txt; give the folder of one split of LibriSpeech")
    return found


def read(folder: str | Path, bands: int = 32, limit: int | None = None) -> Utterances:
    """Read one split into memory: one byte a feature, about 11 MB an hour at 32 bands.

    Args:
        folder: such as LibriSpeech/train-clean-100.
        bands: mel bands.
        limit: at most this many recordings, the first in order; all of them unless given.

    Returns:
        Utterances; a voice is a speaker's folder.

    Raises:
        InputError: a folder of another layout, a file that is not audio, or soundfile not installed.
    """
    lines = transcripts(folder)[:limit]
    features = [log_mel(*recording(path), bands) for path, _ in lines]
    return Utterances.of(features, [text for _, text in lines], [path.parts[-3] for path, _ in lines])


def recording(path: Path) -> tuple[torch.Tensor, int]:
    """Read one recording.

    Args:
        path: a FLAC file of one channel.

    Returns:
        Samples of shape (samples,), float32, and their rate in Hz.

    Raises:
        InputError: not audio, several channels, or soundfile not installed.
    """
    try:
        import soundfile
    except ImportError as error:
        raise InputError(
            'FLAC is read by soundfile; install the extra: pip install "isobatch-studies[speech]"'
        ) from error
    try:
        wave, rate = soundfile.read(path, dtype="float32")
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} cannot be read as audio: {error}") from error
    if wave.ndim != 1:
        raise InputError(f"{path} has {wave.shape[1]} channels; give mono files, as LibriSpeech's are")
    return torch.from_numpy(wave), int(rate)
