"""The callback in a real HF Trainer against the loop written out by hand."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.integrations.hf_models import InOrder, Texts, arguments, by_hand, llama
from tests.integrations.notes import Notes, check
from transformers import Trainer, TrainerCallback

import isobatch as ib
from isobatch.errors import InputError
from isobatch.integrations import export
from isobatch.integrations.export import load_state
from isobatch.integrations.hf import IsobatchCallback, IsobatchTrainerMixin


def trained(
    folder, callback=None, *, resume=None, kind=InOrder, model=None, rows=54, prepare=None, others=(), **changes
):
    callback = callback or IsobatchCallback(50, noise={"every": 1}, quiet=True)
    trainer = kind(
        model or llama(),
        arguments(folder, **changes),
        train_dataset=Texts(rows),
        eval_dataset=Texts(8),
        callbacks=[callback, *others],
    )
    if prepare is not None:
        prepare(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def same(callback, model, ema, noise, tolerance=1e-6):
    assert callback.ema.seen == ema.seen
    assert callback.noise.seen == noise.seen
    for name, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=tolerance, atol=tolerance)
    mine, theirs = callback.noise.estimate(), noise.estimate()
    assert (mine.measurements, mine.excluded) == (theirs.measurements, theirs.excluded)
    assert mine.trace == pytest.approx(theirs.trace, rel=tolerance * 10)
    assert mine.gradient_squared == pytest.approx(theirs.gradient_squared, rel=1e-4, abs=tolerance * theirs.trace)


def test_the_callback_is_the_loop_by_hand_with_accumulation_clipping_and_uneven_last_batches(tmp_path, capsys):
    notes = Notes()
    trainer, callback = trained(
        tmp_path, IsobatchCallback(50, noise={"every": 1}, log=notes), logging_strategy="steps", logging_steps=2
    )
    check(notes, callback.clock, 50)
    model, ema, noise = by_hand()
    for one, other in zip(model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    same(callback, model, ema, noise)
    assert callback.sentence in capsys.readouterr().out
    assert callback.sentence.startswith("Is a larger batch worth it?")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["isobatch/half_life"] == 50 for entry in logged)
    assert logged[-1]["isobatch/noise_scale_identified"] in (0.0, 1.0)


class Looks(TrainerCallback):
    """Notes the weights that an evaluation and what comes after it sees."""

    def __init__(self, of):
        self.of, self.evaluated, self.saved = of, [], []

    def on_prediction_step(self, args, state, control, **kwargs):
        self.evaluated.append(self.of.ema._engine.buffers.exchanged)

    def on_save(self, args, state, control, **kwargs):
        self.saved.append(self.of.ema._engine.buffers.exchanged)


def test_evaluation_in_between_sees_the_average_and_changes_nothing(tmp_path):
    callback = IsobatchCallback(50, noise={"every": 1}, quiet=True)
    looks = Looks(callback)
    trainer, _ = trained(tmp_path, callback, others=[looks], eval_strategy="steps", eval_steps=2)
    same(callback, *by_hand())
    assert looks.evaluated
    assert all(looks.evaluated)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    with callback.ema.applied(trainer.model):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-4)


class Own(InOrder):
    """Evaluates in its own way: twice by the Trainer's, and then without telling any callback."""

    def evaluate(self, *args, **kwargs):
        held = [callback.ema._engine.buffers.exchanged for callback in self._isobatch]
        for _ in range(2):
            super().evaluate(*args, **kwargs)
            held += [callback.ema._engine.buffers.exchanged for callback in self._isobatch]
        self.held = held
        return {"eval_loss": 0.0}

    @property
    def _isobatch(self):
        return [one for one in self.callback_handler.callbacks if isinstance(one, IsobatchCallback)]


class CalledOff(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = False


@pytest.mark.parametrize(("kind", "others"), [(Own, []), (InOrder, [CalledOff()])])
def test_evaluations_in_ones_own_way_and_those_that_are_called_off_leave_the_raw_weights(tmp_path, kind, others):
    callback = IsobatchCallback(50, noise={"every": 1}, quiet=True)
    looks, keeps = Looks(callback), {"save_strategy": "steps", "save_steps": 2}
    given = {"eval_strategy": "steps", "eval_steps": 2} | (keeps if kind is Own else {})
    trainer, _ = trained(tmp_path, callback, kind=kind, others=[*others, looks], **given)
    same(callback, *by_hand())
    if kind is Own:
        assert trainer.held == [True] * 3
        assert looks.saved
        assert not any(looks.saved)


def two(lends=0, **changes):
    """Two averages of one run, half-lives 50 and 20, of which one is given to evaluations."""
    words = ["average" if place == lends else "raw" for place in range(2)]
    return [IsobatchCallback(h, evaluate=word, quiet=True, **changes) for h, word in zip((50, 20), words, strict=True)]


@pytest.mark.parametrize("lends", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_averages_of_one_run_and_evaluations_that_see_one_of_them(tmp_path, lends):
    callbacks = two(lends)
    looks, keeps = Looks(callbacks[lends]), {"save_strategy": "steps", "save_steps": 5}
    given = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2} | keeps
    trained(tmp_path, callbacks[0], others=[callbacks[1], looks], **given)
    assert looks.evaluated
    assert all(looks.evaluated)
    assert not any(looks.saved)
    whole, again = [copy.deepcopy(one.ema.state_dict()) for one in callbacks], two(lends)
    trained(tmp_path, again[0], others=[again[1]], resume=str(tmp_path / "checkpoint-5"), **given)
    assert [one.ema.half_life for one in again] == [50, 20]
    for one, state in zip(again, whole, strict=True):
        assert one.ema.seen == state["values"]["clock"]["seen"] == 54 + 12
        for name, tensor in one.ema.state_dict()["tensors"].items():
            torch.testing.assert_close(tensor, state["tensors"][name], rtol=1e-6, atol=1e-7)
    for callback, half_life in zip(callbacks, (50.0, 20.0), strict=True):
        _, ema, _ = by_hand(epochs=1, half_life=half_life)
        kept = load_state(tmp_path / "checkpoint-5", callback._file)["averages"][0]["tensors"]
        for name, tensor in ema.state_dict()["tensors"].items():
            torch.testing.assert_close(kept[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("word", ["evaluate", "export"])
def test_two_averages_for_one_place_are_refused_before_training(tmp_path, word):
    first, second = (IsobatchCallback(h, quiet=True, **{"evaluate": "raw", word: "average"}) for h in (50, 20))
    with pytest.raises(InputError, match=f'2 callbacks would give .* take {word}="raw" in the others'):
        trained(tmp_path, first, others=[second])
    assert first.ema is None


class Fails(TrainerCallback):
    def on_prediction_step(self, args, state, control, **kwargs):
        raise ValueError("broken")


@pytest.mark.parametrize("sets", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_evaluation_that_fails_gives_the_raw_weights_back(tmp_path, sets):
    callback = IsobatchCallback(50, quiet=True)
    data = Texts(8) if sets == 1 else {"a": Texts(8), "b": Texts(4)}
    parts = {"train_dataset": Texts(), "eval_dataset": data, "callbacks": [callback, Fails()]}
    trainer = InOrder(llama(), arguments(tmp_path, eval_strategy="steps", eval_steps=2), **parts)
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
    raw = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    assert any(not torch.equal(raw[name], tensor) for name, tensor in callback.ema.average().items())
    with callback.ema.applied(trainer.model):
        assert any(not torch.equal(raw[name], tensor) for name, tensor in trainer.model.named_parameters())
    trainer.remove_callback(Fails)
    assert all(found > 0 for name, found in trainer.evaluate().items() if name.endswith("_loss"))


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "goes_on"), [
    ({"gradient_accumulation_steps": 6}, False),
    ({"per_device_train_batch_size": 2}, False),
    ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 6}, True),
    ({"gradient_accumulation_steps": 6, "ignore_data_skip": True}, True),
])  # fmt: skip
def test_a_resume_at_another_batch_is_refused_where_the_trainer_would_leave_samples_out(tmp_path, changes, goes_on):
    trained(tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    checkpoint = str(tmp_path / "checkpoint-3")
    if goes_on:
        _, callback = trained(tmp_path, resume=checkpoint, **changes)
        assert callback.ema.seen == (108 if "ignore_data_skip" not in changes else 36 + 54)
    else:
        with pytest.raises(InputError, match="where 36 were trained on; resume at batch 12, or take ignore_data_skip"):
            trained(tmp_path, resume=checkpoint, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["resumed and evaluated", "skipped and resumed", "all of it"])
def test_everything_at_once_is_still_the_loop_by_hand(tmp_path, case):
    """Accumulation by 3, an uneven last batch, clipping, evaluations, a skipped step, an end in mid-epoch."""
    evaluates = {"eval_strategy": "steps", "eval_steps": 2} if case != "skipped and resumed" else {}
    skips = case != "resumed and evaluated"
    changes = {"save_strategy": "steps", "save_steps": 3, "max_grad_norm": 0.0 if skips else 0.5} | evaluates
    parts = {"prepare": scaler} if skips else {}
    trained(tmp_path, max_steps=3, **changes, **parts)
    trainer, again = trained(tmp_path, resume=str(tmp_path / "checkpoint-3"), **changes, **parts)
    model, ema, noise = by_hand(clip=1e9 if skips else 0.5, skips=(0,) if skips else ())
    assert again.ema.seen == ema.seen
    for name, tensor in ema.average().items():
        torch.testing.assert_close(again.ema.average()[name], tensor, rtol=1e-6, atol=1e-6)
    for one, other in zip(model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert again.noise.seen == noise.seen
    if not skips:  # the step that overflowed in the scaler was not measured
        same(again, model, ema, noise)


@pytest.mark.slow
def test_streams_count_their_samples_and_have_no_epochs(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Texts()[place] for place in range(54)])

    rows = []

    class Counts(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            rows.append(len(inputs["input_ids"]))
            return super().training_step(model, inputs, *args, **kwargs)

    callback = IsobatchCallback(50, noise={"every": 1}, quiet=True)
    Counts(llama(), arguments(tmp_path, max_steps=10), train_dataset=Stream(), callbacks=[callback]).train()
    assert callback.ema.seen == sum(rows) > 54
    words = IsobatchCallback("2 epochs")
    with pytest.raises(InputError, match="say it in samples"):
        Trainer(llama(), arguments(tmp_path, max_steps=10), train_dataset=Stream(), callbacks=[words]).train()


def test_a_resume_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_happened(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 3}
    _, whole = trained(tmp_path / "whole")
    trained(tmp_path / "half", max_steps=3, **changes)
    trainer, again = trained(tmp_path / "half", resume=str(tmp_path / "half" / "checkpoint-3"), **changes)
    assert trainer.state.global_step == 10
    same(again, *by_hand())
    assert again.clock.steps == whole.clock.steps


@pytest.mark.slow
def test_a_resume_without_a_state_is_refused_and_one_from_elsewhere_taken(tmp_path):
    trained(tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    (tmp_path / "checkpoint-3" / "isobatch.safetensors").rename(tmp_path / "isobatch.safetensors")
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(InputError, match="resume_from=FOLDER"):
        trained(tmp_path, resume=checkpoint)
    found = IsobatchCallback(50, noise={"every": 1}, resume_from=tmp_path, quiet=True)
    trained(tmp_path, found, resume=checkpoint)
    same(found, *by_hand())


def scaler(trainer):
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-110)


def test_steps_that_a_scaler_skips_move_no_average(tmp_path):
    _, callback = trained(tmp_path, prepare=scaler, max_grad_norm=0)
    _, ema, _ = by_hand(skips=(0,), clip=1e9)
    assert (callback.clock.skips, callback.clock.steps) == (1, 9)
    assert callback.clock.drawn == 108
    assert callback.ema.seen == ema.seen == 96
    for name, tensor in ema.average().items():
        torch.testing.assert_close(callback.ema.average()[name], tensor, rtol=1e-5, atol=1e-6)
    assert callback.noise.estimate().excluded == 1


@pytest.mark.slow
def test_tokens_count_where_the_half_life_is_in_tokens(tmp_path):
    callback = IsobatchCallback("400 tokens", noise={"every": 1}, quiet=True)
    trained(tmp_path, callback)
    same(callback, *by_hand(half_life=400, unit="tokens"))


@pytest.mark.slow
def test_epochs_recipes_and_plan_files_give_the_half_life(tmp_path):
    recipe = ib.Recipe.parse({
        "data_size": 54, "batch": {"size": 12}, "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"length": "2 epochs"}, "ema": {"half_life": "108 samples"}, "noise": {"every": 1},
    })  # fmt: skip
    (tmp_path / "plan.json").write_text(recipe.at(batch_size=24).to_json())
    found = [IsobatchCallback("2 epochs", quiet=True), IsobatchCallback(recipe=recipe, quiet=True),
             IsobatchCallback(recipe=tmp_path / "plan.json", quiet=True)]  # fmt: skip
    for callback in found:
        trained(tmp_path, callback, num_train_epochs=1)
        assert callback.ema.half_life == pytest.approx(108)
    assert found[0].noise is None
    assert found[1].noise.estimate().measurements == 5


class Smoothed(IsobatchTrainerMixin, InOrder):
    pass


@pytest.mark.slow
def test_labels_that_vanish_are_refused_without_the_mixin_and_counted_with_it(tmp_path):
    with pytest.raises(InputError, match="IsobatchTrainerMixin"):
        trained(tmp_path, label_smoothing_factor=0.1)
    _, rows = trained(tmp_path, IsobatchCallback(50, quiet=True), label_smoothing_factor=0.1)
    assert rows.ema.seen == 108
    _, callback = trained(tmp_path, kind=Smoothed, label_smoothing_factor=0.1)
    assert callback.noise.seen == by_hand()[2].seen


@pytest.mark.slow
def test_the_mixin_evaluates_with_the_average_and_gives_the_weights_back_after_an_exception(tmp_path):
    trainer, callback = trained(tmp_path, kind=Smoothed, eval_strategy="epoch")
    raw = copy.deepcopy(trainer.model.state_dict())
    inside = trainer.evaluate()["eval_loss"]
    with callback.ema.applied(trainer.model):
        assert InOrder.evaluate(trainer)["eval_loss"] == pytest.approx(inside)

    def broken(*args, **kwargs):
        assert not torch.equal(trainer.model.model.embed_tokens.weight, raw["model.embed_tokens.weight"])
        raise ValueError("broken")

    trainer.prediction_step = broken
    with pytest.raises(ValueError, match="broken"):
        trainer.evaluate()
    assert all(torch.equal(raw[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("same_model", [True, False])
def test_a_second_run_of_the_same_model_goes_on(tmp_path, same_model):
    trainer, callback = trained(tmp_path, rows=12, num_train_epochs=1)
    average, seen, tokens = callback.ema, callback.ema.seen, callback.noise.seen
    if not same_model:
        trainer.model.load_state_dict(llama().state_dict())
    trainer.train()
    assert (callback.ema is average) is same_model
    assert callback.clock.seen == callback.ema.seen == (2 if same_model else 1) * seen
    assert callback.noise.seen == tokens


@pytest.mark.slow
def test_export_leaves_the_average_in_the_model(tmp_path):
    callback = IsobatchCallback(50, export="average", quiet=True)
    trainer, _ = trained(tmp_path, callback)
    for name, tensor in callback.ema.average().items():
        assert torch.equal(dict(trainer.model.named_parameters())[name], tensor)


def scheduled(*stages):
    return ib.Recipe.parse({
        "data_size": 48, "batch": {"size": 8, "schedule": stages}, "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"length": "3 epochs"}, "ema": {"half_life": "50 samples"},
    })  # fmt: skip


class Mixed(IsobatchTrainerMixin, InOrder):
    pass


def grown(folder, recipe, *, kind=InOrder, resume=None, **changes):
    model, callback = llama(), IsobatchCallback(recipe=recipe, quiet=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = ib.SampleScheduler(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0), batch_size=8)
    given = {"gradient_accumulation_steps": 2, "num_train_epochs": 3} | changes
    trainer = kind(
        model,
        arguments(folder, **given),
        train_dataset=Texts(48),
        callbacks=[callback],
        optimizers=(optimizer, scheduler),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback, optimizer


def test_a_batch_schedule_raises_the_accumulation_at_epochs_and_moves_the_settings(tmp_path):
    trainer, callback, optimizer = grown(tmp_path, scheduled(["0 epochs", 8], ["1 epoch", 16], ["2 epochs", 24]))
    assert (callback.ema.seen, callback.clock.steps) == (144, 6 + 3 + 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    assert trainer.args.gradient_accumulation_steps == 2


GROWS = (["0 epochs", 8], ["1 epoch", 16], ["2 epochs", 24])


@pytest.mark.parametrize("step", [8, *(pytest.param(other, marks=pytest.mark.slow) for other in (6, 9, 10))])
def test_a_batch_schedule_goes_on_after_the_batch_changed(tmp_path, step):
    """From the end of an epoch (6, 9) and the middle of one (8, 10), as if nothing had happened."""
    keeps = {"save_strategy": "steps", "save_steps": step, "max_grad_norm": 0}
    straight, callback, optimizer = grown(tmp_path, scheduled(*GROWS), kind=Mixed, **keeps)
    checkpoint = str(tmp_path / f"checkpoint-{step}")
    trainer, again, other = grown(tmp_path, scheduled(*GROWS), kind=Mixed, resume=checkpoint, **keeps)
    assert (again.ema.seen, again.clock.steps) == (callback.ema.seen, callback.clock.steps) == (144, 11)
    assert other.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    for one, two in zip(straight.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    for name, tensor in callback.ema.average().items():
        torch.testing.assert_close(again.ema.average()[name], tensor, rtol=1e-6, atol=1e-7)
    if step != 6:
        with pytest.raises(InputError, match="IsobatchTrainerMixin"):
            grown(tmp_path, scheduled(*GROWS), resume=checkpoint, **keeps)
    else:  # the batch had not changed yet
        grown(tmp_path, scheduled(*GROWS), resume=checkpoint, **keeps)


@pytest.mark.parametrize(("stages", "changes", "why"), [
    ([["0 epochs", 8], ["60 samples", 16]], {}, "middle of an epoch"),
    ([["0 epochs", 8], ["1 epoch", 4]], {}, "falls from 8 to 4"),
    ([["0 epochs", 8], ["1 epoch", 10]], {}, "no multiple of 4"),
    ([["0 epochs", 8], ["1 epoch", 16]], {"gradient_accumulation_steps": 1}, "make them agree"),
])  # fmt: skip
def test_batch_schedules_that_the_trainer_cannot_follow_are_refused(tmp_path, stages, changes, why):
    with pytest.raises(InputError, match=why):
        grown(tmp_path, scheduled(*stages), **changes)


@pytest.mark.slow
def test_a_batch_schedule_beside_a_scheduler_that_counts_steps_is_refused(tmp_path):
    callback = IsobatchCallback(recipe=scheduled(["0 epochs", 8], ["1 epoch", 16]))
    with pytest.raises(InputError, match="SampleScheduler"):
        trained(tmp_path, callback, rows=48, gradient_accumulation_steps=2)


@pytest.mark.parametrize(("given", "why"), [
    ({}, "nothing to do"),
    ({"half_life": 5, "decay": 0.9, "batch_size": 8}, "give one of them"),
    ({"half_life": "5 steps"}, "batch_size"),
    ({"half_life": "5 tokens", "unit": "samples"}, "counts tokens"),
    ({"half_life": 5, "unit": "rows"}, "must be"),
    ({"half_life": 5, "evaluate": "ema"}, "must be"),
    ({"half_life": 5, "recipe": "examples/digits.toml"}, "or a recipe"),
    ({"recipe": "nowhere.json"}, "cannot read"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(given, why):
    with pytest.raises(InputError, match=why):
        IsobatchCallback(**given)


def test_checkpoints_of_a_sharded_model_are_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "sharded", lambda tensor: True)
    with pytest.raises(InputError, match=r'sharded.*save_strategy="no"'):
        trained(tmp_path, save_strategy="epoch")
    assert trained(tmp_path, max_steps=1)[1].ema.seen == 12
