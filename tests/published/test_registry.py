"""The registry: plans start at the authors' own numbers, and the distances are what the formulas say."""

import json
import math
import re
from importlib.resources import files

import pytest

from isobatch import InputError, Recipe, published
from isobatch.cli import run

NAMES = published.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_its_authors_say(name):
    found = published.load(name)
    assert "@" in found.source
    assert len(found.points) > 1
    for batch, told in found.points.items():
        recipe = found.recipe(batch)
        o = recipe.optimizer
        assert (recipe.batch.size, o.lr, o.name) == (batch, told["lr"], found.optimizer)
        for key, value in (("momentum", o.momentum), ("weight_decay", o.weight_decay), ("eps", o.eps)):
            assert value == told.get(key, value)
        assert [o.betas[0], o.betas[1]] == [told.get("beta1", o.betas[0]), told.get("beta2", o.betas[1])]
        assert (o.clip or 0) == told.get("clip", 0)
        assert recipe.at(batch).recipe.optimizer.lr == o.lr
        if "ema" in told:
            assert recipe.average_decay == told["ema"]
        if found.critical is not None:
            assert (recipe.critical.batch, recipe.critical.low, recipe.critical.high) == found.critical


@pytest.mark.parametrize("name", NAMES)
def test_distances_are_plan_over_authors_at_every_other_point(name):
    found = published.load(name)
    for start in (min(found.points), max(found.points)):
        gaps = found.gaps(start)
        assert {g.batch for g in gaps} == found.points.keys() - {start}
        for gap in gaps:
            if gap.key == "optimizer.lr":
                assert gap.plan == found.recipe(start).at(gap.batch).recipe.optimizer.lr
                assert gap.authors == found.points[gap.batch]["lr"]
                assert gap.ratio == pytest.approx(gap.plan / gap.authors)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_an_optimizer_is_stated_or_said_to_be_assumed(name):
    found = published.load(name)
    adaptive = found.optimizer in ("adam", "adamw", "lamb")
    wanted = {"beta1", "beta2", "eps"} if adaptive else {"momentum"}
    said = {re.split("[ ;]", one)[0] for one in found.assumed}
    for key in wanted | {"weight_decay", "clip"}:
        stated = all(key in told for told in found.points.values())
        assert stated != (key in said), key
    assert said <= wanted | {"weight_decay", "clip", "ema"}


def test_what_is_assumed_by_hand():
    assert "weight_decay; none taken, not compared" in published.load("maskrcnn").assumed
    assert "beta2; 0.999 taken, not compared" in published.load("rgat").assumed
    assert not any("weight_decay" in one for one in published.load("unet3d").assumed)  # stated, and 0
    assert "ema at 256, 1024; none taken, not compared" in published.load("transformer-85m").assumed
    assert not any("ema" in one for one in published.load("flux").assumed)


def test_adam_by_hand():
    gaps = {(g.batch, g.key): g for g in published.load("llama31-8b").gaps(16)}
    lr = gaps[64, "optimizer.lr"]
    assert (lr.plan, lr.authors, lr.ratio) == pytest.approx((0.0004 * 2, 0.0008, 1.0))
    beta = gaps[64, "optimizer.betas[0]"]
    # half-lives in samples: the plan's is that of the start, the authors' four times as long
    assert (beta.plan, beta.authors, beta.ratio) == pytest.approx((0.9**4, 0.9, 0.25))
    assert gaps[64, "spans.warmup"].ratio == pytest.approx(256 / 6144)


def test_the_average_and_the_group_of_a_detector_by_hand():
    gaps = {g.key: g for g in published.load("dfine-l").gaps(32)}
    assert gaps["ema.decay"].plan == pytest.approx(0.9999**2)
    assert gaps["ema.decay"].ratio == pytest.approx(math.log(0.9998) / math.log(0.9999**2))
    assert gaps["ema.ramp.tau"].ratio == gaps["spans.warmup"].ratio == 1
    assert gaps["groups.backbone.lr"].ratio == pytest.approx(2**-0.5)


def test_what_one_point_does_not_state_is_not_compared():
    found = published.load("transformer-85m")
    without = next(batch for batch, told in found.points.items() if "ema" not in told)
    assert all(g.key != "ema.decay" for g in found.gaps(without))
    assert all(not (g.key == "ema.decay" and g.batch == without) for g in found.gaps(64))


def test_a_number_of_zero_has_no_ratio():
    gaps = published.load("gpt2-small-batch").gaps(512)
    assert [g.ratio for g in gaps if g.key == "optimizer.weight_decay"] == [None]


def test_the_file_is_small_and_its_names_are_unique():
    raw = files("isobatch.published").joinpath("figures.json").read_text("utf-8")
    assert len(raw) < 20_000
    assert len({entry["name"] for entry in json.loads(raw)}) == len(NAMES) == 27


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: published.load("llama31-8B"), "did you mean llama31-8b"),
        (lambda: published.load("zzz"), "is not a published recipe. Known: resnet50"),
        (lambda: published.load("flux").recipe(7), "flux has no batch 7; its authors' are 512, 1024"),
        (lambda: published.load("flux").gaps(7), "flux has no batch 7"),
        (lambda: published.load("flux").nearest(0), "batch size=0 must be at least 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_nearest_point_is_nearest_by_ratio():
    found = published.load("flux")
    assert [found.nearest(b) for b in (1, 724, 725, 1024, 10**6)] == [512, 512, 1024, 1024, 4096]


def test_the_command_prints_plan_distances_and_source(capsys):
    assert run(["plan", "--like", "llama31-8b", "--batch-size", "512"]) == 0
    said = capsys.readouterr().out
    assert "plan/authors" in said
    assert "rcps_llama31_8b.json" in said
    assert "from its batch 128" in said
    assert run(["plan", "--like", "llama31-8b@16", "--batch-size", "512", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kappa"] == 32
    assert data["published"]["start"] == 16
    assert {gap["batch"] for gap in data["published"]["gaps"]} == {32, 64, 96, 128}
    assert run(["plan", "--like", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in NAMES[-1:])


def test_a_planned_recipe_is_written(tmp_path):
    out = tmp_path / "new.toml"
    assert run(["plan", "--like", "flux", "--batch-size", "8192", "--write", str(out), "--markdown"]) == 0
    assert Recipe.load(out).batch.size == 8192


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--like", "nothing"], "is not a published recipe"),
        (["--like", "flux@77"], "has no batch '77'"),
        (["--like", "flux"], "needs --batch-size N"),
        (["examples/digits.toml", "--like", "flux"], "takes the place of the recipe file"),
        (["--like", "flux", "--batch-size", "0"], "must be at least 1"),
        (["--like", "flux", "--batch-size", "1024", "--patch"], "--patch is for files of other stacks"),
    ],
)
def test_a_bad_wish_ends_with_2(capsys, words, message):
    assert run(["plan", *words]) == 2
    assert message in capsys.readouterr().err
