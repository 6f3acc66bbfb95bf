"""The synthetic corpus: the same every time, split by voice, whole in the cache or not there."""

from pathlib import Path

import pytest
import torch

from isobatch.errors import InputError
from isobatch_studies.tasks.speech import espeak, synthetic
from isobatch_studies.tasks.speech.synthetic import ACCENTS, VARIANTS, WORDS, Sizes, corpus, fingerprint, phrases

TINY = Sizes(labelled=6, unlabelled=8, dev=3, test=4)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOBATCH_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_voice_is_in_two_parts():
    said = phrases(Sizes(), seed=0)
    variants = {part: {line[1].split("+")[1] for line in lines} for part, lines in said.items()}
    names = sorted(variants)
    assert not any(variants[a] & variants[b] for i, a in enumerate(names) for b in names[i + 1 :])
    assert {word for lines in said.values() for line in lines for word in line[0].split()} == set(WORDS)
    assert phrases(Sizes(), seed=0) == said
    assert phrases(Sizes(), seed=1) != said


def test_more_voices_than_there_are_are_refused():
    with pytest.raises(InputError, match="fewer than"):
        phrases(Sizes(test_voices=len(VARIANTS)), 0)


def test_the_same_list_is_spoken_the_same_way_in_another_process():
    pytest.importorskip("espeakng_loader")
    lines = [("one two", f"{ACCENTS[i % len(ACCENTS)]}+{VARIANTS[i]}", 170, 50) for i in range(len(VARIANTS))]
    (first, rate), (second, _) = espeak.speak(lines), espeak.speak(lines)
    assert rate == 22050
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all(0.2 < len(wave) / rate < 3 and abs(wave).max() > 1000 for wave in first)


def test_a_corpus_is_made_once(cache, monkeypatch):
    pytest.importorskip("espeakng_loader")
    made = corpus(TINY)
    assert [len(made[part]) for part in ("labelled", "unlabelled", "dev", "test")] == [6, 8, 3, 4]
    monkeypatch.setattr(synthetic, "speak", None)
    again = corpus(TINY)
    assert fingerprint(again) == fingerprint(made)
    assert torch.equal(again["test"].frames, made["test"].frames)
    assert again["dev"].texts == [line[0] for line in phrases(TINY, 0)["dev"]]
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_a_corpus_that_fails_leaves_nothing(cache, monkeypatch):
    def cut(tensors, name):
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "save_file", cut)
    monkeypatch.setattr(synthetic, "_speak_all", lambda said, bands: {})
    with pytest.raises(KeyboardInterrupt):
        corpus(TINY)
    assert list(cache.iterdir()) == []


def test_a_voice_that_is_not_there_is_refused():
    pytest.importorskip("espeakng_loader")
    with pytest.raises(InputError, match=r"no voice 'nobody'.*isobatch-studies\[speech\]"):
        espeak.speak([("one", "nobody", 170, 50)])
