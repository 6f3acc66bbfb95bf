"""Advice: known answers, the front as a property, and refusals."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes import recipe

from isobatch import critical
from isobatch.critical import Interval, Network, StepTime, advise, fit_steps
from isobatch.critical.machine import measure_steps, read_steps
from isobatch.errors import InputError

STEP = StepTime(0.01, 0.001, 0.0, ((8.0, 0.018), (256.0, 0.266)))
NET = Network(4e8)


def test_the_sentence_that_a_person_wants():
    found = advise(Interval(1900, 1500, 2400), STEP, now=512)
    assert found.sentences[0] == (
        "512 samples keeps 79% [75% to 82%] of the best sample efficiency; 2,048 cuts steps 2.4x [2.3 to 2.6] "
        "for 1.6x [1.5 to 1.8] samples"
    )


def test_time_on_one_device_has_its_minimum_where_calculus_says():
    """(1 + Bc/B)(a + cB) is least at B = sqrt(a Bc/c): 100 for a/c = 10, Bc = 1000."""
    found = advise(1000.0, STEP, now=64, samples=1e6)
    assert found.picks["cheapest"].batch in (64, 128)
    assert found.picks["cheapest"] == found.picks["fastest"]
    one = next(o for o in found.options if o.batch == 64)
    assert one.seconds == pytest.approx(1e6 / 1000 * (1 + 1000 / 64) * (0.01 + 0.064))
    assert one.compute == one.seconds


@given(
    crit=st.floats(10, 1e5),
    base=st.floats(0, 1),
    slope=st.floats(1e-6, 1e-2),
    alpha=st.floats(0, 1e-3),
    size=st.floats(0, 1e10),
    extra=st.floats(0, 3),
)
def test_the_front_is_a_front_and_the_picks_lie_on_it(crit, base, slope, alpha, size, extra):
    step = StepTime(base, slope, 0.0, ((1.0, base + slope),))
    found = advise(
        crit, step, now=32, devices=[1, 4, 64, 1024], network=Network(size, alpha), samples=1e6, extra=extra, most=8192
    )
    front = [o for o in found.options if o.front]
    for option in found.options:
        better = [o for o in found.options if o.seconds < option.seconds and o.compute < option.compute]
        assert not (option.front and better)
        assert option.front or any(o.seconds <= option.seconds and o.compute <= option.compute for o in front)
        assert (option.steps_factor - 1) * (option.samples_factor - 1) == pytest.approx(1)
    cheapest, within, fastest = (found.picks[name] for name in ("cheapest", "within", "fastest"))
    assert cheapest.compute == min(o.compute for o in found.options)
    assert fastest.seconds == min(o.seconds for o in found.options)
    assert fastest.seconds <= within.seconds <= cheapest.seconds
    best = max(o.goodput for o in found.options)
    assert fastest.goodput == pytest.approx(best), "the fastest has the highest goodput, and the other way round"
    assert within.compute <= cheapest.compute * (1 + extra) * (1 + 1e-12)


@given(crit=st.floats(10, 1e5), more=st.floats(1.01, 10))
def test_a_larger_critical_batch_makes_larger_batches_pay(crit, more):
    low, high = (advise(c, STEP, now=32, devices=[1, 16, 256], network=NET, most=65536) for c in (crit, crit * more))
    for name in ("cheapest", "fastest"):
        assert high.picks[name].batch >= low.picks[name].batch
    kept = [[o.samples_factor for o in found.options if o.devices == 1] for found in (low, high)]
    assert all(a > b for a, b in zip(*kept, strict=True))
    steps = [o.steps_factor for o in low.options if o.devices == 1]
    assert steps == sorted(steps, reverse=True)


def test_free_communication_makes_more_devices_faster_and_never_cheaper():
    found = advise(1000.0, STEP, now=64, devices=[1, 2, 4, 8], network=Network(0.0, 0.0), most=4096)
    same = [o for o in found.options if o.batch == 1024]
    assert [o.devices for o in same] == [1, 2, 4, 8]
    assert all(a.seconds > b.seconds and a.compute < b.compute for a, b in pairwise(same))


def test_all_reduce_by_hand():
    assert Network(8e9, 0.0, 1e9).seconds(8) == pytest.approx(2 * 7 / 8 * 8)
    assert Network(0.0, 1e-3).seconds(1024) == pytest.approx(2 * 10 * 1e-3)  # the tree
    assert Network(0.0, 1e-3).seconds(2) == pytest.approx(2e-3)
    assert Network(8e9, 0.0, 1e9, overlap=0.5).step(10.0, 8) == pytest.approx(10 + 14 - 5)
    assert Network(8e9, 0.0, 1e9, overlap=0.9).step(100.0, 8) == 100
    assert NET.step(1.0, 1) == 1


def test_accumulation_pays_the_base_once_a_pass():
    assert STEP.at(64) == pytest.approx(0.074)
    assert STEP.at(64, 16) == pytest.approx(4 * 0.01 + 0.064)


def test_a_fit_is_never_negative_and_tells_its_misfit():
    found = fit_steps({8: 0.02, 16: 0.02, 64: 0.02})
    assert (found.base, found.per_sample) == (pytest.approx(0.02), pytest.approx(0.0, abs=1e-9))
    bent = fit_steps({1: 1.0, 2: 0.1, 4: 1.0})
    assert bent.per_sample >= 0
    assert bent.misfit > 0.5


def test_an_unbounded_interval_leaves_the_sentence_without_it():
    found = advise(Interval(1900, 1500, math.inf), STEP, now=512)
    assert found.sentences[0].startswith("512 samples keeps 79% of the best")
    assert "at least 1,500" in found.sentences[1]


@pytest.mark.parametrize(("low", "high", "least", "most"), [
    (1500, 2400, False, False), (0, 2400, True, False), (1500, math.inf, False, True), (0, math.inf, True, True),
])  # fmt: skip
def test_an_open_end_leaves_the_picks_open_to_the_same_side(low, high, least, most):
    """Without an upper end the largest batch may count in full, without a lower one only the smallest."""
    found = advise(Interval(1900, low, high), STEP, now=512, devices=[1, 8, 64], network=NET)
    ends = min(o.batch for o in found.options), max(o.batch for o in found.options)
    for name, pick in found.picks.items():
        below, above = found.ranges[name]
        assert below <= pick.batch <= above
        assert (below == ends[0]) == least
        assert (above > 4096) == most
        (line,) = (s for s in found.sentences[2:] if s.startswith("at most" if name == "within" else name))
        assert ("over the interval" in line) == (below < above)


def test_files(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("batch,samples_per_second\n8,400\n64,800\n")
    assert read_steps(path) == {8.0: 0.02, 64.0: 0.08}
    path.write_text("\ufeffbatch;samples_per_second\n8;400\n64;800\n;\n", encoding="utf-8")
    assert read_steps(path) == {8.0: 0.02, 64.0: 0.08}, "as a spreadsheet saves it"
    path.write_text("batch,seconds_per_step\n8,0.5\n")
    assert read_steps(path) == {8.0: 0.5}
    for text, message in (
        ("batch,time\n8,1\n", "must have a header with batch and seconds_per_step or samples_per_second"),
        ("", "must have a header"),
        ("batch,seconds_per_step\n8,\n", "line 2"),
        ("batch,seconds_per_step\n8\n", "line 2"),
        ("batch,seconds_per_step\n8,0.1\n-4,0.2\n", r"line 3: batch=-4 must be in \(0, inf\]"),
        ("batch,seconds_per_step\n8,0.1\n8.0,0.3\n", "line 3: batch 8 stands there twice; keep one"),
        ("batch,batch,seconds_per_step\n8,9,0.1\n", "several columns called batch"),
        ("batch,seconds_per_step\n8," + "1" * 200_000 + "\n", "cannot be read as a table"),
        ("batch,seconds_per_step\n8,nan\n", "line 2: seconds_per_step=nan must be finite"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_steps(path)
    with pytest.raises(InputError, match="cannot read the throughput"):
        read_steps(tmp_path / "nowhere.csv")


BAD = [
    ({"critical": 0.0}, r"critical batch=0 must be in \(0, inf\]"),
    ({"critical": math.nan}, "critical batch=nan must be finite"),
    ({"now": 0}, "now=0 must be at least 1"),
    ({"devices": [0]}, "devices=0 must be at least 1"),
    ({"devices": []}, r"devices=\[\] is empty"),
    ({"devices": [1, 8]}, "devices=8 need a network"),
    ({"extra": -0.1}, r"extra=-0\.1 must be in \[0, inf\]"),
    ({"samples": 0}, r"samples=0 must be in \(0, inf\]"),
    ({"throughput": {8: 0.1}}, "1 timed batch sizes; at least 2"),
    ({"throughput": {8: 0.1, 16: 0.0}}, r"seconds=0 must be in \(0, inf\]"),
    ({"devices": [4096], "network": NET, "most": 64}, "no batch up to 64 samples"),
    ({"largest_local": 0}, "largest_local=0 must be at least 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_refusals(change, message):
    asked = {"critical": 100.0, "throughput": STEP, "now": 8, **change}
    with pytest.raises(InputError, match=message):
        advise(asked.pop("critical"), asked.pop("throughput"), **asked)


@pytest.mark.parametrize("change", [{"latency": -1.0}, {"bandwidth": 0.0}, {"overlap": 1.0}, {"gradient_bytes": -1.0}])
def test_a_network_refuses_nonsense(change):
    with pytest.raises(InputError, match=next(iter(change))):
        critical.Network(**{"gradient_bytes": 1.0, **change})


@pytest.mark.parametrize("steps", [{1: 0.1, 2: 0.1, 4: 0.1}, {8: 0.5, 64: 0.4, 256: 0.3}, {8: 0.1, 32: 0.1005}])
@pytest.mark.parametrize("devices", [[1], [1, 8]])
def test_steps_that_do_not_grow_with_the_batch_are_not_extrapolated(steps, devices):
    """A device that is not filled seems to take any number of samples at once; nothing was timed where it is."""
    found = advise(Interval(500, 300, 800), fit_steps(steps), now=max(steps), devices=devices, network=NET)
    assert max(o.batch / o.devices for o in found.options) == max(steps)
    assert found.sentences[0].endswith("they are left out; time larger batches")
    told = advise(Interval(500, 300, 800), STEP, now=64)
    assert max(o.batch for o in told.options) > 256
    assert not any("time larger batches" in line for line in told.sentences)
    with pytest.raises(InputError, match="time larger batches; no batch is small enough for"):
        advise(500.0, fit_steps({0.25: 0.1, 0.5: 0.1}), now=1)


@pytest.mark.parametrize("spoilt", [8, 64, 256])
def test_a_time_that_includes_compilation_is_named(spoilt):
    times = {b: 0.01 + 0.001 * b for b in (8, 64, 256)} | {spoilt: 30.0}
    found = advise(Interval(500, 300, 800), fit_steps(times), now=64)
    assert found.sentences[0].startswith(f"the timed steps lie on no line: 30 s at batch {spoilt},")
    within = {b: (0.01 + 0.001 * b) * factor for b, factor in ((8, 1.2), (64, 0.8), (256, 1.1))}
    assert "no line" not in advise(Interval(500, 300, 800), fit_steps(within), now=64).sentences[0]


def test_tokens_are_timed_as_they_were_drawn():
    """A batch of 512 tokens draws the samples of 8 to 64 that fit: fewer than 512, and that is what the time is of."""
    ragged = {"width": 16, "layers": 1, "ragged": True}
    made = recipe(task="text", ema=None, data_size=None, options=ragged, batch={"size": 512, "unit": "tokens"},
                  schedule={"length": "8192 tokens", "warmup": "0 tokens"})  # fmt: skip
    (drawn,) = measure_steps(made, [512], steps=3)
    assert 512 - 64 < drawn < 512
