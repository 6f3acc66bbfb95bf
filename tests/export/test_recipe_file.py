"""A plan written as a recipe file reads back to its numbers, is never scaled twice, and replaces nothing unasked."""

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plan.test_round_trips import RECIPES
from tests.recipes import recipe

from isobatch import InputError, Recipe, cli, results
from isobatch.export import plan_toml, write_plan
from isobatch.plan import row_of
from isobatch.recipe import toml_text

SPOKEN = {
    "optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 1.0},
    "schedule": {"warmup": None, "shape": None},
    "curves": {"lr": [{"span": "1 epoch", "by": "linear", "start": 0.0, "to": 1.0},
                      {"by": "step", "every": "2 epochs", "gamma": 0.5}]},
    "groups": [{"name": "hidden", "dims": "matrices", "optimizer": "muon", "lr": 0.02, "momentum": 0.95},
               {"name": "norms", "match": ["norm", "bias"], "dims": "vectors", "weight_decay": 0.0}],
    "ema": {"start": "100 steps", "ramp": {"by": "power", "inv_gamma": 2.0}},
    "spans": {"freeze": "50 steps"},
    "batch": {"unit": "tokens", "size": 8, "sequence": 2},
    "options": {"a key": "with \"quotes\"", "width": 4},
}  # fmt: skip
"""Curves, groups, ramps, spans and tokens: everything that a recipe can hold as tables of tables."""
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
DECAYS = {"momentum", "betas", "alpha", "eps"}


def reread(plan, tmp_path, name="new.toml"):
    return Recipe.load(write_plan(plan, tmp_path / name, overwrite=True))


def bare(one):
    """A recipe without its stamp, and without the numbers that its optimizer does not have."""
    unread = {key: type(one.optimizer).model_fields[key].default for key in DECAYS - set(row_of(one).keys)}
    return one.model_copy(update={"planned": None, "optimizer": one.optimizer.model_copy(update=unread)})


@pytest.mark.parametrize("size", [2, 8, 40])
@pytest.mark.parametrize("parts", [*RECIPES.values(), SPOKEN], ids=[*RECIPES, "spoken"])
def test_a_written_plan_reads_back_exactly(parts, size, tmp_path):
    plan = recipe(**parts).at(size)
    again = reread(plan, tmp_path)
    assert bare(again) == bare(plan.recipe)
    for row in again.at(size).rows[1:]:
        assert row.kept or row.key == "batch.size", row


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_can_be_planned_and_written(path, tmp_path):
    plan = Recipe.load(path).at(Recipe.load(path).batch.size * 4)
    assert bare(reread(plan, tmp_path)) == bare(plan.recipe)


@pytest.mark.parametrize("options", [
    {"optimizer": "invariant"}, {"rule": "legw"}, {"goal": "speed", "noise_scale": 100.0}, {"noise_scale": 50.0},
])  # fmt: skip
def test_every_variant_of_a_plan_reads_back(options, tmp_path):
    plan = recipe(optimizer={"name": "adamw", "weight_decay": 0.1}).at(32, **options)
    assert bare(reread(plan, tmp_path)) == bare(plan.recipe)


def test_a_plan_of_a_plan_goes_on_from_its_batch(tmp_path):
    first = recipe(optimizer={"momentum": 0.9})
    once = reread(first.at(32), tmp_path)
    twice = reread(once.at(128), tmp_path, "other.toml")
    assert once.planned.batches == (8, 32)
    assert twice.planned.batches == (8, 32, 128)
    assert twice.optimizer.lr == pytest.approx(first.at(128).recipe.optimizer.lr, rel=1e-12)
    assert twice.ema.decay == pytest.approx(first.at(128).recipe.ema.decay, rel=1e-12)
    assert "planned before, 8 to 32: what that plan moved is not moved again" in once.at(128).row("batch.size").note


def test_the_same_command_twice_moves_nothing_twice(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(toml_text({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}}))
    words = ["plan", str(path), "--batch-size", "32", "--write", str(path), "--overwrite"]
    assert cli.run(words) == 0
    once = Recipe.load(path)
    assert cli.run(words) == 0
    assert Recipe.load(path) == once
    assert once.optimizer.lr == pytest.approx(0.4)


def test_a_batch_changed_by_hand_is_refused(tmp_path):
    path = write_plan(recipe().at(32), tmp_path / "new.toml")
    path.write_text(path.read_text().replace("size = 32", "size = 64"))
    with pytest.raises(InputError, match=r"batch.size=64, but .* planned for 32 .*back to 32 and plan 64 from there"):
        Recipe.load(path)


@pytest.mark.parametrize("batches", [[], [8], [0, 8]])
def test_a_stamp_that_is_none_is_refused(batches):
    with pytest.raises(InputError, match=r"planned.batches=\[.*must hold at least two batches"):
        recipe(planned={"batches": batches})


def test_a_plan_at_its_own_batch_has_no_stamp(tmp_path):
    assert reread(recipe().at(8, devices=2), tmp_path).planned is None


def test_what_was_stands_beside_what_moved():
    text = plan_toml(recipe(optimizer={"name": "adamw"}).at(32), "mine.toml")
    assert "planned from mine.toml for batch 32, kappa = 4" in text.splitlines()[0]
    assert "lr = 0.02  # was 0.01" in text
    assert "betas = [0.6561, 0.996005996001]  # was [0.9, 0.999]" in text
    assert 'length = "10000 samples"  # was 10 epochs' in text
    assert "eps = 5e-09  # was 1e-08" in text
    assert 'shape = "cosine"\n' in text
    assert "momentum" not in text


def test_groups_curves_and_spans_have_their_notes_too():
    text = plan_toml(recipe(**SPOKEN).at(32))
    assert "lr = 0.08  # was 0.02" in text
    assert 'span = "1000 tokens"  # was 1 epoch' in text
    assert 'freeze = "400 tokens"  # was 50 steps' in text
    assert "weight_decay = 0.0\n" in text or text.endswith("weight_decay = 0.0")


def test_nothing_is_overwritten_unasked(tmp_path):
    path, plan = tmp_path / "new.toml", recipe().at(32)
    path.write_text("mine")
    with pytest.raises(InputError, match="exists; give another name"):
        write_plan(plan, path)
    assert path.read_text() == "mine"
    write_plan(plan, path, overwrite=True)
    assert Recipe.load(path).batch.size == 32
    assert [file.name for file in tmp_path.iterdir()] == ["new.toml"]


def test_a_file_that_appears_in_between_is_not_replaced(tmp_path, monkeypatch):
    path, fsync = tmp_path / "new.toml", results.os.fsync
    monkeypatch.setattr(results.os, "fsync", lambda handle: (path.write_text("theirs"), fsync(handle)))
    with pytest.raises(InputError, match="exists"):
        write_plan(recipe().at(32), path)
    assert path.read_text() == "theirs"


def test_a_file_system_without_links_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = write_plan(recipe().at(32), tmp_path / "new.toml")
    with pytest.raises(InputError, match="exists"):
        write_plan(recipe().at(16), path)
    assert Recipe.load(path).batch.size == 32


def test_the_command_writes_and_still_prints(tmp_path, capsys):
    source, target = tmp_path / "mine.toml", tmp_path / "new.toml"
    source.write_text(toml_text({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}}))
    assert cli.run(["plan", str(source), "--batch-size", "32", "--json", "--write", str(target)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("{")
    assert shown.err == f"isobatch: written {target}\n"
    assert "# isobatch" in target.read_text()
    assert str(tmp_path) not in target.read_text()


PLAIN = st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.text(min_size=1, max_size=6)
TABLES = st.recursive(
    st.dictionaries(KEYS, PLAIN | st.lists(PLAIN, max_size=3), max_size=3),
    lambda inner: st.dictionaries(KEYS, PLAIN | inner | st.lists(inner, min_size=1, max_size=3), max_size=3),
    max_leaves=8,
)


@given(TABLES)
def test_toml_is_read_back_as_it_was(table):
    assert tomllib.loads(toml_text(table)) == table


@pytest.mark.parametrize("value", [math.inf, math.nan, object()])
def test_what_toml_cannot_say_is_refused(value):
    with pytest.raises(InputError, match=r"table\.key=.*has no word in TOML"):
        toml_text({"table": {"key": value}})


def test_notes_find_their_place_in_arrays_too():
    text = toml_text({"groups": [{"lr": 1.0}, {"lr": 2.0}]}, {"groups.1.lr": "was 1"})
    assert text == "[[groups]]\nlr = 1.0\n\n[[groups]]\nlr = 2.0  # was 1"
