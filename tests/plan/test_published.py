"""24 public recipes said in full: their fields counted, and every number of two plans by slow arithmetic."""

import re
import tomllib
from pathlib import Path

import pytest
from tests.reference import published

from isobatch import Recipe
from isobatch.export.recipe_file import plan_toml

FOLDER = Path(__file__).parent / "published"
FILES = sorted(FOLDER.glob("*.toml"))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "published").glob("*.toml"))
each = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
WORDS = {"batch.size (kept)", "ema.ramp.by"}


def leaves(value):
    if isinstance(value, dict):
        return sum(leaves(part) for part in value.values())
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(leaves(part) for part in value)
    return 1


def counted(path):
    """Fields of a recipe that are exact, with loss, and not stated: the last two are named in its first lines."""
    text = path.read_text()
    lossy, missing = (len(re.findall(rf"^# {word}:", text, re.MULTILINE)) for word in ("with loss", "not stated"))
    return leaves(tomllib.loads(text)) - lossy, lossy, missing


def test_at_least_97_percent_of_their_fields_are_exact():
    counts = [counted(path) for path in FILES]
    exact, lossy, missing = (sum(column) for column in zip(*counts, strict=True))
    assert len(FILES) == 24
    assert exact / (exact + lossy + missing) >= 0.97
    assert lossy + missing >= 4, "what cannot be said is named"


def test_the_page_counts_them():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for path in FILES:
        assert "| {} | {} | {} | {} |".format(path.stem, *counted(path)) in page
    total = [sum(column) for column in zip(*map(counted, FILES), strict=True)]
    assert "| **all** | {} | {} | {} |".format(*total) in page


@each
def test_each_names_its_source(path):
    assert re.match(r"# [\w.-]+/[\w.-]+@[0-9a-f]{7}:", path.read_text())


def asked(recipe, up):
    """Four times the batch, or a quarter of it on a quarter of what it took."""
    batch = recipe.batch
    if up:
        return {"batch_size": batch.size * 4}
    if batch.micro is not None and batch.micro % 4 == 0:
        return {"batch_size": batch.size // 4, "micro": batch.micro // 4}
    return {"batch_size": batch.size // 4, "devices": max(1, batch.devices // 4)}


@each
@pytest.mark.parametrize("up", [True, False], ids=["x4", "quarter"])
def test_every_number_of_a_plan_is_the_slow_references(path, up):
    recipe, values = Recipe.load(path), tomllib.loads(path.read_text())
    how = asked(recipe, up)
    plan = recipe.at(**how)
    wanted = published.plan(values, how["batch_size"], how.get("micro"), how.get("devices"))
    found = {row.key: row for row in plan.rows if row.key not in WORDS}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].becomes == pytest.approx(value, rel=1e-9), key
        if found[key].steps is not None:
            spans = found[key].becomes if key != "batch.size" else wanted["schedule.length"]
            old = found[key].was if key != "batch.size" else wanted["schedule.length"]
            steps = -int(-old / recipe.batch.size // 1), -int(-spans / how["batch_size"] // 1)
            assert all(abs(a - b) <= 1e-6 for a, b in zip(found[key].steps, steps, strict=True)), key


@each
def test_each_comes_back_and_survives_json_and_its_file(path):
    recipe = Recipe.load(path)
    plan = recipe.at(**asked(recipe, up=True))
    assert Recipe.parse(plan.to_dict()["recipe"]) == plan.recipe
    written = Recipe.parse(tomllib.loads(plan_toml(plan)))
    for key in (row.key for row in plan.rows if row.key.startswith("optimizer.")):
        assert written.at(written.batch.size).row(key).becomes == plan.row(key).becomes
    assert written.curves == plan.recipe.curves
    assert written.groups == plan.recipe.groups
    back = plan.recipe.at(recipe.batch.size, micro=recipe.batch.micro, devices=recipe.batch.devices)
    floored = {row.key for row in plan.rows if "floor" in row.because}
    first, last = ({row.key: row.becomes for row in plan_.rows} for plan_ in (recipe.at(recipe.batch.size), back))
    for key, value in first.items():
        if key not in floored | WORDS and isinstance(value, float | int):
            assert last[key] == pytest.approx(value, rel=1e-9), key


@each
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_the_area_of_every_curve_is_kept_over_any_samples(path, name):
    recipe = Recipe.load(path)
    curve = recipe.staircase() if name == "lr" else recipe.curve(name)
    if curve is None:
        return
    big, end = recipe.batch.size * 4, recipe.batch.size * 400
    small = sum(curve.mean(seen, seen + recipe.batch.size) for seen in range(0, end, recipe.batch.size))
    large = sum(4 * curve.mean(seen, seen + big) for seen in range(0, end, big))
    assert large == pytest.approx(small, rel=1e-9)


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_readable_ones_are_planned(path):
    plan = Recipe.load(path).at(Recipe.load(path).batch.size * 4)
    assert plan.row("schedule.length").steps[0] == pytest.approx(4 * plan.row("schedule.length").steps[1], rel=0.01)


def test_the_matrices_of_nanochat_follow_muons_own_rule():
    [path] = [path for path in EXAMPLES if path.stem == "nanochat"]
    plan = Recipe.load(path).at(2_097_152)
    assert plan.row("groups.matrices.lr").becomes == pytest.approx(0.08)
    assert plan.row("groups.matrices.momentum").becomes == pytest.approx(0.95**4)
    assert plan.row("groups.matrices.weight_decay").becomes == pytest.approx(0.28)
    assert plan.row("groups.unembedding.lr").becomes == pytest.approx(0.016)


def test_an_average_whose_ramp_never_lets_it_act_says_the_half_life_that_does():
    recipe = Recipe.load(FOLDER / "diffusers_t2i.toml")
    [warning] = [w for w in recipe.at(16).warnings if "never acts" in w.condition]
    assert "27,724.5 samples" in warning.condition
    assert "(1,156 updates)" in warning.message


def test_the_shares_of_a_curve_are_told_as_the_settings_own_numbers():
    plan = Recipe.load(FOLDER / "ultralytics_default.toml").at(256)
    assert plan.row("curves.momentum.0.start").note == "a decay of 0.8 becomes 0.4096"
    assert plan.row("curves.lr.1.to").note.startswith("lr 0.0001 becomes 0.00036376")
    plan = Recipe.load(FOLDER / "fairseq_data2vec_audio.toml").at(4 * 60800000)
    assert plan.row("curves.ema.0.to").note == "a decay of 0.9999 becomes 0.9996"
