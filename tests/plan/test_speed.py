"""goal="speed": learning rate, length and confidence by a critical batch, refused without one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import TEXT, recipe
from tests.reference import critical as slow

from isobatch import Recipe
from isobatch.errors import InputError
from isobatch.plan import Critical
from isobatch.rules import Confidence

MEASURED = {"batch": 40.0, "low": 28.0, "high": 60.0, "goal": "loss 0.3", "source": "noise sweep", "date": "2026-11-27",
            "noise_scale": 80.0, "ratio": 0.5, "ratio_low": 0.3, "ratio_high": 0.8}  # fmt: skip


def test_sgd_moves_along_the_hyperbola():
    base = recipe(critical=MEASURED)
    plan = base.at(64, goal="speed")
    assert plan.row("optimizer.lr").becomes == pytest.approx(0.01 * (1 + 40 / 8) / (1 + 40 / 64))
    before, after = base.staircase(), plan.recipe.staircase()
    steps = slow.steps(1.0, 40.0, 64) / slow.steps(1.0, 40.0, 8)
    assert after.length / 64 == pytest.approx(before.length / 8 * steps)
    assert after.warmup / after.length == pytest.approx(before.warmup / before.length)
    assert plan.recipe.half_life == pytest.approx(base.half_life)
    assert plan.row("optimizer.lr").confidence is Confidence.DERIVED
    assert "critical batch 40 samples [28 to 60] (noise sweep, 2026-11-27)" in plan.row("optimizer.lr").note
    assert plan.row("schedule.length").confidence is Confidence.MEASURED
    assert "fastest run at batch 64" in str(plan)
    assert plan.to_dict()["goal"] == "speed"
    assert base.at(64).to_dict()["goal"] == "equivalence"
    assert plan.warnings[0].condition == "another run, not the same one"


def test_the_note_says_what_the_interval_does_to_the_rate():
    plan = recipe(critical=MEASURED).at(64, goal="speed")
    low, high = (0.01 * (1 + c / 8) / (1 + c / 64) for c in (28, 60))
    assert f"over the interval [{low:.4g}, {high:.4g}]" in plan.row("optimizer.lr").note


@pytest.mark.parametrize("name", ["adamw", "adam", "lamb", "lars", "muon"])
def test_others_rise_as_the_root_and_flatten(name):
    average = {"momentum": 0.0} if name in ("lars", "muon") else {}
    critical = {"batch": 1e6}
    base = recipe(optimizer={"name": name, "lr": 1e-3, **average}, critical=critical)
    rates = [base.at(b, goal="speed").recipe.optimizer.lr for b in (8, 32, 10**8, 4 * 10**8)]
    assert rates[1] / rates[0] == pytest.approx(2, rel=1e-4)
    assert rates[3] / rates[2] == pytest.approx(1, rel=0.01)
    assert rates[2] / rates[0] == pytest.approx(math.sqrt((1 + 1e6 / 8) / (1 + 1e6 / 1e8)))


def test_adam_keeps_its_betas_in_samples():
    base = recipe(optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, critical=MEASURED)
    plan = base.at(32, goal="speed")
    assert plan.row("optimizer.lr").confidence is Confidence.MEASURED
    assert plan.recipe.optimizer.betas == base.at(32).recipe.optimizer.betas
    o = plan.recipe.optimizer
    assert o.lr * o.weight_decay / 32 == pytest.approx(1e-4 / 8)


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"name": "adamw"}, {"name": "lars", "momentum": 0.9}])
def test_the_rate_lies_between_the_ends_of_its_interval(optimizer):
    row = recipe(optimizer=optimizer, critical=MEASURED).at(64, goal="speed").row("optimizer.lr")
    low, high = (float(end) for end in row.note.split("interval [")[1].rstrip("]").split(","))
    assert low < row.becomes < high


def test_momentum_keeps_the_best_rate_over_one_minus_mu():
    base = recipe(optimizer={"momentum": 0.9}, critical=MEASURED)
    new = base.at(32, goal="speed").recipe.optimizer
    assert new.lr / (1 - new.momentum) == pytest.approx(0.1 * (1 + 40 / 8) / (1 + 40 / 32))


def test_an_optimizer_without_theory_is_unknown():
    base = recipe(optimizer={"name": "lion"}, critical=MEASURED)
    assert base.at(32, goal="speed").row("optimizer.lr").confidence is Confidence.UNKNOWN


def test_a_noise_scale_is_calibrated_or_called_uncalibrated():
    plan = recipe(critical=MEASURED).at(32, goal="speed", noise_scale=200.0)
    assert plan.recipe.critical.batch == 100
    assert (plan.recipe.critical.low, plan.recipe.critical.high) == (60, 160)
    assert "noise scale 200 x ratio 0.5 (noise sweep)" in plan.row("optimizer.lr").note
    assert "a noise scale is not a critical batch" not in [w.condition for w in plan.warnings]
    raw = recipe().at(32, goal="speed", noise_scale=200.0)
    assert raw.recipe.critical.batch == 200
    assert "a noise scale is not a critical batch" in [w.condition for w in raw.warnings]
    assert raw.row("optimizer.lr").confidence is Confidence.UNKNOWN
    assert raw.row("schedule.length").confidence is Confidence.UNKNOWN


@given(a=st.sampled_from([4, 16, 64]), b=st.sampled_from([8, 32, 128]), critical=st.floats(1, 1e4))
def test_moves_compose_and_the_own_batch_is_the_identity(a, b, critical):
    base = recipe(critical={"batch": critical})
    direct, twice = base.at(b, goal="speed").recipe, base.at(a, goal="speed").recipe.at(b, goal="speed").recipe
    assert twice.optimizer.lr == pytest.approx(direct.optimizer.lr)
    assert twice.staircase().length == pytest.approx(direct.staircase().length)
    same = base.at(8, goal="speed").recipe
    assert same.optimizer.lr == base.optimizer.lr
    assert same.staircase() == base.staircase()


def test_a_speed_recipe_trains():
    from isobatch.tasks import make_run
    from isobatch.train import Trainer

    made = recipe(task="quadratic", ema=None, critical=MEASURED, schedule={"length": "64 samples", "warmup": None})
    trained = Trainer(make_run(made, 0), made.at(16, goal="speed").recipe)
    trained.train_to(trained.length)
    assert trained.steps == math.ceil(64 * (1 + 16 / 40) / (1 + 8 / 40) / 16)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: recipe().at(32, goal="speed"), "needs a critical batch: measure one with `isobatch noise sweep"),
    (lambda: recipe().at(32, goal="faster"), "goal='faster' must be one of equivalence, speed"),
    (lambda: recipe().at(32, goal="speed", noise_scale=-1.0), r"critical batch=-1 must be in \[0, inf\]"),
    (lambda: recipe().at(32, goal="speed", noise_scale=0.0), "noise scale=0 must be positive"),
    (lambda: recipe().at(32, goal="speed", noise_scale=math.nan), "must be finite"),
    (lambda: recipe(critical=MEASURED).at(32, goal="speed", rule="legw"), "drop rule and optimizer"),
    (lambda: recipe(rules={"lr": "speed"}).at(32), r"needs \[critical\]"),
    (lambda: recipe(batch={"schedule": [["0 epochs", 8]]}, critical=MEASURED).at(32, goal="speed"), "one batch"),
    (lambda: recipe(critical={"batch": 0}), "critical.batch"),
    (lambda: recipe(critical={"batch": 10, "low": 20}), r"critical.batch=10 must lie in its interval, \[20, None\]"),
    (lambda: recipe(critical={"batch": 10, "ratio": 1, "ratio_high": 0.5}), "critical.ratio=1 must lie"),
    (lambda: recipe(critical={"batch": 10, "date": "today"}), "critical.date"),
    (lambda: recipe(critical={"batch": 10, "lowest": 1}), "did you mean 'low'"),
    (lambda: Critical(batch=10.0).calibrated(5.0), "holds no ratio"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_table_is_stored_and_read_back_and_the_rest_is_left_alone(tmp_path):
    path, found = tmp_path / "recipe.toml", Critical(**MEASURED)
    path.write_text("# mine\n" + TEXT)
    found.store(path)
    assert Recipe.load(path).critical == found
    assert path.read_text().startswith("# mine\n" + TEXT.rstrip("\n"))
    newer = found.model_copy(update={"batch": 50.0, "source": 'a "quoted" source'})
    newer.store(path)
    assert Recipe.load(path).critical == newer
    assert path.read_text().count("[critical]") == 1
    first = TEXT.index("[batch]")
    path.write_text(TEXT[:first] + "[critical]\nbatch = 1\n\n" + TEXT[first:])
    newer.store(path)
    assert Recipe.load(path).critical == newer
    assert Recipe.load(path).batch.size == 8
    path.write_text("critical = { batch = 3 }\n" + TEXT)
    with pytest.raises(InputError, match="writes critical inline"):
        newer.store(path)
    with pytest.raises(InputError, match="cannot read the recipe"):
        newer.store(tmp_path / "nowhere.toml")
