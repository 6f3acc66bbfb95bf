"""Images in their true formats, tiny: Atari frames, glyphs, CIFAR-10's binary version, ImageNet's layout."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch_studies.tasks import atari
from isobatch_studies.tasks.folders import folder
from isobatch_studies.tasks.images import images


def asked(**options):
    return images(recipe(options=options))


@pytest.fixture(scope="module")
def frames():
    pytest.importorskip("ale_py")
    return atari.record(["pong", "breakout"], (6, 3))


def test_atari_frames_are_the_same_each_time_and_share_no_frame_between_the_parts(frames):
    again = atari.record(["pong", "breakout"], (6, 3))
    assert again.digest == frames.digest
    assert frames.train.shape == (12, 32, 32, 3)
    assert np.bincount(frames.held_games).tolist() == [3, 3]
    held, train = ({frame.tobytes() for frame in part} for part in (frames.held, frames.train))
    assert not held & train
    assert len(train) == 12
    assert atari.record(["pong"], (6, 3), seed=1).digest != atari.record(["pong"], (6, 3)).digest


def test_a_small_pixel_is_the_mean_of_what_it_covers():
    screen = np.random.default_rng(0).integers(0, 256, (210, 160, 3)).astype(np.uint8)
    small = atari.shrunk(screen)
    for i, j in ((0, 0), (3, 17), (31, 31)):
        rows = slice(math.floor(i * 210 / 32), math.ceil((i + 1) * 210 / 32))
        part = screen[rows, j * 5 : (j + 1) * 5].astype(float).mean((0, 1))
        assert np.abs(small[i, j] - part).max() <= 0.5


def test_atari_has_104_games():
    pytest.importorskip("ale_py")
    assert len(atari.games()) == 104


def test_frames_survive_the_disk_and_damage_is_noticed(frames, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "atari32.npz"
    atari.save(path, frames)
    found = atari.load(path)
    assert found.digest == frames.digest
    assert found.games == ("pong", "breakout")
    assert [p.name for p in path.parent.iterdir()] == ["atari32.npz"]
    data = asked(data=str(path), side=8, frames=4)
    assert data.train[0].shape == (4, 3, 8, 8)
    assert data.train[1].tolist() == [0, 0, 1, 1]
    assert data.facts["sha256"] == frames.digest
    monkeypatch.setenv("ISOBATCH_DATA", str(path.parent))
    assert atari.cache_folder() == path.parent
    with np.load(path) as file:
        parts = dict(file)
    parts["train"][0, 0, 0, 0] ^= 1
    np.savez(path, **parts)
    with pytest.raises(InputError, match=r"is damaged: its pixels do not match its hash; delete it"):
        atari.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read as frames"):
        atari.load(path)


def test_glyphs_are_rendered_and_the_parts_are_of_other_fonts_or_sizes():
    data = asked(data="glyphs", side=16)
    assert data.classes == 62
    assert data.train[0].shape[1:] == (3, 16, 16)
    assert len(data.train[0]) == 2 * len(data.held[0])
    assert torch.bincount(data.train[1]).unique().numel() == 1
    assert float(data.train[0].float().mean((1, 2, 3)).min()) > 0


def cifar(path, labels):
    rows = [bytes([label]) + bytes([label * 10 + c for c in range(3) for _ in range(1024)]) for label in labels]
    path.write_bytes(b"".join(rows))


def test_cifar_is_read_from_its_binary_version(tmp_path):
    for number in range(1, 3):
        cifar(tmp_path / f"data_batch_{number}.bin", [number, 9, 0])
    cifar(tmp_path / "test_batch.bin", [3, 4])
    data = folder(tmp_path, 32)
    assert data.train[1].tolist() == [1, 9, 0, 2, 9, 0]
    assert data.train[0][0, :, 5, 7].tolist() == [10, 11, 12]
    assert data.held[1].tolist() == [3, 4]
    assert data.facts["data"] == "CIFAR-10, binary version, 10 classes"
    assert asked(data=str(tmp_path), side=8).train[0].shape == (6, 3, 8, 8)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"labels": [1]}))
    with pytest.raises(InputError, match=r"files are pickles .* unpack cifar-10-binary\.tar\.gz"):
        folder(tmp_path, 32)


def test_damaged_binaries_are_refused(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x01" * 3000)
    with pytest.raises(InputError, match=r"is no file of CIFAR-10's binary version \(rows of 3073 bytes"):
        folder(tmp_path, 16)
    cifar(tmp_path / "data_batch_1.bin", [1])
    with pytest.raises(InputError, match=r"test_batch.bin cannot be read"):
        folder(tmp_path, 8)


def painted(path, colour, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_the_layout_of_imagenet_is_read_cut_to_the_middle_and_shrunk(tmp_path):
    for part, count in (("train", 2), ("val", 1)):
        for number in range(count):
            painted(tmp_path / part / "ape" / f"{number}.png", (200, 0, 0))
            painted(tmp_path / part / "bee" / f"{number}.JPEG", (0, 0, 200), (9, 30))
    data = folder(tmp_path, 8)
    assert data.train[0].shape == (4, 3, 8, 8)
    assert data.train[1].tolist() == [0, 0, 1, 1]
    assert data.held[0][0, :, 0, 0].tolist() == [200, 0, 0]
    assert data.classes == 2


def test_a_folder_a_class_alone_holds_out_every_fifth(tmp_path):
    for number in range(10):
        painted(tmp_path / "one" / f"{number}.png", (number, 0, 0))
    data = folder(tmp_path, 4)
    assert data.held[0][:, 0, 0, 0].tolist() == [4, 9]
    assert len(data.train[0]) == 8


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"neither data_batch_.*bin nor one folder a class"):
        folder(tmp_path, 8)
    (tmp_path / "train" / "ape").mkdir(parents=True)
    with pytest.raises(InputError, match="has train/ but neither val/ nor test/"):
        folder(tmp_path, 16)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="0 training and 0 held-out images"):
        folder(tmp_path, 32)
    (tmp_path / "train" / "ape" / "x.png").write_bytes(b"no picture")
    (tmp_path / "val" / "ape").mkdir()
    (tmp_path / "val" / "ape" / "x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"x.png cannot be read as an image .*; remove it"):
        folder(tmp_path, 64)


@pytest.mark.parametrize(("options", "message"), [
    ({"data": "nowhere"}, 'options.data=.*must be "atari", "glyphs", a folder of images or a .npz of frames'),
    ({"data": "glyphs", "side": 2}, r"options\.side=2 must be at least 4"),
    ({"data": "glyphs", "frames": 10**6}, r"options\.frames=1000000 must be at most 1984"),
    ({"data": "none.npz"}, "none.npz cannot be read as frames"),
])  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        asked(**options)
