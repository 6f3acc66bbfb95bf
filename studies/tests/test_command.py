"""isobatch study: the studies are found by their entry points and handed their options."""

import importlib
import inspect
import json

import pytest
from studies.tests.stored import NAMES as NAMES_OF_RESULTS

from isobatch import cli
from isobatch.cli.study import find, options, studies
from isobatch.errors import InputError
from isobatch.installed import announced
from isobatch_studies import catalogue
from isobatch_studies.claims import grids

NAMES = [one.name for one in vars(catalogue).values() if isinstance(one, catalogue.Study)]


def test_every_study_is_found_by_its_entry_point_under_its_own_name():
    found, points = studies(), announced("isobatch.studies")
    mine = [name for name, point in points.items() if point.module == "isobatch_studies.catalogue"]
    assert sorted(mine) == sorted(NAMES) == sorted(NAMES_OF_RESULTS)
    assert all(getattr(found[name], "name", None) == name and found[name].question for name in mine)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_takes_what_it_says(name):
    run = importlib.import_module(f"isobatch_studies.{name.replace('-', '_')}.study").run
    given = inspect.signature(run).parameters.keys() - {"extra"}
    assert given == {"work"} | find(name).takes & {"simulate_nodes"}
    assert ("grid" in find(name).takes) == (len(grids(name)) > 1)
    for option in {"device", "grid", "simulate_nodes"} - find(name).takes:
        with pytest.raises(TypeError, match=f"study {name} does not take {option}"):
            find(name).run(**{option: "any"})


def test_unknown_studies_are_refused_by_name():
    with pytest.raises(InputError, match="study='adma' must be one of adam, adaptive,"):
        find("adma")


def test_a_device_and_nodes_are_handed_to_those_who_take_them():
    assert options("byol", find("byol").takes, "cuda,bf16", None) == {"device": "cuda,bf16"}
    assert options("decentlam", find("decentlam").takes, "cpu", 8) == {"simulate_nodes": 8}
    with pytest.raises(InputError, match="study progressive runs on the CPU only"):
        options("progressive", find("progressive").takes, "cuda", None)
    with pytest.raises(InputError, match="has no nodes"):
        options("adam", find("adam").takes, "cpu", 8)


def test_the_studies_are_listed(capsys):
    assert cli.run(["study"]) == 0
    assert "adam" in capsys.readouterr().out
    assert cli.run(["study", "--json"]) == 0
    assert "adam" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("held", "words", "what"), [
    ({"study": "legw", "quick": False}, [], "study legw"),
    ({"study": "adam", "quick": False}, ["--quick"], "study adam"),
    ({"study": "adam", "quick": True}, [], "study adam --quick"),
    ({"verdict": "SAME"}, [], "another result"),
])  # fmt: skip
def test_a_study_does_not_write_over_another_result(held, words, what, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("isobatch_studies.adam.study.run", lambda **_: pytest.fail("it ran"))
    (tmp_path / "result.json").write_text(json.dumps(held))
    assert cli.run(["study", "adam", "--out", str(tmp_path), *words]) == 2
    assert f"holds {what}; give another --out" in capsys.readouterr().err
    assert json.loads((tmp_path / "result.json").read_text()) == held


def test_a_study_is_handed_its_options(monkeypatch, tmp_path, capsys):
    asked = {}

    def fake(work):
        asked.update(vars(work))
        claim = {"id": "adam/one", "held": None, "evidence": "no data"}
        return {"study": "adam", "title": "Invented", "claims": [claim]}

    monkeypatch.setattr("isobatch_studies.adam.study.run", fake)
    words = ["study", "adam", "--quick", "--budget", "90s", "--workers", "3", "--out", str(tmp_path / "out"), "--json"]
    assert cli.run(words) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Invented"
    handed = (asked["quick"], asked["budget"], asked["workers"], asked["out"])
    assert handed == (True, 90.0, 3, tmp_path / "out")
    assert cli.run(["study", "adam"]) == 0
    assert (asked["quick"], asked["budget"], asked["workers"], asked["out"]) == (False, None, None, None)
    assert "no verdict" in capsys.readouterr().out
