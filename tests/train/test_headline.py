"""The command of the headline runs, in small and on the CPU, and goes on where it stopped."""

import importlib.util
import json
from pathlib import Path

import pytest

from isobatch.errors import InputError

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "byol_headline.py"
SIZES = (
    "--data glyphs --device cpu,bf16,channels-last,most=24 --batch 8 --large 32 --samples 320 --marks 2 --side 8 "
    "--width 8 --depth 1 --stages 2 --hidden 8 --out-width 4"
)


@pytest.fixture(scope="module")
def headline():
    spec = importlib.util.spec_from_file_location("byol_headline", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_stops_and_goes_on(headline, tmp_path, capsys):
    words = [*SIZES.split(), "--out", str(tmp_path), "--arms", "reference", "rule"]
    none = headline.main([*words, "--budget", "-1"])
    assert none["rows"] == []
    one = headline.main([*words, "--arms", "rule"])
    assert [row["arm"] for row in one["rows"]] == ["rule"]
    both = headline.main(words)
    rows = {row["arm"]: row for row in both["rows"]}
    assert rows["reference"]["steps"] == 40
    assert rows["rule"]["steps"] == 10
    assert rows["rule"]["ratio_to_reference"] > 0
    assert all(row["finished"] and row["seen"] == 320 for row in rows.values())
    assert json.loads((tmp_path / "headline.json").read_text())["rows"] == both["rows"]
    assert len(both["curves"]["reference"]) == 2
    with pytest.raises(InputError, match="another recipe"):
        headline.main([*words, "--lr", "0.1"])
    capsys.readouterr()


def test_an_arm_that_was_cut_ends_where_the_whole_one_ends(headline, tmp_path, capsys):
    ends = []
    for name in ("whole", "cut"):
        words = [*SIZES.split(), "--out", str(tmp_path / name), "--arms", "rule"]
        given = headline.parsed(words)
        if name == "cut":
            given.out.mkdir()
            headline.Arm("rule", headline.recipes(given)["rule"], given).stretch(160)
        ends.append(headline.main(words)["curves"]["rule"])
    for one, other in zip(*ends, strict=True):
        assert (one["seen"], one["average"], one["raw"]) == (other["seen"], other["average"], other["raw"])
    capsys.readouterr()


def test_the_arms_are_what_they_say(headline, tmp_path):
    made = headline.recipes(headline.parsed([*SIZES.split(), "--out", str(tmp_path), "--middle", "16"]))
    assert set(made) == set(headline.ARMS)
    assert made["rule"].ema.decay == pytest.approx(0.996**4)
    assert made["no EMA rule"].ema.decay == 0.996
    assert made["no EMA rule"].optimizer == made["rule"].optimizer
    assert made["progressive"].batch.schedule == (("0 samples", 8), ("64 samples", 32))
    assert made["middle"].batch.size == 16


def test_the_invariant_form_is_for_larger_batches_alone(headline, tmp_path):
    given = headline.parsed([*SIZES.split(), "--out", str(tmp_path), "--optimizer", "invariant"])
    made = headline.recipes(given)
    assert made["reference"].optimizer.name == "adamw"
    assert made["rule"].optimizer.name == "invariant-adamw"
    assert made["rule"].optimizer.reference_batch == 8
