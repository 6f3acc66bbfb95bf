"""Snippets: torch's runs and its numbers are the plan's; the others are valid calls of the real packages."""

import ast
import math

import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch import InputError, Recipe, cli
from isobatch.export import SNIPPETS, snippet

SMALL = {"data_size": 128, "schedule": {"length": "4 epochs", "warmup": "1 epoch"}}
RECIPES = {
    "sgd": {"optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "clip": 1.0}},
    "adam": {"optimizer": {"name": "adam"}, "schedule": {"shape": "linear", "final": 0.1, "decay_from": "2 epochs"}},
    "adamw": {"optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 0.5}, "ema": {"every": 3}},
    "rmsprop": {"optimizer": {"name": "rmsprop", "alpha": 0.9, "momentum": 0.5}, "ema": None},
    "nadamw": {"optimizer": {"name": "nadamw", "weight_decay": 0.1}, "batch_norm": {"momentum": 0.1}},
    "invariant-adamw": {
        "optimizer": {"name": "invariant-adamw", "weight_decay": 0.1},
        "ema": None,
        "batch": {"micro": 4},
    },
    "lion": {"optimizer": {"name": "lion", "betas": [0.9, 0.98]}, "schedule": {"shape": "constant", "warmup": None}},
    "devices": {"batch": {"micro": 2, "devices": 2}, "ema": {"decay": None, "half_life": "1 epoch"}},
}


def made(name, size=32):
    parts = RECIPES[name]
    return recipe(**{**SMALL, **parts, "schedule": {**SMALL["schedule"], **parts.get("schedule", {})}}).at(size)


def executed(code, **names):
    space = {"__name__": "snippet", **names}
    exec(compile(code, "snippet", "exec"), space)
    return space


@pytest.mark.parametrize("size", [4, 8, 24, 32])
@pytest.mark.parametrize("name", RECIPES)
def test_torchs_runs_and_trains_by_the_plans_numbers(name, size):
    plan = made(name, size)
    space = executed(snippet(plan, "torch"))
    stairs, o = plan.recipe.staircase(size), plan.recipe.optimizer
    assert space["STEPS"] == math.ceil(stairs.length / size)
    for step in range(space["STEPS"]):
        wanted = stairs.mean(step * size, (step + 1) * size)
        assert space["factor"](step) == pytest.approx(wanted, rel=1e-9), step
    group = space["optimizer"].param_groups[0]
    assert group["initial_lr"] == o.lr
    for key in ("momentum", "betas", "alpha", "eps", "weight_decay"):
        if key in group and key in str(plan.recipe.optimizer.model_fields_set) and hasattr(o, key):
            assert group[key] == getattr(o, key), key
    assert all(torch.isfinite(p).all() for p in space["model"].parameters())
    batch = plan.recipe.batch
    assert space["DEVICES"] * space["MICRO"] * space["ACCUMULATE"] == batch.size


def test_the_average_of_the_snippet_is_the_plans():
    plan = made("adamw")
    space = executed(snippet(plan, "torch"))
    zeta, theta = [torch.zeros(1)], [torch.ones(1)]
    space["average"].multi_avg_fn(zeta, theta, 1)
    assert float(zeta[0]) == pytest.approx(1 - plan.recipe.ema.decay, rel=1e-5)
    assert int(space["average"].n_averaged) == space["STEPS"] // 3


def test_every_snippet_is_python_and_names_the_numbers():
    for name in RECIPES:
        plan = made(name)
        for kind in SNIPPETS:
            code = snippet(plan, kind)
            ast.parse(code)
            assert repr(plan.recipe.optimizer.lr) in code
            assert max(map(len, code.splitlines())) < 260
    hf = snippet(made("adamw"), "hf")
    assert "per_device_train_batch_size=32" in hf
    assert "max_grad_norm=0.5" in hf
    assert "adam_beta2=0.996005996001" in hf
    lightning = snippet(made("devices"), "lightning")
    assert "accumulate_grad_batches=8" in lightning
    assert "devices=2" in lightning


UNSAID = {
    "groups": {"groups": [{"name": "norms", "match": "norm", "weight_decay": 0.0}]},
    "ema.final": {"ema": {"final": 1.0}},
    "batch.unit": {"batch": {"unit": "tokens"}, "data_size": None, "schedule": {"length": "80 tokens", "warmup": None}},
    "schedule.shape": {"schedule": {"shape": "autowu", "warmup": None}},
    "schedule cannot": {"schedule": None},
    "optimizer.decay": {"optimizer": {"decay": "independent", "weight_decay": 0.1}},
    "batch.micro": {"optimizer": {"name": "invariant-adamw"}},
    "batch.schedule": {"batch": {"schedule": [["0 epochs", 8], ["1 epoch", 16]]}},
}


@pytest.mark.parametrize("key", UNSAID)
@pytest.mark.parametrize("kind", SNIPPETS)
def test_what_a_snippet_cannot_say_is_refused_with_the_way_out(key, kind):
    with pytest.raises(InputError, match=rf"{key}.*write the plan with --write new.toml"):
        snippet(recipe(**UNSAID[key]).at(32), kind)


def test_another_kind_is_refused_and_the_command_prints(tmp_path, capsys):
    with pytest.raises(InputError, match="snippet='keras' must be one of torch, hf, lightning"):
        snippet(made("sgd"), "keras")
    path = tmp_path / "recipe.toml"
    path.write_text('data_size = 100\n[batch]\nsize = 8\n[optimizer]\nname = "sgd"\nlr = 0.1\n[schedule]\n'
                    'length = "2 epochs"\n')  # fmt: skip
    assert cli.run(["plan", str(path), "--batch-size", "32", "--snippet", "torch"]) == 0
    assert capsys.readouterr().out == snippet(Recipe.load(path).at(32), "torch")


def without_training(code):
    return code.partition('if __name__ == "__main__":')[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_takes_the_arguments(name, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    plan = made(name)
    space = executed(without_training(snippet(plan, "hf")))
    arguments = space["arguments"]
    assert isinstance(arguments, transformers.TrainingArguments)
    assert arguments.learning_rate == plan.recipe.optimizer.lr
    assert arguments.gradient_accumulation_steps == plan.recipe.batch.accumulation
    assert space["trainer"].optimizer.param_groups[0]["initial_lr"] == plan.recipe.optimizer.lr
    assert isinstance(space["model"], nn.Module)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_lightning_takes_the_arguments(name, tmp_path, monkeypatch):
    try:
        import lightning
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    plan = made(name)
    code = without_training(snippet(plan, "lightning")).replace("devices=2", "devices=1")
    space = executed(code)
    assert isinstance(space["trainer"], lightning.Trainer)
    assert space["trainer"].max_steps == math.ceil(plan.recipe.staircase().length / 32)
    found = space["Task"]().configure_optimizers()
    assert found["optimizer"].param_groups[0]["initial_lr"] == plan.recipe.optimizer.lr
    assert found["lr_scheduler"]["interval"] == "step"
