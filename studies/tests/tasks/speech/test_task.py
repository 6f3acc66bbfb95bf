"""Pseudo-labelling: the mean over utterances in any split, the teacher's labels, the two starts, resume, ranks."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from studies.tests.tasks.speech.small import OPTIONS, SLOTS, corpus
from tests.gloo import world
from tests.recipes import recipe
from tests.reference import speech as slow
from torch import nn

from isobatch.checkpoint import Checkpoints
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import Device, Trainer
from isobatch.train.persistence import restore, state_of
from isobatch_studies.tasks.speech import greedy, pools
from isobatch_studies.tasks.speech.task import masked, per_utterance, pseudo_label
from isobatch_studies.tasks.speech.utterances import UtteranceBatch

ADAM = {"name": "adam", "lr": 0.003, "momentum": None, "betas": [0.9, 0.99]}


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    monkeypatch.setattr(pools, "corpus", corpus)


def made(seed=0, task="pseudo-label", **parts):
    options = {**OPTIONS, **parts.pop("options", {})}
    parts = {"batch": {"size": 8}, "optimizer": ADAM, "ema": {"decay": 0.8}, **parts}
    whole = recipe(task=task, data_size=SLOTS, options=options, **parts)
    return Trainer(make_run(whole, seed), whole, order_seed=1)


def batch_of(*pairs, bands=4):
    """Random features and given targets: (frames, letters)."""
    chance = torch.Generator().manual_seed(0)
    lengths = torch.tensor([n for n, _ in pairs])
    features = torch.zeros(len(pairs), int(lengths.max()), bands)
    for row, n in enumerate(lengths.tolist()):
        features[row, :n] = torch.randn(n, bands, generator=chance)
    targets = nn.utils.rnn.pad_sequence([torch.tensor(y, dtype=torch.int64) for _, y in pairs], batch_first=True)
    return UtteranceBatch(
        features, lengths, targets, torch.tensor([len(y) for _, y in pairs]), torch.ones(len(pairs)) > 0
    )


def test_the_loss_of_an_utterance_is_ctc_over_all_paths_a_letter():
    batch = batch_of((5, [1, 2]), (4, [2, 2]), (3, []), (1, [1, 2]))
    scores = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    paths = scores.log_softmax(-1).tolist()
    wanted = [slow.ctc(paths[0], [1, 2]) / 2, slow.ctc(paths[1][:4], [2, 2]) / 2, 0.0, 0.0]
    assert slow.ctc(paths[3][:1], [1, 2]) == math.inf  # no path is long enough, so it weighs nothing
    assert per_utterance(scores, batch.lengths, batch).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("micro", [8, 4, 1])
def test_unequal_lengths_in_micro_batches_give_the_gradient_of_the_whole(micro):
    def gradient(size):
        one = made(batch={"size": 8, "micro": size}, options={"start": 0})
        one.run.model.double()
        one.step()
        return torch.cat([p.grad.flatten() for p in one.run.model.parameters()])

    whole, parts = gradient(8), gradient(micro)
    assert float((parts - whole).norm() / whole.norm()) < 1e-12


def test_only_rows_without_a_transcript_are_labelled_and_by_the_teacher():
    class Fixed(nn.Module):
        def forward(self, x, lengths):
            return x, lengths

    batch = batch_of((6, [1, 2, 3]), (5, [3]), (6, [2]))
    batch.labelled = torch.tensor([True, False, False])
    batch.features[2, :, 0] = 9.0  # all blank
    pseudo_label(Fixed(), batch)
    wanted = greedy(batch.features[1:2], batch.lengths[1:2])[0]
    assert batch.target_lengths.tolist() == [3, len(wanted), 0]
    assert batch.targets[0].tolist()[:3] == [1, 2, 3]
    assert batch.targets[1].tolist()[: len(wanted)] == wanted


def test_a_mask_covers_one_stretch_of_frames_and_of_bands_at_most():
    batch = batch_of(*[(n, [1]) for n in (3, 20, 30, 40)], bands=32)
    batch.features = torch.ones(4, 40, 32)
    kept = masked(
        batch, torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.999] * 4, [0.5, 0.0, 0.999, 0.0], [0.999, 0, 0.3, 0.9]])
    )
    assert float(kept[0].min()) == 1  # widths of 0
    hidden = [(~kept[row].any(1)).nonzero()[:, 0].tolist() for row in range(4)]
    assert hidden == [[], list(range(10, 20)), list(range(5)), list(range(10))]
    assert (~kept[1].any(0)).nonzero()[:, 0].tolist() == list(range(26, 32))


def test_slots_hold_labelled_utterances_alone_before_the_start():
    data = pools.pools(made().recipe)
    slots = torch.arange(SLOTS)
    assert (len(data.train), data.labelled, data.slots) == (30, 12, SLOTS)
    before, after = data.batch(slots, False), data.batch(slots, True)
    assert before.labelled.all()
    assert after.labelled.tolist() == [True] * 18 + [False] * 18
    assert torch.equal(after.lengths[18:], data.train.lengths[12:])
    assert torch.equal(before.lengths, data.train.lengths[slots % 12])


def test_it_starts_after_a_fixed_number_of_samples():
    one = made()
    starts = []
    for size in (8, 16, 16, 16, 8):
        one.step(size)
        starts.append(one.run.metrics(one.run.model)["start"])
    assert starts == [-1, -1, -1, -1, 56]  # the first step that begins at 48 or later


@pytest.mark.parametrize(("error", "at"), [(1e9, 16), (0.0, -1)])
def test_it_starts_at_the_first_look_at_which_the_error_is_down(error, at):
    one = made(options={"start": 0, "start_error": error})
    for _ in range(6):
        one.step()
    assert one.run.metrics(one.run.model)["start"] == at


def test_before_the_start_the_teacher_changes_nothing_and_after_it_does():
    def weights(decay, start):
        one = made(ema={"decay": decay}, options={"start": start}, optimizer={**ADAM, "lr": 0.05})
        for _ in range(8):
            one.step()
        return torch.cat([p.detach().flatten() for p in one.run.model.parameters()])

    assert torch.equal(weights(0.2, 640), weights(0.9, 640))
    assert not torch.equal(weights(0.2, 8), weights(0.9, 8))


@pytest.mark.parametrize("options", [{}, {"start_error": 1e9, "look": 40}])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, options):
    sizes = [8, 16, 5, 8, 16, 8, 8, 8]
    whole = made(options=options)
    for size in sizes:
        whole.step(size)
    for cut in (2, 6):
        half, store = made(options=options), Checkpoints(tmp_path / str(cut))
        for size in sizes[:cut]:
            half.step(size)
        store.save(state_of(half), seen=half.seen, meta={})
        rest = made(seed=5, options=options)
        restore(rest, Checkpoints(tmp_path / str(cut)).load().state)
        for size in sizes[cut:]:
            rest.step(size)
        got, wanted = (one.run.model.state_dict() | one.average.average() for one in (rest, whole))
        assert all(torch.equal(got[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("start", [0, 48])
def test_ranks_are_one_process(tmp_path, start):
    def train(rank):
        # not Adam: a key's bias has no gradient but rounding, which Adam would make steps of
        one = made(options={"start": start}, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.5, "betas": None})
        for size in (8, 16, 7, 16, 16):
            one.step(size)
        state = {n: v.detach().clone().contiguous() for n, v in one.run.model.state_dict().items()}
        save_file(state, tmp_path / f"{start}-{rank}.safetensors")

    train("one")
    world(2, tmp_path, train)
    wanted = load_file(tmp_path / f"{start}-one.safetensors")
    for rank in (0, 1):
        for name, value in load_file(tmp_path / f"{start}-{rank}.safetensors").items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize(("options", "message"), [
    ({"share": 1.0}, "options.share=1 leaves no labelled"),
    ({"share": 0.0}, "share"),
    ({"width": 6}, "multiple of 4"),
    ({"start_error": -1.0}, "start_error"),
    ({"labelled": 0}, "labelled"),
    ({"folder": "/nowhere"}, "holds no SPEAKER/CHAPTER"),
])  # fmt: skip
def test_options_that_make_no_run_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        made(options=options)


def test_a_folder_in_librispeechs_layout_is_trained_on(tmp_path):
    from studies.tests.tasks.speech.test_librispeech import written

    names = {"labelled_split": "a", "unlabelled_split": "b", "dev_split": "c", "test_split": "d"}
    for split in names.values():
        written(tmp_path / split, ("19",))
    small = {"width": 16, "layers": 1, "start": 8, "folder": str(tmp_path), **names}
    whole = recipe(task="pseudo-label", data_size=4, batch={"size": 4}, optimizer=ADAM, options=small)
    one = Trainer(make_run(whole, 0), whole)
    one.train_to(16)
    assert one.run.facts["data"] == "LibriSpeech: a (2), b (2), c (2), d (2)"
    assert one.evaluate()["average"]["start"] == 8


def test_it_runs_under_bfloat16_autocast():
    one = made(options={"start": 8})
    low = Trainer(make_run(one.recipe, 0), one.recipe, order_seed=1, device=Device(bf16=True))
    for trainer in (one, low):
        trainer.train_to(24)
    a, b = (trainer.evaluate()["average"]["loss"] for trainer in (one, low))
    assert a != b
    assert a == pytest.approx(b, rel=0.05)
