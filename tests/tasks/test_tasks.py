"""Tasks: one face, weights from the seed alone, a fixed split, and clear refusals of what cannot be used."""

import pytest
import torch
from tests.recipes import recipe
from tests.tasks.battery import BATTERY
from torch import nn

from isobatch.errors import InputError
from isobatch.tasks import SHIPPED, Run, TensorSamples, find, make_run
from isobatch.tasks.asked import Asked
from isobatch.tasks.folds import digits
from isobatch.tasks.text import corpus

SIZES = {"digits": 1437, "digits-cnn": 1437, "digits-lstm": 1437, "quadratic": 256, "text": 8192, "text-lstm": 8192}


def made(name, seed=0, **options):
    return make_run(recipe(task=name, data_size=SIZES[name], options=options), seed)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("check", BATTERY, ids=lambda check: check.__name__)
def test_every_task(check, name):
    check(name, SIZES[name], {})


def test_digits_are_split_once_for_all():
    data = digits(recipe(task="digits"))
    (x, y), (x_held, y_held) = data.train, data.held
    assert (x.shape, x_held.shape) == ((1437, 64), (360, 64))
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    shares = torch.bincount(y) / 1437 - torch.bincount(y_held) / 360
    assert float(shares.abs().max()) < 2e-3
    rows = {tuple(row) for row in x.tolist()}
    assert sum(tuple(row) in rows for row in x_held.tolist()) <= 1


def test_five_folds_hold_out_every_digit_once_and_validation_comes_out_of_the_training_part():
    held, total = 0, torch.zeros(64)
    for fold in range(5):
        part = digits(recipe(options={"fold": fold, "validation": 157}))
        whole = digits(recipe(options={"fold": fold}))
        assert part.validation is not None
        assert torch.equal(part.held[0], whole.held[0])
        assert len(part.train[1]) + 157 == len(whole.train[1]) == 1797 - len(part.held[1])
        both = torch.cat([part.train[0], part.validation[0]]).sum(0)
        torch.testing.assert_close(both, whole.train[0].sum(0))
        held, total = held + len(part.held[1]), total + part.held[0].sum(0)
    assert held == 1797
    everything = digits(recipe(task="digits"))
    torch.testing.assert_close(total, everything.train[0].sum(0) + everything.held[0].sum(0))
    metrics = make_run(recipe(task="digits", data_size=1280, options={"fold": 0, "validation": 157}), 0).evaluate()
    assert set(metrics) == {"loss", "accuracy", "validation_loss", "validation_accuracy"}


@pytest.mark.parametrize(("options", "message"), [
    ({"fold": 5}, r"options.fold=5 must be in \[0, 4\]"),
    ({"fold": -1}, r"options.fold=-1 must be at least 0"),
    ({"validation": 1437}, r"options.validation=1437 must be in \[0, 1427\]"),
])  # fmt: skip
def test_a_split_that_does_not_exist_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        made("digits", **options)


def test_text_can_keep_a_part_for_validation():
    whole, half = made("text-lstm", width=4).evaluate(), made("text-lstm", width=4, validation=True).evaluate()
    assert set(half) == {"loss", "validation_loss"}
    assert whole["loss"] == pytest.approx((half["loss"] + half["validation_loss"]) / 2, rel=1e-5)


def test_the_mlp_takes_batch_norm():
    kinds = [type(module).__name__ for module in made("digits", norm=True).model.modules()]
    assert kinds == ["Sequential", "Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_text_is_hashed_and_its_windows_are_bytes():
    train, held, digest = corpus()
    assert (train.shape, held.shape) == ((8192, 65), (256, 65))
    assert train.dtype == torch.uint8
    assert len(digest) == 64
    assert made("text").facts == {"corpus_sha256": digest}


def test_the_noise_of_the_quadratic_has_no_mean_and_the_variance_asked_for():
    run = make_run(recipe(task="quadratic", data_size=4096, options={"noise": 4.0, "dimension": 3}), 0)
    xi = run.samples.tensors[0]
    assert float(xi.mean(0).abs().max()) < 1e-6
    assert xi.var(0).tolist() == pytest.approx([4.0] * 3, rel=0.1)


@pytest.mark.parametrize(("name", "message"), [
    ("digitz", r"task='digitz' is not installed \(.*digits, .*quadratic, text, .*\).*; your own is \"my_pkg"),
    ("nowhere.at_all:make", r"task='nowhere.at_all:make' cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
    ("isobatch.tasks.digits:male", "isobatch.tasks.digits has no function 'male'"),
    ("isobatch.tasks.text:CONTEXT", "has no function 'CONTEXT'"),
    (":make", "cannot be imported: ValueError"),
])  # fmt: skip
def test_a_task_that_cannot_be_found_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        find(name)


def test_a_module_that_fails_on_import_is_refused(tmp_path, monkeypatch):
    (tmp_path / "broken_task_module.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="cannot be imported: SyntaxError"):
        find("broken_task_module:make")


def test_a_make_that_returns_something_else_is_refused(tmp_path, monkeypatch):
    (tmp_path / "odd_task_module.py").write_text("def make(settings, seed):\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"returned int; it must return isobatch\.tasks\.Run"):
        make_run(recipe(task="odd_task_module:make"), 0)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("digits", {"width": 0}, r"options\.width=0 must be at least 1"),
    ("digits-cnn", {"width": "wide"}, r"options\.width='wide' must be a whole number"),
    ("text", {"held": 257}, r"options\.held=257 must be at most 256"),
    ("text-lstm", {"width": -1}, r"options\.width=-1 must be at least 1"),
    ("text", {"width": 50}, r"options\.width=50 must be a multiple of 4"),
    ("quadratic", {"noise": -1.0}, r"options\.noise=-1 must be in \[0, inf\]"),
    ("quadratic", {"dimension": 2.5}, r"options\.dimension=2\.5 must be a whole number"),
])  # fmt: skip
def test_options_outside_their_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        made(name, **options)


def test_a_recipe_without_a_task_or_with_another_data_size_is_refused():
    with pytest.raises(InputError, match='the recipe names no task; add task = "digits"'):
        make_run(recipe(), 0)
    with pytest.raises(InputError, match="data_size=1000 but task 'digits' has 1437 samples; correct it"):
        make_run(recipe(task="digits"), 0)


def test_tensors_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=r"lengths \[3, 4\] must share"):
        TensorSamples(torch.arange(3), torch.arange(4))


def test_evaluation_restores_the_mode_also_after_an_exception():
    def metrics(net):
        assert not net.training
        assert not torch.is_grad_enabled()
        raise RuntimeError("boom")

    run = Run(nn.Linear(1, 1), TensorSamples(torch.ones(2, 1)), lambda net, b: net(b[0]).mean(), metrics)
    with pytest.raises(RuntimeError, match="boom"):
        run.evaluate()
    assert run.model.training


@pytest.mark.parametrize("take", [dict, lambda o: {**o}, lambda o: list(o.values()), lambda o: dict(o.items()), sorted])
def test_who_takes_all_options_has_read_them_all(take):
    options = Asked({"a": 1, "b": 2})
    take(options)
    assert options.unread == set()
    assert options == {"a": 1, "b": 2}


@pytest.mark.parametrize("look", [lambda o: o["a"], lambda o: "a" in o, lambda o: o.get("a"), lambda o: o.pop("a")])
def test_who_looks_at_one_option_has_read_that_one(look):
    options = Asked({"a": 1, "b": 2})
    look(options)
    assert options.unread == {"b"}
