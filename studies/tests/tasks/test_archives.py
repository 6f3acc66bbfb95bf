"""MNIST's and SVHN's published formats, on tiny files, and what damaged ones say."""

import gzip
import struct

import numpy as np
import pytest
import torch
from scipy.io import savemat
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch_studies.tasks.archives import archive, idx
from isobatch_studies.tasks.folders import folder

RNG = np.random.default_rng(0)


def write_idx(path, array, magic=(0, 0, 8)):
    data = bytes((*magic, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist(root, ending="", counts=(20, 8)):
    made = {}
    for part, count in zip(("train", "t10k"), counts, strict=True):
        made[part] = (
            RNG.integers(256, size=(count, 28, 28), dtype=np.uint8),
            RNG.integers(10, size=count, dtype=np.uint8),
        )
        write_idx(root / f"{part}-images-idx3-ubyte{ending}", made[part][0])
        write_idx(root / f"{part}-labels-idx1-ubyte{ending}", made[part][1])
    return made


def svhn(root, counts=(12, 5), **more):
    made = {}
    for part, count in zip(("train", "test"), counts, strict=True):
        x = RNG.integers(256, size=(32, 32, 3, count), dtype=np.uint8)
        y = RNG.integers(1, 11, size=(count, 1)).astype(np.float64)
        made[part] = (x, y)
        savemat(root / f"{part}_32x32.mat", {"X": x, "y": y} | more)
    return made


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_read_from_its_idx_files(ending, tmp_path):
    made = mnist(tmp_path, ending)
    (x, y), (x_held, y_held), source = archive(tmp_path)
    assert source.startswith("MNIST")
    assert (x.shape, x_held.shape) == ((20, 3, 28, 28), (8, 3, 28, 28))
    for channel in range(3):
        assert torch.equal(x[:, channel], torch.from_numpy(made["train"][0]))
    assert y.tolist() == made["train"][1].tolist()
    assert y_held.tolist() == made["t10k"][1].tolist()


def test_svhn_is_read_from_its_matlab_files_and_ten_is_a_zero(tmp_path):
    made = svhn(tmp_path)
    (x, y), (x_held, _), source = archive(tmp_path)
    assert source.startswith("SVHN")
    assert (x.shape, x_held.shape) == ((12, 3, 32, 32), (5, 3, 32, 32))
    pixels, labels = made["train"]
    assert int(x[3, 1, 5, 7]) == pixels[5, 7, 1, 3]
    assert y.tolist() == [int(label) % 10 for label in labels.ravel()]


@pytest.mark.parametrize("kind", [mnist, svhn])
def test_a_network_trains_on_the_folder(kind, tmp_path):
    kind(tmp_path)
    options = {"data": str(tmp_path), "side": 8, "width": 4, "hidden": 8}
    run = make_run(recipe(task="image-cnn", data_size=None, schedule=None, ema=None, options=options), 0)
    loss = run.step(run.samples[torch.arange(4)])
    loss.backward()
    assert len(run.samples) in (20, 12)
    assert set(run.evaluate()) == {"loss", "accuracy"}
    assert folder(tmp_path, 8).classes == 10
    assert "10 classes" in run.facts["data"]


def test_a_folder_of_neither_is_left_to_others(tmp_path):
    assert archive(tmp_path) is None


def test_missing_and_damaged_files_are_refused_by_name(tmp_path):
    mnist(tmp_path)
    name = "train-labels-idx1-ubyte"
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"holds no train-labels-idx1-ubyte or .*\.gz; fetch all four"):
        archive(tmp_path)
    write_idx(tmp_path / name, np.zeros(19, dtype=np.uint8))
    with pytest.raises(InputError, match="20 images and 19 labels"):
        archive(tmp_path)
    write_idx(tmp_path / name, np.zeros(20, dtype=np.uint8), magic=(0, 0, 13))
    with pytest.raises(InputError, match="is no IDX file of 1 dimensions"):
        archive(tmp_path)
    (tmp_path / name).write_bytes(b"\0\0")
    with pytest.raises(InputError, match="cannot be read"):
        idx(tmp_path, name, 1)
    (tmp_path / name).unlink()
    (tmp_path / f"{name}.gz").write_bytes(b"no gzip at all")
    with pytest.raises(InputError, match="cannot be read"):
        idx(tmp_path, name, 1)


@pytest.mark.parametrize(("content", "message"), [
    ({"X": np.zeros((8, 8, 3, 2), dtype=np.uint8), "y": np.ones((2, 1))}, r"X of shape \(8, 8, 3, 2\), expected"),
    ({"X": np.zeros((32, 32, 3, 2), dtype=np.uint8), "y": np.zeros((2, 1))}, "labels from 0.* expected 1 to 10"),
    ({"X": np.zeros((32, 32, 3, 2), dtype=np.uint8)}, "no MATLAB file of X and y"),
])  # fmt: skip
def test_other_matlab_files_are_refused(content, message, tmp_path):
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(InputError, match=message):
        archive(tmp_path)


def test_a_matlab_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "train_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no MATLAB file"):
        archive(tmp_path)
