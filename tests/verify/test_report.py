"""The report: one page without a network, a result that programs can read, files whole or not at all."""

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.fabricated import comparison
from tests.recipes import recipe

from isobatch import Recipe, report
from isobatch.errors import InputError
from isobatch.recipe import toml_text
from isobatch.report.pictures import _steps
from isobatch.verify import next_actions, to_dict
from isobatch.verify.cells import recipe_values
from isobatch.verify.mending import Mended, candidates, early
from isobatch.verify.page import how, html, verdict_table, write_report


class Page(HTMLParser):
    """Addresses, text and tags of a page."""

    def __init__(self, source):
        super().__init__()
        self.addresses, self.text, self.tags = [], [], set()
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Draw every picture, but with few dots."""
    draw = report.png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "png", lambda figure: draw(figure, dpi=15))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(path, to_dict(comparison()))
    return path


def test_the_folder_holds_three_files_and_no_leftovers(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["overlay.png", "report.html", "result.json"]
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_network(folder):
    text = (folder / "report.html").read_text()
    found = Page(text)
    assert found.addresses == []
    assert not found.tags & {"script", "link", "iframe", "object", "img"}
    assert not re.search(r"url\((?!#)|@import|href=\"(?!#)", text)
    assert "http" not in text


def test_pictures_are_svg_with_text_in_the_colours_of_the_page(folder):
    text = (folder / "report.html").read_text()
    assert text.count('<svg role="img" aria-label="') == 5
    assert "held-out loss, averaged model" in " ".join(Page(text).text)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    assert used
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    for scheme in text.split("prefers-color-scheme: dark")[-2:]:
        assert all(f"{name}: #" in scheme for name in used - {"--paper"})
    assert "<g id=" not in drawn


@pytest.mark.parametrize(("figure", "word"), [((5.2, 4.6), "300px"), ((12.4, 5.2), "738px")])
def test_a_picture_is_never_so_narrow_that_its_text_cannot_be_read(figure, word):
    from matplotlib.figure import Figure

    assert f"min-width:{word}" in report.svg(Figure(figsize=figure), "a <b>")
    assert 'aria-label="a &lt;b&gt;"' in report.svg(Figure(figsize=figure), "a <b>")


def test_command_recipe_and_a_summary_are_on_the_page(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["isobatch", "verify", "run", "r.toml", "--batch-size", "32"])
    data = to_dict(comparison())
    shown = html(data)
    text = Page(shown).text
    assert "isobatch verify run r.toml --batch-size 32" in text
    assert toml_text(data["recipe"]).split("\n")[0] in shown.replace("&#34;", '"')
    said = next(one for one in text if one.startswith("**"))
    assert "**SAME**" in said
    assert "| plan | every number by the plan | 0/8 | SAME |" in said
    assert said.endswith("`isobatch verify run r.toml --batch-size 32`")


def test_the_page_holds_plan_verdicts_and_how_they_were_reached(folder):
    found = Page((folder / "report.html").read_text())
    text = " ".join(found.text)
    for part in ("SAME", "DIFFERENT", "plan", "lr-only", "ema-only", "unscaled", "optimizer.lr", "kappa*eta",
                 "arXiv 2307.13813", "How the verdict was reached", "t interval", "±0.02956 (averaged model)",
                 "±0.04879 (raw model)", "same initial weights", "python 3."):  # fmt: skip
        assert part in text, part
    marks = to_dict(comparison())["marks"]
    assert all(f"{mark:,}" in found.text for mark in marks)


def test_what_a_page_is_given_is_escaped():
    evil = "<script>alert(1)</script>"
    made = report.render(
        evil, evil, [report.Section(evil, [evil], [[evil], [evil]], code=evil)], badge=evil, footer=evil
    )
    assert "script" not in Page(made).tags
    assert Page(made).text.count(evil) == 9


def test_result_json_has_what_programs_need(folder):
    data = json.loads((folder / "result.json").read_text())
    assert data["verdicts"] == {"plan": "SAME", **dict.fromkeys(("lr-only", "ema-only", "unscaled"), "DIFFERENT")}
    assert data["verdict"] == "SAME"
    assert data["versions"].keys() >= {"python", "torch", "numpy", "isobatch", "date", "platform"}
    assert data.keys() >= {"command", "recipe", "plan", "seeds", "seconds", "kappa", "batch_size", "marks", "arms",
                           "curves", "test", "headline", "metric", "facts", "unit", "stops", "next"}  # fmt: skip
    assert data["seeds"] == list(range(8))
    test = data["arms"]["lr-only"]["average"]
    assert len(test["mean"]) == len(test["low"]) == len(test["high"]) == 10
    assert test["margin"] == pytest.approx(math.log(1.03), abs=1e-6)
    assert all(low < mean < high for low, mean, high in zip(test["low"], test["mean"], test["high"], strict=True))
    assert data["recipe"]["optimizer"]["eps"] == 1e-8


def test_what_is_not_finite_becomes_null_and_small_numbers_survive():
    data = json.loads(report.dump({"a": [math.nan, -math.inf, 1e-15], "b": {"c": 1 / 3}, "d": (1, True, None)}))
    assert data["a"] == [None, None, 1e-15]
    assert data["b"]["c"] == pytest.approx(1 / 3, rel=1e-11)
    assert data["d"] == [1, True, None]


def test_a_diverged_arm_can_be_drawn_and_stored():
    data = to_dict(comparison({"plan": 0.5, "unscaled": math.nan}))
    assert report.png(report.overlay_figure(data)).startswith(b"\x89PNG")
    stored = json.loads(report.dump(data))
    assert stored["curves"]["unscaled"][0]["values"]["raw"]["loss"][-1] is None
    assert [one["seed"] for one in stored["arms"]["unscaled"]["average"]["failures"]] == list(range(8))
    row = next(row for row in verdict_table(data) if row[0] == "unscaled")
    assert row[2:5] == ["8/8", "DIFFERENT", "-, ±0.030"]


def test_a_recipe_without_an_average_and_a_metric_in_points_can_be_drawn():
    data = to_dict(comparison({"plan": 0.1, "unscaled": -9.0}, average=False, metric="accuracy"))
    assert report.png(report.overlay_figure(data)).startswith(b"\x89PNG")
    assert "the difference in accuracy (percent)" in " ".join(how(data))
    assert verdict_table(data)[1] == ["plan", "every number by the plan", "0/8", "SAME", "+0.201, ±1.000"]


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    report.write(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*result.json: No space left on device; give another --out"):
        report.write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.write(tmp_path / "result.json", "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*; give another --out"):
        report.prepare(tmp_path / "file" / "below")
    assert report.prepare(tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


def advice(gaps, **more):
    return "\n".join(next_actions(comparison(gaps, **more)))


def test_advice_says_where_a_lasting_gap_begins_and_what_is_near():
    said = advice({"plan": 0.5, "ema-only": 0.1, "unscaled": 0.9})
    assert "first mark outside the margin: 1,408 samples (10% of the run), gap +0.5" in said
    assert "against ±0.030" in said
    assert "a lasting gap: +0.5" in said
    assert "the closest arm is ema-only (worst gap +0.10" in said
    assert "--batch-size 16" in said
    assert "--max-kappa" in said
    assert "noise measure" in said
    assert "--max-kappa" not in "\n".join(next_actions(comparison({"plan": 0.5}), searched=True))


def at_marks(gap, *marks):
    planted = np.zeros(21)
    planted[[2 * mark for mark in marks]] = gap
    return planted


def test_advice_tells_a_start_that_heals_from_a_lasting_gap():
    said = advice({"plan": at_marks(0.06, 1, 2), "unscaled": 0.9})
    assert "a start that heals: the gap at the end is" in said
    assert 'ema.kind = "hold" in the recipe, or let --mend try it' in said
    assert "switch later: batch.schedule" in said
    assert "lasting" not in said
    late = advice({"plan": at_marks(0.06, 9, 10), "unscaled": 0.9})
    assert "a lasting gap" in late
    assert "hold" not in late


def test_advice_names_a_first_mark_outside_only_where_the_mean_is(monkeypatch):
    found = comparison({"plan": 0.0, "unscaled": 0.9}, spread=0.02)
    assert found.verdict == "UNDECIDED"
    said = "\n".join(next_actions(found))
    assert "first mark outside" not in said
    needed = found.table["plan"]["average"].seeds_to_decide
    assert f"{needed} fresh seeds would decide four times in five: --seeds {needed} --seed-from 8" in said
    monkeypatch.setattr("isobatch.verify.equivalence.seeds_to_decide", lambda *_: None)
    hopeless = comparison({"plan": 0.0, "unscaled": 0.9}, spread=0.2)
    assert "even 200 fresh seeds would not decide" in "\n".join(next_actions(hopeless))


def test_advice_after_same_bounds_the_rate_of_failures():
    assert next_actions(comparison()) == [
        "8 of 8 seeds ended; a share of failing seeds up to 31% cannot be excluded (95%)"
    ]


ADAMW = {"task": "digits", "optimizer": {"name": "adamw", "lr": 1e-3}}


@pytest.mark.parametrize(("optimizer", "gap", "wanted"), [
    ({"name": "sgd", "lr": 0.1}, 0.5, []),
    ({"name": "sgd", "lr": 0.1}, at_marks(0.06, 1), ["hold"]),
    ({"name": "adamw", "lr": 1e-3}, 0.5, ["invariant", "invariant, hold"]),
    ({"name": "adamw", "lr": 1e-3}, at_marks(-0.06, 1, 2), ["invariant", "hold", "invariant, hold"]),
    ({"name": "adamw", "lr": 1e-3}, at_marks(0.06, 10), ["invariant", "invariant, hold"]),
    ({"name": "invariant-adamw", "lr": 1e-3}, at_marks(0.06, 1), ["hold"]),
])  # fmt: skip
def test_what_should_mend_a_gap(optimizer, gap, wanted):
    made = recipe(task="digits", data_size=1437, optimizer=optimizer)
    found = comparison({"plan": gap, "unscaled": 0.9}, made=made)
    plan = found.design.arms["plan"]
    tried = candidates(plan, made, found.table["plan"]["average"])
    assert list(tried) == wanted
    for name, one in tried.items():
        assert one.batch.size == plan.batch.size
        assert (one.ema.kind == "hold") == ("hold" in name)
        assert one.optimizer.name.startswith("invariant") == ("invariant" in name or optimizer["name"][:3] == "inv")
    assert early(found.table["plan"]["average"]) == ("hold" in wanted)


def test_a_mended_recipe_stands_in_report_and_folder(tmp_path):
    made = recipe(**ADAMW, data_size=1437)
    found = comparison({"plan": 0.5, "unscaled": 0.9}, made=made)
    tried = candidates(found.design.arms["plan"], made, found.table["plan"]["average"])
    test = comparison({"plan": 0.0}, made=made).table["plan"]["average"]
    data = to_dict(replace(found, mended=Mended(tried, {"invariant": test})))
    assert data["mended"]["best"] == "invariant"
    files = write_report(tmp_path, data)
    assert [path.name for path in files] == ["result.json", "overlay.png", "report.html", "mended.toml"]
    optimizer = tried["invariant"].optimizer
    assert optimizer.alpha != 0.99, "a plan moves it, and AdamW has none: the file leaves it out"
    wanted = tried["invariant"].model_copy(update={"optimizer": optimizer.model_copy(update={"alpha": 0.99})})
    assert Recipe.load(tmp_path / "mended.toml") == wanted
    assert 'name = "invariant-adamw"' in (tmp_path / "report.html").read_text().replace("&#34;", '"')
    assert any("tried the batch-size invariant form of the optimizer: SAME" in said for said in data["next"])
    lost = to_dict(replace(found, mended=Mended(tried, {"invariant": found.table["plan"]["average"]})))
    assert lost["mended"]["best"] is None
    assert "nothing that was tried" in " ".join(Page(html(lost)).text)


@pytest.mark.parametrize("name", ["digits", "text-switch", "byol", "digits-adamw", "pseudo-label", "a2c"])
def test_a_recipe_written_as_toml_is_the_same_recipe(name, tmp_path):
    made = Recipe.load(Path(__file__).parents[2] / "examples" / f"{name}.toml")
    path = tmp_path / "again.toml"
    path.write_text(toml_text(recipe_values(made)))
    assert Recipe.load(path) == made


def test_a_switch_is_drawn_against_the_steps_that_it_took():
    stages = [["0 samples", 8], ["400 samples", 32]]
    made = recipe(batch={"size": 8, "schedule": stages}).model_dump(mode="json", exclude_none=True)
    data = {"recipe": made, "plan": {"recipe": made}, "batch_size": 8}
    stops = np.array([0.0, 80, 400, 464])
    assert _steps(data, "reference", stops).tolist() == [0, 10, 50, 58]
    assert _steps(data, "plan", stops).tolist() == [0, 10, 50, 52]
