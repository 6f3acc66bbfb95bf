"""Each warning once where its condition holds, and not where it does not."""

import pytest
from tests.recipes import recipe

LONG = {"length": "1000 epochs", "warmup": "10 epochs"}
SGD = {"name": "sgd", "lr": 0.01, "lr_limit": 10.0}
ADAMW = {"name": "adamw", "lr": 1e-3}

WSD = {
    "schedule": {"length": "1000 epochs", "warmup": None, "shape": None},
    "curves": {"lr": [{"span": "800 epochs", "by": "hold"}, {"by": "minus-sqrt", "to": 0.0}]},
}
LORA = {"name": "adapters", "match": "lora_", "lr_scale": 10.0}
RATIO = {"by": "ratio", "ratio": 0.5}

CASES = [
    # condition, triggered: parts and batch, not triggered: parts and batch
    ("kappa*(1-rho) = 0.16 is not small", ({}, 128), ({"ema": {"decay": 0.999}}, 128)),
    ("kappa*(1-rho) = 0.16", ({"ema": {"every": 3}}, 128), ({"ema": None}, 128)),
    ("betas[0] is at its floor", ({"optimizer": ADAMW}, 64), ({"optimizer": ADAMW}, 32)),
    ("betas[1] is at its floor", ({"optimizer": ADAMW}, 512), ({"optimizer": ADAMW}, 256)),
    (
        "kappa/(1-mu) steps are not short",
        ({"optimizer": {"momentum": 0.9}, "rules": {"momentum": "keep"}}, 128),
        ({"optimizer": {"momentum": 0.9}, "rules": {"momentum": "keep"}, "schedule": LONG}, 128),
    ),
    (
        "kappa/(1-mu) steps are not short",
        ({"optimizer": {"momentum": 0.99}, "rules": {"momentum": "keep"}, "schedule": LONG}, 256 * 8),
        ({"optimizer": {"momentum": 0.99}, "schedule": LONG}, 256 * 8),
    ),
    (
        "near the stability limit",
        ({"optimizer": {"momentum": 0.9, "lr_limit": 3.0}}, 128),
        ({"optimizer": {"momentum": 0.9, "lr_limit": 4.0}}, 128),
    ),
    ("stability limit unknown", ({}, 32), ({"optimizer": SGD}, 32)),
    ("stability limit unknown", ({}, 32), ({}, 16)),
    ("steps are left", ({"schedule": {"warmup": "0 epochs"}}, 128), ({"schedule": {"warmup": "0 epochs"}}, 64)),
    ("the warm-up is short", ({}, 128), ({}, 64)),
    ("the warm-up is short", ({}, 128), ({"schedule": {"warmup": "0 samples"}}, 128)),
    ("rule is only a convention", ({"optimizer": {"name": "lars"}}, 16), ({"optimizer": ADAMW}, 16)),
    (
        "rule is only a convention",
        ({"optimizer": {"name": "lars"}}, 16),
        ({"optimizer": {"name": "muon", "momentum": 0.9}}, 16),
    ),
    (
        "square root needs noise to dominate v",
        ({"optimizer": ADAMW}, 16),
        ({"optimizer": {"name": "invariant-adamw", "lr": 1e-3}}, 16),
    ),
    (
        "square root needs noise to dominate v",
        ({"optimizer": ADAMW, "rules": {"lr": "sqrt"}}, 16),
        ({"optimizer": ADAMW, "rules": {"lr": "linear"}}, 16),
    ),
    (
        "the square root would drift by -66%",
        ({"optimizer": ADAMW, "rules": {"lr": "noise-aware", "noise_share": 0.5}}, 128),
        ({"optimizer": ADAMW, "rules": {"lr": "noise-aware", "noise_share": 0.99}}, 128),
    ),
    ("is larger than the data", ({"data_size": 1437}, 2048), ({"data_size": 1437}, 1024)),
    ("ema.decay = 0.0002 forgets in one update", ({"ema": {"decay": 0.0002}}, 16), ({"ema": {"decay": 0.9998}}, 16)),
    (
        "batch_norm.momentum = 0.97 forgets in one pass",
        ({"batch_norm": {"momentum": 0.97}}, 16),
        ({"batch_norm": {"momentum": 0.03}}, 16),
    ),
    ("is longer than the run", ({"ema": {"decay": 0.9999}}, 16), ({"ema": {"decay": 0.999}}, 16)),
    ("is longer than the run", ({"ema": {"decay": 0.9999}}, 2), ({"ema": {"decay": 0.9999}, "schedule": LONG}, 2)),
    ("stability limit unknown", ({}, 32), ({"batch_norm": {"momentum": 0.1}}, 32)),
    ("is past the critical batch of 20", ({"critical": {"batch": 20.0}}, 32), ({"critical": {"batch": 20.0}}, 16)),
    (
        "curves of different batches cross (WSD)",
        ({"schedule": None, **WSD}, 16),
        ({"schedule": {"decay_from": "2 epochs"}}, 16),
    ),
    ("curves of different batches cross (WSD)", ({"schedule": {"decay_from": "8 epochs"}}, 16), ({}, 16)),
    ("LoRA", ({"options": {"adapter": "lora"}}, 16), ({"options": {"adapter": "none"}}, 16)),
    ("LoRA", ({"groups": [LORA]}, 2), ({"groups": [{**LORA, "match": "head"}]}, 2)),
    ("never acts", ({"ema": {"decay": 0.9999, "ramp": {"by": "tensorflow"}}}, 16), ({}, 16)),
    (
        "never acts",
        ({"ema": {"decay": 0.999, "ramp": {"by": "exp", "tau": "100 epochs"}}}, 16),
        ({"ema": {"decay": 0.999, "ramp": {"by": "exp", "tau": "1 epoch"}}}, 16),
    ),
    ("never acts", ({"ema": {"ramp": {"by": "ratio", "ratio": 0.01}}}, 16), ({"ema": {"ramp": RATIO}}, 16)),
    ("gradient clipping", ({"optimizer": {"clip": 1.0}}, 16), ({}, 16)),
    (
        "batch norm sees another batch",
        ({"batch_norm": {"momentum": 0.1}}, 16),
        ({"batch_norm": {"momentum": 0.1}, "batch": {"micro": 8}}, 16),
    ),
]


@pytest.mark.parametrize(
    ("condition", "triggered", "quiet"), CASES, ids=[f"{i} {case[0]}" for i, case in enumerate(CASES)]
)
def test_a_warning_comes_with_its_condition_and_only_then(condition, triggered, quiet):
    def found(parts, batch):
        return [w for w in recipe(**parts).at(batch).warnings if condition in w.condition]

    [warning] = found(*triggered)
    assert warning.message
    assert warning.source
    assert not found(*quiet)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_nothing_is_warned_at_the_reference_batch(name):
    assert recipe(optimizer={"name": name, "clip": 1.0}, batch_norm={"momentum": 0.1}).at(8).warnings == ()


def test_another_convention_is_named_with_the_number_here():
    told = {
        w.condition: w.message for w in recipe(ema={"decay": 0.0002}, batch_norm={"momentum": 0.97}).at(16).warnings
    }
    assert "ema.decay = 0.9998 here" in told["ema.decay = 0.0002 forgets in one update"]
    assert "it is 0.03 here" in told["batch_norm.momentum = 0.97 forgets in one pass"]


def test_a_quiet_plan_is_possible():
    assert recipe(optimizer=SGD, ema={"decay": 0.9999}, schedule=LONG).at(32).warnings == ()


def test_another_length_is_named_with_what_marin_measured():
    found = recipe(critical={"batch": 20.0}, schedule=LONG).at(32, goal="speed").warnings
    [warning] = [w for w in found if "the length changes too" in w.condition]
    assert "0.2% of its forecast" in warning.message


def test_five_cautions_are_printed_the_worst_first_each_with_its_side():
    plan = recipe(optimizer={"name": "adamw", "clip": 1.0}, batch_norm={"momentum": 0.97}, critical={"batch": 9.0},
                  options={"peft": "lora"}).at(128)  # fmt: skip
    assert len(plan.warnings) > 5
    assert [w.severity for w in plan.warnings] == sorted(w.severity for w in plan.warnings)
    shown = plan.to_markdown()
    assert sum(f"**{w.condition}** ({w.side})" in shown for w in plan.warnings) == 5


@pytest.mark.parametrize(("optimizer", "said"), [({"name": "muon"}, True), ({"name": "muon", "momentum": 0.95}, False),
                                                 ({"name": "sgd"}, False), ({"name": "lion"}, False)])  # fmt: skip
def test_muon_without_momentum_is_not_what_its_name_promises(optimizer, said):
    found = [one.condition for one in recipe(optimizer=optimizer).at(32).warnings]
    assert ("optimizer.momentum is 0" in found) is said
