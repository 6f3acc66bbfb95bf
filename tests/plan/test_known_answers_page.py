"""docs/known-answers.md is what its figures and the plan say, and no row is without a reason or a source."""

import json
import re

import pytest
from benchmarks.known_answers import FIGURES, PAGE, changes, close, page
from tests.reference import rules as slow

ENTRIES = changes()
ROWS = [(entry, row) for entry, rows in ENTRIES for row in rows]


def test_the_page_is_what_the_figures_say():
    assert PAGE.read_text("utf-8") == page()


@pytest.mark.parametrize("entry", [entry for entry, _ in ENTRIES], ids=lambda entry: entry["who"])
def test_every_change_says_where_it_was_read(entry):
    assert re.match(r"[\w.-]+/[\w.-]+@[0-9a-f]{8,40}: \S+", entry["source"])
    assert entry["licence"]
    assert entry["rows"]


def test_no_row_without_a_reason():
    for entry, row in ROWS:
        assert len(row.why) > 15, (entry["who"], row.key)
        if row.match == "neither":
            assert not re.search(r"\bas ours\b", row.why), (entry["who"], row.key)


def test_what_they_had_is_what_the_recipe_says():
    for entry, row in ROWS:
        table, _, key = row.key.partition(".")
        stated = entry["recipe"].get(table, {}).get(key.partition("[")[0])
        if isinstance(stated, list):
            assert stated[int(key[-2])] == row.was
        elif isinstance(stated, float):
            assert stated == row.was


def test_our_numbers_are_the_slow_references():
    for entry, row in ROWS:
        up = entry["to"] >= entry["from"]
        kappa = entry["to"] // entry["from"] if up else entry["from"] // entry["to"]
        if not up or entry["to"] % entry["from"]:
            continue
        if row.key == "ema.decay":
            assert row.ours == pytest.approx(slow.decay(row.was, kappa), rel=1e-12)
        elif row.key == "optimizer.lr" and entry["recipe"]["optimizer"]["name"] in ("adam", "adamw"):
            assert row.ours == pytest.approx(slow.adam_lr(row.was, 1.0, kappa), rel=1e-9)
            assert row.other is None or row.other == pytest.approx(slow.linear_lr(row.was, kappa), rel=1e-9)
        elif row.key == "optimizer.lr" and entry["recipe"]["optimizer"]["name"] in ("sgd", "lars"):
            mu = entry["recipe"]["optimizer"]["momentum"]
            factor = slow.buffer(mu) / slow.buffer(slow.decay(mu, kappa))
            assert row.ours == pytest.approx(slow.linear_lr(row.was, kappa) * factor, rel=1e-9)
            assert row.other == pytest.approx(slow.linear_lr(row.was, kappa), rel=1e-9)


# (who begins with, setting): theirs, ours, the other form, to three digits; worked out elsewhere
KNOWN = {
    ("D-FINE-L, its README", "optimizer.lr"): (5e-4, 3.54e-4, 5e-4),
    ("D-FINE-L, its README", "optimizer.weight_decay"): (1e-4, 1.77e-4, 1.25e-4),
    ("D-FINE-L, its README", "ema.decay"): (0.9998, 0.99980001, None),
    ("EfficientDet", "optimizer.lr"): (1.63, 3.76, 1.625),
    ("EfficientDet", "ema.decay"): (0.999, 0.9975, None),
    ("SwAV", "optimizer.lr"): (4.8, 78.2, 9.6),
    ("SimCLR", "optimizer.lr"): (4.8, 39.1, 4.8),
    ("Mask R-CNN", "optimizer.lr"): (0.16, 1.30, 0.16),
    ("Llama 3.1 405B", "optimizer.lr"): (3.2e-4, 1.6e-4, 3.2e-4),
    ("MoCo v3", "optimizer.lr"): (2.4e-3, 1.2e-3, 2.4e-3),
    ("Transformer on WMT", "optimizer.lr"): (1e-3, 2e-3, 8e-3),
    ("RNN-T", "optimizer.lr"): (0.014, 0.0447, 0.0182),
    ("RNN-T", "ema.decay"): (0.96, 0.953, None),
    ("RNN-T", "optimizer.betas[1]"): (0.98, 0.994, 0.999),
    ("Marek et al., GPT-3 XL", "optimizer.betas[1]"): (0.9999, 0.9999, 0.9999),
    ("DINO, what", "ema.decay"): (0.9995, 0.9990, None),
    ("Qwen3.5", "optimizer.lr"): (2e-6, 2e-6, 4e-6),
    ("nanochat, its Muon", "optimizer.lr"): (2.0, 4.0, 2.0),
}


@pytest.mark.parametrize(("who", "key"), KNOWN, ids=lambda part: part)
def test_numbers_that_were_worked_out_elsewhere(who, key):
    [row] = [row for entry, row in ROWS if entry["who"].startswith(who) and row.key == key]
    for mine, theirs in zip((row.theirs, row.ours, row.other), KNOWN[who, key], strict=True):
        assert mine == (None if theirs is None else pytest.approx(theirs, rel=5e-3))


@pytest.mark.parametrize(("key", "one", "two", "same"), [
    ("ema.decay", 0.9998, 0.99980001, True),
    ("ema.decay", 0.9995, 0.9990, False),
    ("optimizer.betas[1]", 0.95, 0.9606, False),
    ("optimizer.weight_decay", 0.1, 0.1001, True),
    ("optimizer.weight_decay", 0.1, 0.11, False),
    ("optimizer.lr", 1.63, 1.625, True),
])  # fmt: skip
def test_decays_are_compared_by_what_they_forget(key, one, two, same):
    assert close(key, one, two) is same


def test_the_file_holds_figures_and_no_text_of_theirs():
    for entry in json.loads(FIGURES.read_text("utf-8")):
        assert set(entry) == {"who", "from", "to", "unit", "source", "licence", "recipe", "rows"}
