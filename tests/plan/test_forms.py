"""Where two forms are right, the other stands beside the plan with all its numbers; cautions are few and sorted."""

import json

import pytest
from tests.recipes import recipe

from isobatch.rules import Side

LONG = {"length": "100_000 samples", "warmup": "0 samples"}
FORMS = [
    # optimizer, [rules], batch, name of the other form, its numbers in literals
    ({"momentum": 0.9}, {}, 32, "momentum kept per step", {"lr": 0.04, "momentum": 0.9}),
    ({"momentum": 0.9}, {}, 2, "momentum kept per step", {"lr": 0.0025, "momentum": 0.9}),
    ({"momentum": 0.9}, {"momentum": "keep"}, 32, "momentum by the sample clock",
     {"lr": 0.04 * 0.3439 / 0.1, "momentum": 0.6561}),
    ({"momentum": 0.9, "weight_decay": 0.1, "decay": "decoupled"}, {}, 32, "momentum kept per step",
     {"lr": 0.04, "momentum": 0.9, "weight_decay": 0.1}),
    ({"name": "rmsprop", "momentum": 0.9, "alpha": 0.9}, {}, 32, "momentum kept per step",
     {"lr": 0.02, "momentum": 0.9, "alpha": 0.9, "eps": 5e-9}),
    ({"name": "rmsprop", "momentum": 0.9, "alpha": 0.9}, {}, 32, "the invariant form",
     {"lr": 0.04 * 3.439, "momentum": 0.6561, "alpha": 0.9, "eps": 1e-8, "name": "invariant-rmsprop",
      "reference_batch": 8}),
    ({"name": "muon", "momentum": 0.95}, {}, 32, "momentum kept per step", {"lr": 0.02, "momentum": 0.95}),
    ({"name": "muon", "momentum": 0.95}, {"momentum": "keep"}, 32, "momentum by the sample clock",
     {"lr": 0.04, "momentum": 0.95**4}),
    ({"name": "lion", "betas": [0.9, 0.98]}, {}, 32, "averages kept per step", {"lr": 0.02, "betas": [0.9, 0.98]}),
    ({"name": "lion", "betas": [0.9, 0.98]}, {"betas": "keep"}, 32, "averages over the same samples",
     {"lr": 0.04, "betas": [0.8, 0.98**4]}),
    ({"name": "adamw", "weight_decay": 0.1}, {}, 32, "the invariant form",
     {"lr": 0.04, "betas": [0.6561, 0.999**4], "eps": 1e-8, "weight_decay": 0.1, "name": "invariant-adamw",
      "reference_batch": 8}),
    ({"name": "adam"}, {"lr": "sqrt"}, 2, "the invariant form",
     {"lr": 0.0025, "betas": [0.9**0.25, 0.999**0.25], "eps": 1e-8, "name": "invariant-adam", "reference_batch": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "rules", "batch", "name", "numbers"), FORMS)
def test_the_other_form_has_all_its_numbers(optimizer, rules, batch, name, numbers):
    plan = recipe(optimizer=optimizer, rules=rules).at(batch)
    [form] = [form for form in plan.forms if form.name == name]
    assert {key.removeprefix("optimizer.") for key in form.values} == numbers.keys()
    for key, value in numbers.items():
        same = value if isinstance(value, str) else pytest.approx(value, rel=1e-9)
        assert form.values[f"optimizer.{key}"] == same, key
    assert f"= {name} ({form.how})" in str(plan).replace("\n", " ")
    assert f"other form, **{name}**" in plan.to_markdown()
    assert name in [told["name"] for told in json.loads(plan.to_json())["forms"]]


@pytest.mark.parametrize(("optimizer", "rules", "batch"), [
    ({}, {}, 32), ({"momentum": 0.9}, {}, 8), ({"momentum": 0.9}, {"lr": "legw"}, 32), ({"name": "nadamw"}, {}, 32),
    ({"name": "invariant-adamw"}, {}, 32),
])  # fmt: skip
def test_where_one_form_is_right_no_other_is_named(optimizer, rules, batch):
    assert recipe(optimizer=optimizer, rules=rules).at(batch).forms == ()


def test_a_form_is_the_plan_of_what_it_says_to_set():
    made = recipe(optimizer={"name": "adamw", "weight_decay": 0.1})
    [form] = made.at(64).forms
    plan = made.at(64, optimizer="invariant")
    assert form.values["optimizer.lr"] == plan.row("optimizer.lr").becomes
    assert form.values["optimizer.betas"] == [plan.row(f"optimizer.betas[{index}]").becomes for index in (0, 1)]
    kept = recipe(optimizer={"momentum": 0.9}, rules={"momentum": "keep"}).at(64)
    [form] = recipe(optimizer={"momentum": 0.9}).at(64).forms
    assert form.how == 'rules.momentum = "keep"'
    assert form.values["optimizer.lr"] == kept.row("optimizer.lr").becomes
    note = recipe(optimizer={"name": "rmsprop", "momentum": 0.9}).at(32).row("optimizer.momentum").note
    assert "keep 0.9 and lr x 2 = 0.02" in note


WORST = {"optimizer": {"name": "adamw", "clip": 1.0}, "batch_norm": {"momentum": 0.1}, "data_size": 1000}


def test_five_cautions_are_printed_the_worst_first_and_programs_get_all():
    plan = recipe(**WORST).at(2048)
    severities = [warning.severity for warning in plan.warnings]
    assert len(severities) > 5
    assert severities == sorted(severities)
    assert plan.warnings[0].condition.startswith("only")
    assert str(plan).count("! ") == plan.to_markdown().count("- **") == 5
    assert f"{len(severities) - 5} weaker cautions more in --json" in str(plan)
    assert len(json.loads(plan.to_json())["warnings"]) == len(severities)


@pytest.mark.parametrize("batch", [2, 32, 2048])
def test_every_caution_states_its_side_and_holds_there(batch):
    for optimizer in ({"clip": 1.0}, {"name": "adamw"}, {"name": "lars"}, {"name": "muon"}, {"momentum": 0.9}):
        plan = recipe(optimizer=optimizer, batch_norm={"momentum": 0.1}).at(batch)
        for warning in plan.warnings:
            assert Side(warning.side).holds(batch / 8), warning
            assert f"({warning.side})" in plan.to_markdown() or warning in plan.warnings[5:]


def test_adams_square_root_is_no_theorem_and_says_where_it_failed():
    plan = recipe(optimizer={"name": "adamw"}, schedule=LONG).at(16)
    row = plan.row("optimizer.lr")
    assert row.confidence == "derived"
    assert "DIFFERENT" in row.because
    assert "docs/studies/adam.md, docs/verify.md" in row.because
    [caution] = [w for w in plan.warnings if "square root" in w.condition]
    assert "docs/studies/adam.md" in caution.message
    assert plan.forms[0].name == "the invariant form"
