"""The report: one page without a network, a result that programs can read, files whole or not at all."""

import json
import math
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.fabricated import comparison
from tests.recipes import recipe

from isobatch import report
from isobatch.errors import InputError
from isobatch.report import page
from isobatch.report.pictures import _steps
from isobatch.verify import next_actions, to_dict
from isobatch.verify.story import how, verdict_table, write_report


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
        for module in (report, page):
            patch.setattr(module, "png", lambda figure: draw(figure, dpi=15))
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
    assert found.addresses
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import", text)


def test_the_page_holds_plan_verdicts_and_how_they_were_reached(folder):
    found = Page((folder / "report.html").read_text())
    text = " ".join(found.text)
    for part in ("SAME", "DIFFERENT", "plan", "lr-only", "ema-only", "unscaled", "optimizer.lr", "kappa*eta",
                 "arXiv 2307.13813", "How the verdict was reached", "90% t interval", "0.03 (averaged model)",
                 "0.1 (raw model)", "same initial weights", "python 3."):  # fmt: skip
        assert part in text, part
    marks = to_dict(comparison())["marks"]
    assert all(f"{mark:,}" in found.text for mark in marks)


def test_what_a_page_is_given_is_escaped():
    evil = "<script>alert(1)</script>"
    made = report.render(
        evil, evil, [report.Section(evil, [evil], [[evil], [evil]], code=evil)], badge=evil, footer=evil
    )
    assert "script" not in Page(made).tags
    assert Page(made).text.count(evil) == 10


def test_result_json_has_what_programs_need(folder):
    data = json.loads((folder / "result.json").read_text())
    assert data["verdicts"] == {"plan": "SAME", **dict.fromkeys(("lr-only", "ema-only", "unscaled"), "DIFFERENT")}
    assert data["verdict"] == "SAME"
    assert data["versions"].keys() >= {"python", "torch", "numpy", "isobatch", "date", "platform"}
    assert data.keys() >= {"command", "recipe", "plan", "seeds", "seconds", "kappa", "batch_size", "marks", "arms",
                           "curves", "test", "headline", "metric", "facts", "unit", "stops", "next"}  # fmt: skip
    assert data["seeds"] == list(range(8))
    test = data["arms"]["lr-only"]["average"]
    assert len(test["mean"]) == len(test["low"]) == len(test["high"]) == len(test["margin"]) == 10
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
    assert json.loads(report.dump(data))["curves"]["unscaled"][0]["values"]["raw"]["loss"][-1] is None


def test_a_recipe_without_an_average_and_a_metric_in_points_can_be_drawn():
    data = to_dict(comparison({"plan": 0.1}, average=False, metric="accuracy"))
    assert report.png(report.overlay_figure(data)).startswith(b"\x89PNG")
    assert "difference in accuracy, in points" in " ".join(how(data))
    assert verdict_table(data)[1] == ["plan", "every number by the plan", "SAME", "+0.201"]


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


def test_next_actions_name_mark_closest_arm_seeds_and_a_smaller_kappa():
    assert next_actions(comparison()) == []
    different = "\n".join(next_actions(comparison({"plan": 0.5, "ema-only": 0.1})))
    assert "first mark outside the margin: 1,408 samples (10% of the run), gap +0.5" in different
    assert "the closest arm is ema-only (worst gap +0.10" in different
    assert "--batch-size 16" in different
    assert "--max-kappa" in different
    assert "progressive scaling" in different
    undecided = comparison({"plan": 0.0}, spread=0.04)
    assert undecided.verdict == "UNDECIDED"
    needed = undecided.table["plan"]["average"].seeds_to_decide
    assert needed > 8
    assert f"about {needed} seeds would decide; that is a new run: --seeds {needed}" in "\n".join(
        next_actions(undecided)
    )


def test_a_switch_is_drawn_against_the_steps_that_it_took():
    stages = [["0 samples", 8], ["400 samples", 32]]
    made = recipe(batch={"size": 8, "schedule": stages}).model_dump(mode="json", exclude_none=True)
    data = {"recipe": made, "plan": {"recipe": made}, "batch_size": 8}
    stops = np.array([0.0, 80, 400, 464])
    assert _steps(data, "reference", stops).tolist() == [0, 10, 50, 58]
    assert _steps(data, "plan", stops).tolist() == [0, 10, 50, 52]
