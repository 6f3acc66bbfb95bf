"""MNIST and SVHN as they are published: IDX files, and MATLAB files of cropped digits."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.pixels import Part

_IDX = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")}
_MAT = ("train_32x32.mat", "test_32x32.mat")


def archive(root: Path) -> tuple[Part, Part, str] | None:
    """Read MNIST (or a set in its format) or SVHN from a folder.

    Args:
        root: with train-images-idx3-ubyte and its three companions, packed by gzip or not, or with train_32x32.mat and
            test_32x32.mat.

    Returns:
        Training and held-out images (uint8, channels first, MNIST's grey repeated to three) with labels, and the
        source; None where the folder holds neither.

    Raises:
        InputError: a file that is missing or damaged.
    """
    if any((root / name).exists() for name in _both(_IDX["train"][0])):
        parts = [(_grey(idx(root, images, 3)), idx(root, labels, 1).long()) for images, labels in _IDX.values()]
        source = "MNIST format (IDX)"
    elif (root / _MAT[0]).exists():
        parts = [_svhn(root / name) for name in _MAT]
        source = "SVHN, cropped digits"
    else:
        return None
    for images, labels in parts:
        if len(images) != len(labels):
            raise InputError(f"{root} holds {len(images)} images and {len(labels)} labels; fetch the files again")
    return parts[0], parts[1], source


def idx(root: Path, name: str, dimensions: int) -> torch.Tensor:
    """Read an IDX file of bytes: 0, 0, type 8, dimensions, big-endian sizes, data.

    Args:
        root: its folder.
        name: without .gz; the packed file is taken where the plain one is not there.
        dimensions: that it must have.

    Returns:
        uint8 of its shape.

    Raises:
        InputError: no such file, or not in this format.
    """
    path = next((root / one for one in _both(name) if (root / one).exists()), None)
    if path is None:
        raise InputError(f"{root} holds no {name} or {name}.gz; fetch all four files")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, sizes = data[:4], struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    except (OSError, EOFError, struct.error) as error:
        raise InputError(f"{path} cannot be read: {error}; fetch it again") from error
    body = data[4 + 4 * dimensions :]
    if magic != bytes((0, 0, 8, dimensions)) or len(body) != math.prod(sizes) or not body:
        raise InputError(f"{path} is no IDX file of {dimensions} dimensions of bytes, or is cut short; fetch it again")
    return torch.from_numpy(np.frombuffer(body, dtype=np.uint8).reshape(sizes).copy())


def _both(name: str) -> tuple[str, str]:
    return name, f"{name}.gz"


def _grey(images: torch.Tensor) -> torch.Tensor:
    return images[:, None].repeat(1, 3, 1, 1)


def _svhn(path: Path) -> Part:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, variable_names=("X", "y"))
        images, labels = found["X"], found["y"].ravel()
    except (MatReadError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is no MATLAB file of X and y: {error}; fetch the cropped digits again") from error
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8 or not len(labels):
        raise InputError(f"{path} holds X of shape {images.shape}, expected (32, 32, 3, n) of bytes; fetch it again")
    if labels.min() < 1 or labels.max() > 10:
        raise InputError(f"{path} holds labels from {labels.min()} to {labels.max()}, expected 1 to 10 (10 is a zero)")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return pixels, torch.from_numpy(labels.astype(np.int64) % 10)
