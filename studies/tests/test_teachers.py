"""The studies polyak, byol and dino: arms, rows, criteria on invented figures, and a whole run in small."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from isobatch.cli import run as cli
from isobatch.report import png
from isobatch.verify.workers import Curve
from isobatch_studies import catalogue
from isobatch_studies.claims import criteria
from isobatch_studies.polyak import study as polyak
from isobatch_studies.polyak.sharpness import Sharpness, largest_eigenvalue, rise
from isobatch_studies.teachers import grid as layout
from isobatch_studies.teachers import judging
from isobatch_studies.teachers.page import figure, html
from isobatch_studies.teachers.rows import collapsed

NAMES = ("polyak", "byol", "dino")
RESULTS = Path(__file__).parents[2] / "docs" / "results"
SMALL = {"data": "glyphs", "side": 8, "width": 8, "stages": 2, "frames": 124, "probe": 62}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["grid", "quick"])
def test_every_arm_is_a_recipe_with_the_same_samples_and_marks(name, size):
    part = criteria(name)[size]
    for variant in part["variants"]:
        base, stops = layout.reference(part, variant), layout.stops(part, variant)
        assert len(stops) == 11
        arms = layout.arms(part, variant)
        assert {arm.kappa for arm in arms if arm.kind == "rule"} == set(part["kappas"])
        for arm in arms:
            assert arm.recipe.staircase().length == base.staircase().length
            if base.batch_norm is not None and arm.kappa > 1:
                assert arm.recipe.batch.per_device == base.batch.per_device, "batch norm sees the same micro-batch"
            assert all(stop % arm.recipe.batch.size == 0 for stop in stops if arm.kind != "progressive")
            ruled = arm.recipe.ema.decay == pytest.approx(base.ema.decay**arm.kappa)
            assert ruled == (arm.kind in ("rule", "hold", "no centre rule"))
            assert (arm.recipe.ema.kind == "hold") == (arm.kind == "hold")
        groups = layout.groups(part, variant, 3, "cpu")
        assert [len(group) for group in groups] == [3] * (len(arms) + 1)
        assert len({job.order_seed for group in groups for job in group}) == 3 * len(groups)


def test_without_the_rule_the_centre_of_dino_keeps_its_decay_a_step():
    part = criteria("dino")["grid"]
    spans = {(a.kind, a.kappa): a.recipe.options["centre_half_life"] for a in layout.arms(part, "dino")}
    assert spans == {
        ("rule", 8): 421.0, ("no EMA rule", 8): 8 * 421.0, ("progressive", 8): 421.0, ("no centre rule", 8): 8 * 421.0,
        ("rule", 4): 421.0, ("no EMA rule", 4): 4 * 421.0, ("no centre rule", 4): 4 * 421.0,
    }  # fmt: skip


def row(arm, kappa, average="SAME", raw="SAME", accuracy=50.0, worst=0.01, variant="byol"):
    per_seed = {"accuracy": [accuracy + 0.1 * seed for seed in range(8)], "loss": [1.0] * 8}
    return {
        "variant": variant, "arm": arm, "kappa": kappa, "verdicts": {"average": average, "raw": raw},
        "worst": {"average": worst, "raw": worst}, "per_seed": {"average": per_seed, "raw": per_seed},
        "worst_per_seed": {"average": [worst + 0.001 * seed for seed in range(8)]},
    }  # fmt: skip


def test_the_rule_is_judged_at_the_largest_kappa_where_the_raw_rule_holds():
    rows = [row("rule", 4), row("rule", 8), row("rule", 16, "DIFFERENT", "DIFFERENT"), row("rule", 0.5)]
    assert judging.largest_same(rows) == 8
    assert judging.rule_same(rows)[0] is None
    assert judging.rule_same([*rows, row("no EMA rule", 8, "DIFFERENT")])[0] is True
    assert judging.rule_same([*rows, row("no EMA rule", 8, "SAME")])[0] is False
    held, text = judging.rule_same([row("rule", 4, raw="DIFFERENT"), row("rule", 0.5)])
    assert held is None
    assert "SAME at no kappa above 1 (x4 DIFFERENT +0.010" in text


def test_probe_and_progressive_are_judged_by_paired_intervals():
    rows = [row("rule", 8), row("no EMA rule", 8, accuracy=45.0), row("no EMA rule", 16)]
    assert judging.loses_probe(rows) == (True, "x8: accuracy with the rule less without, in points: 5.00 [5.00, 5.00]")
    assert judging.loses_probe([row("rule", 8), row("no EMA rule", 8, accuracy=50.0)])[0] is False
    assert judging.loses_probe([row("rule", 8)])[0] is None
    bad = row("rule", 16, "DIFFERENT", worst=0.4)
    assert judging.progressive_mends([row("rule", 8), row("progressive", 8)])[0] is None
    assert judging.progressive_mends([bad, row("progressive", 16, worst=0.1)])[0] is True
    assert judging.progressive_mends([bad, row("progressive", 16, "DIFFERENT", worst=0.5)])[0] is False


def test_the_centre_is_judged_in_pairs_at_the_largest_kappa():
    near, far = row("rule", 8), row("no centre rule", 8, worst=0.2)
    other = [row("rule", 4, worst=0.3), row("no centre rule", 4)]
    assert judging.centre_on_the_clock([near, far, *other])[0] is True
    assert judging.centre_on_the_clock([row("rule", 8, worst=0.2), row("no centre rule", 8)])[0] is False
    assert judging.centre_on_the_clock([near, row("no centre rule", 8)])[0] is False
    assert judging.centre_on_the_clock([near, row("no centre rule", 4)])[0] is None


def test_polyak_at_16_needs_both_variants():
    def both(**parts):
        return [row("rule", 16, variant=v, **parts) for v in ("batch norm", "group norm")]

    without = [row("no EMA rule", 16, "DIFFERENT", variant=v) for v in ("batch norm", "group norm")]
    assert polyak.same_at_16(both() + without)[0] is True
    assert polyak.same_at_16(both(average="UNDECIDED") + without)[0] is False
    assert polyak.same_at_16(both()[:1] + without)[0] is None
    assert polyak.same_at_16(both(average="UNDECIDED")[:1])[0] is False, "one that fails decides"


def test_a_collapsed_run_is_named():
    def curve(rank, variance):
        ends = {"rank": [9.0, rank], "variance": [0.5, variance]}
        return Curve("a", 0, {"raw": {"rank": [9.0, 9.0], "variance": [0.5, 0.5]}, "average": ends}, 1, 1.0)

    assert not collapsed(curve(5.0, 0.4))
    assert collapsed(curve(1.0, 0.4))
    assert collapsed(curve(5.0, 0.001))
    assert not collapsed(Curve("a", 0, {"raw": {"loss": [1.0]}}, 1, 1.0))


def test_the_largest_eigenvalue_and_the_rise_of_a_quadratic():
    net = nn.Linear(3, 1, bias=False)
    diagonal = torch.tensor([4.0, 1.0, 0.25])

    def loss(model):
        return 0.5 * (diagonal * model.weight[0].square()).sum()

    assert largest_eigenvalue(loss, net, 0) == pytest.approx(4.0, rel=1e-3)
    with torch.no_grad():
        net.weight.zero_()
    assert rise(loss, net, 0.1, 0) == 0
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0, 1e-3]]))
    before = net.weight.clone()
    assert rise(loss, net, 0.5, 0) > 0
    assert torch.equal(net.weight, before)


def test_width_is_compared_in_pairs():
    def pair(seed, low=0.5):
        rises = {"raw": {"0.1": 1.0 + 0.1 * seed}, "average": {"0.1": low + 0.1 * seed}}
        ends = {"raw": {"accuracy": 50.0}, "average": {"accuracy": 52.0 + 0.1 * seed}}
        alone = Sharpness("v alone", seed, rises, {"raw": 8.0, "average": 2.0 + 0.01 * seed}, ends)
        return [alone, Sharpness("v taught", seed, metrics={"raw": {"accuracy": 53.0}, "average": {"accuracy": 54.0}})]

    table = {"v": polyak.compared([s for seed in range(8) for s in pair(seed)], "v")}
    assert table["v"]["accuracy_taught_less_alone"]["raw"]["mean"] == 3
    assert table["v"]["log_eigenvalue_ratio"]["mean"] == pytest.approx(math.log(2.035 / 8), abs=1e-3)
    assert polyak.wider(table)[0] is True
    assert polyak.wider({"v": polyak.compared([s for seed in range(8) for s in pair(seed, 1.5)], "v")})[0] is False


def shrunk(name):
    """The quick grid on glyphs, in seconds."""
    rules = copy.deepcopy(criteria(name))
    part = rules["quick"]
    part["seeds"] = 2
    part["recipe"]["batch"] = {"size": 8, "micro": 8}
    part["recipe"]["schedule"]["length"], part["recipe"]["schedule"]["warmup"] = "320 samples", "16 samples"
    part["recipe"]["options"] |= SMALL
    for key in ("kappas", "unruled", "progressive", "hold"):
        part[key] = [2] if part[key] else []
    return rules


@pytest.mark.slow  # its like in the fast tests: byol-24576
@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_writes_and_goes_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr("isobatch_studies.teachers.study.criteria", lambda name, grid="": shrunk(name))
    run = getattr(catalogue, name.upper()).run
    stopped = run(quick=True, out=tmp_path / "out", workers=1, budget=-1.0)
    assert stopped["rows"] == []
    assert all(claim["held"] is None for claim in stopped["claims"])
    done = []
    data = run(quick=True, out=tmp_path / "out", workers=1, on_done=done.append)
    assert data["cells"]["complete"] == data["cells"]["of"] == len(data["rows"])
    assert all(claim["held"] is None for claim in data["claims"]), "two seeds give no verdict"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cells",
        "result.json",
        f"{name}.png",
        "report.html",
    }
    assert json.loads((tmp_path / "out" / "result.json").read_text())["claims"][0]["id"].startswith(f"{name}/")
    monkeypatch.setattr("isobatch.verify.cells.train_curve", None)
    monkeypatch.setattr("isobatch_studies.polyak.study.measure", None)
    again = run(quick=True, out=tmp_path / "out", workers=1)
    assert again["rows"] == data["rows"]
    assert ("width" in data) == (name == "polyak")
    assert png(figure(data)).startswith(b"\x89PNG")


def test_a_device_is_handed_on_and_refused_elsewhere(capsys):
    assert cli(["study", "progressive", "--device", "cuda"]) == 2
    assert "study progressive runs on the CPU only" in capsys.readouterr().err
    assert cli(["study", "byol", "--quick", "--device", "tpu"]) == 2
    assert "device='tpu' cannot be used here" in capsys.readouterr().err


KEPT = {
    "polyak": ("polyak", "group norm", "rule x16", "64", "8 of 8", "UNDECIDED", "+0.043"),
    "byol": ("byol", "byol", "no EMA rule x16", "512", "8 of 8", "UNDECIDED", "+0.041"),
    "dino-quick": ("dino", "dino", "rule x8", "512", "3 of 3"),
}  # as their pages in docs/studies state them


@pytest.mark.parametrize("name", KEPT)
def test_pages_are_drawn_again_from_results_that_are_older_than_they(name):
    data = json.loads((RESULTS / name / "result.json").read_text())
    study, variant, *row = KEPT[name]
    lost = {key: value for key, value in data.items() if key not in ("runs", "judged")}
    made = figure(lost)
    assert data["study"] == study
    assert made.axes[0].get_ylabel() == "gap in log of the mean loss, averaged model"
    assert len(made.axes[0].lines) == sum(r["variant"] == variant for r in data["rows"])
    assert " ".join([variant, *row]) in " ".join(re.sub("<[^>]*>", " ", html(lost)).split())


def test_one_seed_has_no_interval_on_its_page():
    data = json.loads((RESULTS / "byol-24576" / "result.json").read_text())
    row = copy.deepcopy(data["rows"][0])
    for metrics in row["final"].values():
        for one in metrics.values():
            one.update(mean=12.5, low=None, high=None)
    found = html(data | {"rows": [row], "curves": {}})
    assert ">12.5<" in found
    assert "nan" not in found
