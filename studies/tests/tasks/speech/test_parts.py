"""Features, letters, word errors and the recogniser, each against its slow twin or a known answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from tests.reference import speech as slow

from isobatch.errors import InputError
from isobatch_studies.tasks.speech import Utterances, greedy, log_mel, word_error_rate
from isobatch_studies.tasks.speech.metric import CLASSES, LETTERS, decode, edits, encode
from isobatch_studies.tasks.speech.model import STRIDE, Recogniser
from isobatch_studies.tasks.speech.utterances import quantise

words = some.lists(some.sampled_from(["a", "b", "c"]), max_size=7)


@given(words, words)
def test_edits_are_levenshteins(one, other):
    assert edits(one, other) == slow.distance(tuple(one), tuple(other))


def test_word_error_rates_known_by_heart():
    assert word_error_rate(["one two"], ["one two"]) == 0
    assert word_error_rate(["one two", "three four"], ["", ""]) == 100
    assert word_error_rate(["one"], ["one two three"]) == 200
    # utterances are pooled, not averaged: 1 of 4 words
    assert word_error_rate(["a", "a b c"], ["x", "a b c"]) == 25


@given(some.lists(some.integers(0, 3), min_size=1, max_size=12), some.integers(1, 12))
def test_greedy_merges_and_drops(path, length):
    length = min(length, len(path))
    scores = torch.nn.functional.one_hot(torch.tensor([path]), 4).float()
    assert greedy(scores, torch.tensor([length])) == [slow.collapse(path[:length])]


def test_letters_round_trip_and_others_are_dropped():
    assert decode(encode("THE CAT'S\tEND, 7!")) == "the cat'send "
    assert encode(LETTERS) == list(range(1, CLASSES))


@pytest.mark.parametrize(("rate", "bands"), [(2000, 6), (1600, 5)])
def test_log_mel_is_its_definition(rate, bands):
    wave = torch.randn(rate // 8, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(slow.log_mel(wave.double().tolist(), rate, bands))
    assert torch.allclose(log_mel(wave, rate, bands), expected, atol=2e-4)


def test_log_mel_knows_no_loudness_and_finds_a_tone():
    seconds = torch.arange(16000) / 16000
    low, high = (torch.sin(2 * torch.pi * f * seconds) * (seconds > 0.5) for f in (300.0, 3000.0))
    assert torch.allclose(log_mel(low, 16000), log_mel(low * 40, 16000), atol=1e-4)
    both = low.where(seconds < 0.75, high)
    # the band whose energy rises most when the second tone begins lies higher than that of the first
    rise = log_mel(both, 16000)
    assert (rise[85] - rise[65]).argmax() > (rise[65] - rise[85]).argmax()


@pytest.mark.parametrize(("wave", "rate", "bands", "message"), [
    (torch.zeros(10), 16000, 32, "at least 400 samples"),
    (torch.zeros(2, 800), 16000, 32, "one channel"),
    (torch.zeros(8000), 8000, 200, "200 mel bands are too many"),
])  # fmt: skip
def test_waves_that_give_no_features_are_refused(wave, rate, bands, message):
    with pytest.raises(InputError, match=message):
        log_mel(wave, rate, bands)


def test_bytes_keep_features_within_half_a_step():
    x = torch.linspace(-4, 4, 1001)
    assert float((quantise(x) / 31.75 - x).abs().max()) <= 0.5 / 31.75 + 1e-6


def clips(*lengths, bands=8):
    chance = torch.Generator().manual_seed(0)
    features = [torch.randn(n, bands, generator=chance) for n in lengths]
    return Utterances.of(features, [f"word {'a' * (i + 1)}" for i in range(len(lengths))], ["v"] * len(lengths))


def test_a_batch_is_padded_with_nothing():
    held = clips(9, 30, 14)
    batch = held.batch(torch.tensor([2, 0]))
    assert (batch.features.shape, batch.lengths.tolist()) == ((2, 14, 8), [14, 9])
    assert float(batch.features[1, 9:].abs().max()) == 0
    assert decode(batch.targets[0].tolist()[: batch.target_lengths[0]]) == "word aaa"
    with pytest.raises(InputError, match="must be as many"):
        Utterances.of([torch.zeros(2, 2)], ["a", "b"], ["v"])


def test_padding_and_neighbours_change_no_score():
    torch.manual_seed(0)
    model, held = Recogniser(8, width=16, layers=2).double().eval(), clips(31, 60, 44)
    whole = held.batch(torch.arange(3))
    scores, lengths = model(whole.features.double(), whole.lengths)
    assert lengths.tolist() == [-(-n // STRIDE) for n in (31, 60, 44)]
    for row in range(3):
        one = held.batch(torch.tensor([row]))
        alone, length = model(one.features.double(), one.lengths)
        assert alone.shape[1] == length == lengths[row]
        assert torch.allclose(scores[row, : int(length)], alone[0], rtol=1e-12, atol=1e-12)


def test_a_score_depends_on_frames_before_and_after():
    torch.manual_seed(0)
    model = Recogniser(8, width=16, layers=1).eval()
    x = torch.randn(1, 60, 8, requires_grad=True)
    model(x, torch.tensor([60]))[0][0, 10].sum().backward()
    assert x.grad[0, 0].abs().sum() > 0
    assert x.grad[0, -1].abs().sum() > 0
