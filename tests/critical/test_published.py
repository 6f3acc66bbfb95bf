"""docs/evidence.md says what the committed figures say, and the fits agree with others' and with the slow one."""

import numpy as np
import pytest
from benchmarks import league
from benchmarks.published import PAGE, fits, held_out, page
from tests.reference import critical as slow
from tests.reference import league as tournament

from isobatch import published, rules
from isobatch.rules import OPTIMIZERS, lr_rule


@pytest.fixture(scope="module")
def found():
    return fits()


# least squares in logs on trimmed means, made elsewhere
KNOWN = {
    "ResNet-50, 4.0.0": 46900, "BERT, 5.1.0": 12700, "RNN-T, 3.1.0": 3690, "Mask R-CNN, 3.1.0": 816,
    "U-Net 3D, 4.0.0": 228, "RetinaNet, 5.1.0": 1380, "DLRM v2, 6.0.0": 315e3, "GPT-3 175B, 4.1.0": 16800,
    "Stable Diffusion, 5.0.0": 1120, "RGAT, 5.1.0": 116e3, "Llama 2 70B LoRA, 6.1.0": 40,
    "Llama 3.1 405B, 5.0.0": 5880, "Llama 3.1 8B, 6.1.0": 84, "Flux, 6.1.0": 2750, "CosmoFlow, 3.0.0": 394,
    "DeepCAM, 3.0.0": 846, "Transformer 85M, C4 loss 3.42": 2240, "Transformer 151M, C4 loss 3.24": 3300,
    "Transformer 302M, C4 loss 3.07": 5430, "Transformer 604M, C4 loss 2.92": 7910,
    "Transformer 1.2B, C4 loss 2.736": 11130,
}  # fmt: skip


def test_other_fits_lie_within_the_intervals(found):
    by_name = {f.name: f.hyperbola.critical for _, f in found}
    assert {name: value for name, value in KNOWN.items() if not by_name[name].low <= value <= by_name[name].high} == {}


def test_every_fit_is_the_slow_one(found):
    for _, f in found:
        if f.hyperbola.residual > 0.01:
            least, critical, *_ = slow.hyperbola([p.batch for p in f.points], [p.mean for p in f.points])
            assert f.hyperbola.critical.value == pytest.approx(critical, rel=1e-3), f.name
            assert f.hyperbola.samples.value == pytest.approx(least, rel=1e-3), f.name


@pytest.mark.slow
def test_a_batch_left_out_is_the_slow_prediction(found):
    for _, f in found:
        for i, point in enumerate(f.points):
            if point.left_out is None or f.hyperbola.residual < 0.01:
                continue
            rest = [p for j, p in enumerate(f.points) if j != i]
            least, critical, *_ = slow.hyperbola([p.batch for p in rest], [p.mean for p in rest])
            wanted = np.log(point.mean / (least * (1 + point.batch / critical)))
            assert point.left_out == pytest.approx(wanted, abs=2e-3), (f.name, point.batch)


def test_a_free_exponent_is_the_slow_one(found):
    """No other exponent does better by the slow sum of squares, and the F test is the slow one's."""
    for _, f in found:
        if f.bend is None:
            continue
        batches, means = [p.batch for p in f.points], [p.mean for p in f.points]
        own, *others = (slow.bent(batches, means, f.bend.exponent * k) for k in (1, 0.9, 0.97, 1.03, 1.1))
        assert own <= min(others) * (1 + 1e-6), f.name
        assert f.bend.better == slow.prefers(slow.bent(batches, means, 1.0), own, len(batches)), f.name


def test_held_out_submissions(found):
    """Another fit, on trimmed means, has +.2, -4.5 and +1.8%."""
    rows = [error for _, _, error in held_out(found)]
    assert rows == pytest.approx([0.002, -0.045, 0.018], abs=0.005)


def test_the_typing_error_is_the_only_outlier(found):
    assert [(f.name, o.batch, o.value) for _, f in found for o in f.outliers] == [
        ("GPT-3 175B, 4.1.0", 3072, 13790871552)
    ]


def test_the_page_says_what_the_figures_say(found):
    assert page(found) == PAGE.read_text("utf-8")


def test_every_row_has_repository_commit_and_path(found):
    for entry, _ in found:
        assert "@" in entry["source"]
        assert entry["source"].split(": ")[1].endswith((".json", ".ipynb"))
        assert all(np.isfinite(p["lr"]) for p in entry["points"])


def test_the_registry_has_the_same_rates_and_critical_batches(found):
    by_source = {e["source"]: (e, f) for e, f in found if not e["source"].endswith("ipynb")}
    by_source |= {f"{e['name']}".lower().replace(" ", "-"): (e, f) for e, f in found if e["source"].endswith("ipynb")}
    checked = 0
    for name in published.names():
        own = published.load(name)
        entry, fit = by_source.get(own.source) or by_source.get(name, (None, None))
        if entry is None:
            assert own.critical is None
            continue
        checked += 1
        assert [(b, p["lr"]) for b, p in own.points.items()] == [(p["batch"], p["lr"]) for p in entry["points"]]
        c = fit.hyperbola.critical
        if own.critical is not None:
            assert own.critical == pytest.approx((c.value, c.low, c.high), rel=5e-3)
        assert (own.critical is not None) == fit.hyperbola.identified
    assert checked == 23


def test_the_league_by_hand(found):
    batches, rates = [1.0, 4.0, 16.0], [1.0, 2.0, 4.0]
    assert league.errors(batches, rates, 8.0, "sqrt") == pytest.approx(0)
    assert league.errors(batches, rates, 8.0, "linear") == pytest.approx(np.var(np.log(rates)))
    for b in (2.0, 8.0, 64.0):
        share = rules.noise_share(1.0, 8.0)
        aware = np.exp(league.RULES["noise-aware"](b, 8.0) - league.RULES["noise-aware"](1.0, 8.0))
        assert aware == pytest.approx(rules.noise_aware(1.0, b, share))
        for word, power in (("1/2", 0.5), ("3/4", 0.75), ("1", 1.0)):
            shape = league.RULES[f"saturating {word}"]
            assert shape(b, 8.0) - shape(1.0, 8.0) == pytest.approx(-power * np.log((1 + 8 / b) / 9))
    assert league.part([1, 8, 64], [1, 2, 3], 8.0, "below") == ([1, 8], [1, 2])
    assert league.part([1, 8, 64], [1, 2, 3], 8.0, "above") == ([8, 64], [2, 3])


def test_the_league_is_the_slow_one(found):
    for where in league.WHERE:
        rows, wanted = league.table(found, where), tournament.table(found, where)
        assert rows.keys() == wanted.keys()
        for name, row in rows.items():
            assert row == pytest.approx(wanted[name], rel=1e-9), name
        scores = league.scores(rows)
        for rule, (mean, low, high) in tournament.intervals(wanted).items():
            assert scores[rule].value == pytest.approx(mean, rel=1e-9)
            assert (scores[rule].low, scores[rule].high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_exponents_are_the_slow_ones(found):
    every = league.exponents(found)
    for entry, score in every:
        [fit] = [f for e, f in found if e is entry]
        batches, rates = [p["batch"] for p in entry["points"]], [p["lr"] for p in entry["points"]]
        assert score.value == pytest.approx(tournament.alpha(batches, rates, fit.hyperbola.critical.value), abs=1e-6)
        assert score.low < score.value < score.high
    sgd, others = (league.pooled(found, group) for group in league.GROUPS)
    assert (sgd[0], others[0]) == (1, 12)
    assert sgd[1].low > 0.5
    assert sgd[1].low < 1 < sgd[1].high
    assert 0 < others[1].low < 0.5 < others[1].high < 1


def test_what_the_league_is_quoted_for(found):
    every = league.table(found, "all")
    scores = league.scores(every)
    assert min(scores, key=lambda rule: scores[rule].value) == "saturating 1/2"
    for rule in ("kept", "linear", "noise-aware", "saturating 1"):
        assert league.against(every, rule, "saturating 1/2").low > 0
    assert league.apart(found) == 0
    assert league.wins(found, "surge") == []
    words = lr_rule(OPTIMIZERS["adamw"], "speed").because
    assert f"of eight rules to the rates that authors tuned on {len(every)} benchmarks" in words
    assert len(league.RULES) == 8
    assert f"a factor of {league.typical(found):.1f} off" in words
    assert league.step_law("above").high < 0.5
