"""Images from a user's folder: MNIST, SVHN or CIFAR-10 as published, or one folder a class (ImageNet layout)."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.archives import archive
from isobatch_studies.tasks.pixels import Images, Part, digest, resized

_CIFAR_ROW = 1 + 3 * 32 * 32
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
_HELD_EVERY = 5


@cache
def folder(root: Path, side: int) -> Images:
    """Read a folder of images.

    Args:
        root: with the files of MNIST or SVHN (see `archive`), with data_batch_*.bin and test_batch.bin (CIFAR-10), with
            train/CLASS/ and val/CLASS/ (or test/CLASS/), or with CLASS/ alone, where every fifth image is held out.
        side: pixels; images are cut to their middle square and averaged to this size.

    Returns:
        The images.

    Raises:
        InputError: neither layout, or a damaged file.
    """
    bins, known = sorted(root.glob("data_batch_*.bin")), archive(root)
    names: tuple[str, ...] = tuple(map(str, range(10)))
    if known is not None:
        train, held, source = known
    elif bins:
        train = _cifar(bins)
        held = _cifar([root / "test_batch.bin"])
        source = "CIFAR-10, binary version"
    elif list(root.glob("data_batch_*")):
        raise InputError(
            f"{root} holds the Python version of CIFAR-10, whose files are pickles (code that would run when read); "
            "unpack cifar-10-binary.tar.gz instead"
        )
    else:
        train, held, names = _by_class(root, side)
        source = f"folder {root.name}"
    parts = [(resized(x, side), y) for x, y in (train, held)]
    facts = {"data": f"{source}, {len(names)} classes", "sha256": digest(parts[0][0], parts[1][0])}
    return Images(parts[0], parts[1], len(names), facts)


def _cifar(paths: list[Path]) -> Part:
    rows = []
    for path in paths:
        try:
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; unpack cifar-10-binary.tar.gz whole") from error
        if not len(data) or len(data) % _CIFAR_ROW or data[::_CIFAR_ROW].max() > 9:
            raise InputError(
                f"{path} is no file of CIFAR-10's binary version (rows of {_CIFAR_ROW} bytes, label first)"
            )
        rows.append(data.reshape(-1, _CIFAR_ROW))
    whole = torch.from_numpy(np.concatenate(rows))
    return whole[:, 1:].reshape(-1, 3, 32, 32).contiguous(), whole[:, 0].long()


def _by_class(root: Path, side: int) -> tuple[Part, Part, tuple[str, ...]]:
    split = root / "train"
    names = tuple(sorted(p.name for p in (split if split.is_dir() else root).iterdir() if p.is_dir()))
    if not names:
        raise InputError(f"{root} holds neither data_batch_*.bin nor one folder a class; see docs/methods/teachers.md")
    if split.is_dir():
        held = next((root / word for word in ("val", "test") if (root / word).is_dir()), None)
        if held is None:
            raise InputError(f"{root} has train/ but neither val/ nor test/; add held-out images")
        files = [_files(split, names), _files(held, names)]
    else:
        everything = _files(root, names)
        files = [
            [f for i, f in enumerate(everything) if (i % _HELD_EVERY == _HELD_EVERY - 1) == held]
            for held in (False, True)
        ]
    if not all(files):
        raise InputError(f"{root}: {len(files[0])} training and {len(files[1])} held-out images; both parts need some")
    parts = [
        (torch.stack([_image(path, side) for path, _ in part]), torch.tensor([y for _, y in part])) for part in files
    ]
    return parts[0], parts[1], names


def _files(root: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(names):
        paths = sorted(p for p in (root / name).glob("*") if p.suffix.lower() in _ENDINGS)
        found += [(path, label) for path in paths]
    return found


def _image(path: Path, side: int) -> torch.Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            edge = min(image.size)
            left, top = ((size - edge) // 2 for size in image.size)
            square = image.convert("RGB").crop((left, top, left + edge, top + edge))
            pixels = np.asarray(square.resize((side, side), Image.Resampling.BOX))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); remove it") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
