"""LibriSpeech's layout, on tiny FLAC files in the true format."""

import pytest
import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.speech.librispeech import read, transcripts

soundfile = pytest.importorskip("soundfile")


def written(root, speakers=("19", "26"), rate=16000, channels=1):
    chance = torch.Generator().manual_seed(0)
    for speaker in speakers:
        folder = root / speaker / "198"
        folder.mkdir(parents=True)
        lines = []
        for number in range(2):
            name = f"{speaker}-198-{number:04d}"
            wave = 0.1 * torch.randn(rate // 4 + 1600 * number, channels, generator=chance)
            soundfile.write(folder / f"{name}.flac", wave.squeeze(1).numpy() if channels == 1 else wave.numpy(), rate)
            lines.append(f"{name} HELLO {'AGAIN ' * number}WORLD'S")
        (folder / f"{speaker}-198.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def test_a_split_is_read_in_order(tmp_path):
    held = read(written(tmp_path), bands=20)
    assert held.texts == ["hello world's", "hello again world's"] * 2
    assert held.voices == ["19", "19", "26", "26"]
    assert held.lengths.tolist() == [26, 36, 26, 36]
    assert held.frames.shape[1] == 20
    assert len(read(tmp_path, limit=3)) == 3


def test_another_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no SPEAKER/CHAPTER/\*.trans.txt"):
        read(tmp_path)
    written(tmp_path, ("19",))
    page = tmp_path / "19" / "198" / "19-198.trans.txt"
    page.write_text(page.read_text() + "19-198-0009 GONE\n")
    with pytest.raises(InputError, match=r"19-198-0009.flac, which is not there"):
        transcripts(tmp_path)
    page.write_text("19-198-0000\n")
    with pytest.raises(InputError, match="has no text"):
        transcripts(tmp_path)


def test_what_is_no_mono_audio_is_refused(tmp_path):
    with pytest.raises(InputError, match="2 channels"):
        read(written(tmp_path / "stereo", channels=2))
    root = written(tmp_path / "broken", ("19",))
    (root / "19" / "198" / "19-198-0001.flac").write_bytes(b"fLaC and no more")
    with pytest.raises(InputError, match="cannot be read as audio"):
        read(root)
