import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.control import Action, AdaptiveBatch, Evidence, Limits, temperature
from isobatch.errors import InputError

LR, BATCH, RATE = 0.1, 64, 100.0
T = temperature(LR, BATCH)
FIXED = 256
"""The batch that the simulated reference asks for: sqrt(RATE * noise) with the noise below."""
NOISE_TIMES_T = FIXED**2 / RATE * T
LIMITS = Limits(least=8, most=65_536, grain=8)


def controller(batch=BATCH, limits=LIMITS, **more):
    return AdaptiveBatch(batch, RATE, T, limits, **({"settle": 0} | more))


def evidence(value, temperature=T, spread=0.1, verdict="identified"):
    return Evidence(value, value * (1 - spread), value * (1 + spread), verdict, temperature)


def noise_for(batch):
    return batch**2 / RATE


LR_RULES = {"linear": lambda b: LR * b / BATCH, "sqrt": lambda b: LR * (b / BATCH) ** 0.5, "constant": lambda b: LR}


def simulate(rule, start, normalised, decisions=60, seed=0):
    """A stationary problem whose noise scale is c/T, measured with 3% error at the temperature of the run."""
    control, rng, seen = controller(start, settle=20_000), np.random.default_rng(seed), 0
    for _ in range(decisions):
        seen += 25_000
        now = temperature(LR_RULES[rule](control.batch), control.batch)
        measured = NOISE_TIMES_T / now * math.exp(0.03 * rng.standard_normal())
        control.decide(seen, evidence(measured, now if normalised else T))
    return control.batch


@pytest.mark.parametrize("rule", LR_RULES)
@pytest.mark.parametrize("start", [FIXED // 16, FIXED, FIXED * 16])
@pytest.mark.parametrize("seed", range(5))
def test_it_converges_from_both_sides_to_one_batch_under_every_lr_rule(rule, start, seed):
    assert FIXED / 1.2 / 1.1 < simulate(rule, start, normalised=True, seed=seed) < FIXED * 1.2 * 1.1


@pytest.mark.parametrize("start", [FIXED // 16, FIXED * 16])
def test_without_the_temperature_the_learning_rate_rule_moves_the_fixed_point(start):
    ends = {rule: simulate(rule, start, normalised=False) for rule in LR_RULES}
    assert ends["linear"] == pytest.approx(FIXED, rel=0.3)
    # B**2 = r*c/T with T ~ B**(p-1): B = B_ref*(FIXED/B_ref)**(2/(1+p)).
    assert ends["sqrt"] == pytest.approx(BATCH * (FIXED / BATCH) ** (4 / 3), rel=0.35)
    assert ends["constant"] == pytest.approx(BATCH * (FIXED / BATCH) ** 2, rel=0.35)


def test_a_known_decision():
    decision = controller().decide(10, evidence(noise_for(100)))
    assert (decision.batch, decision.action, decision.target) == (104, Action.GROW, pytest.approx(100))
    assert decision.reason == "64 to 104: the noise scale asks for 100 (94.87 to 104.9)"


def test_the_temperature_of_the_run_counts():
    # The run is twice as cold as the reference, so half of what it measures is the reference's.
    assert controller().decide(10, evidence(2 * noise_for(96), T / 2)).batch == 96


def test_hysteresis_and_interval_hold_the_batch():
    near = controller().decide(10, evidence(noise_for(64 * 1.19), spread=0.001))
    assert (near.action, near.target) == (Action.HOLD, pytest.approx(76.16))
    assert near.reason.startswith("held at 64: the noise scale asks for 76.16")
    wide = controller().decide(10, evidence(noise_for(100), spread=0.7))
    assert wide.action is Action.HOLD
    assert "an interval that holds it" in wide.reason
    assert controller().decide(10, Evidence(noise_for(100), noise_for(80), math.inf, "identified", T)).batch == 104
    assert controller().decide(10, Evidence(noise_for(30), 0.0, noise_for(90), "identified", T)).batch == 64
    assert controller().decide(10, Evidence(noise_for(30), -9.0, noise_for(40), "identified", T)).batch == 32


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Evidence(None, None, None, "undefined: one micro-batch", T), "not identified (undefined: one micro-batch)"),
        (evidence(1e6, verdict="not yet identified: needs about 900 more samples"), "needs about 900 more samples"),
        (Evidence(math.nan, 1.0, 2.0, "identified", T), "noise scale nan is not a positive number"),
        (Evidence(math.inf, 1.0, math.inf, "identified", T), "noise scale inf is not a positive number"),
        (Evidence(-3.0, -5.0, 2.0, "identified", T), "noise scale -3 is not a positive number"),
        (Evidence(0.0, 0.0, 2.0, "identified", T), "noise scale 0 is not a positive number"),
        (Evidence(1e6, None, 2e6, "identified", T), "has no interval"),
        (evidence(1e6, 0.0), "temperature 0 of the measurement"),
        (evidence(1e6, math.nan), "temperature nan of the measurement"),
    ],
)
def test_it_holds_and_says_why_without_usable_evidence(bad, reason):
    control = controller()
    before = control.state_dict()
    decision = control.decide(10, bad)
    assert (decision.batch, decision.action, decision.target) == (64, Action.HOLD, None)
    assert reason in decision.reason
    assert control.state_dict() == before


def test_a_jump_of_the_noise_by_1000_is_bounded_and_reversible():
    control = controller(settle=1000)
    jump = control.decide(0, evidence(1000 * noise_for(64)))
    assert (jump.batch, jump.action) == (128, Action.GROW)
    assert "asks for 2024" in jump.reason
    held = control.decide(999, evidence(1000 * noise_for(64)))
    assert held.reason == "held at 128: 1 samples until the last change has settled"
    back = control.decide(1000, evidence(noise_for(64)))
    assert (back.batch, back.action) == (64, Action.SHRINK)


def test_limits_bind_and_are_named():
    limits = Limits(least=8, most=10_000, memory=100, data=1437, grain=8)
    control = controller(limits=limits)
    assert control.decide(0, evidence(noise_for(5000))).batch == 96
    held = control.decide(1, evidence(noise_for(5000)))
    assert held.action is Action.HOLD
    assert held.reason.endswith("; the memory limit 100")
    data = controller(limits=Limits(data=100))
    data.decide(0, evidence(noise_for(5000)))
    assert data.decide(1, evidence(noise_for(5000))).reason.endswith("; the data limit 100")
    small = controller(limits=Limits(least=60))
    small.decide(0, evidence(noise_for(2)))
    assert small.decide(1, evidence(noise_for(2))).reason.endswith("; the least batch 60")
    coarse = controller(limits=Limits(grain=64), hysteresis=0.0)
    assert coarse.decide(0, evidence(noise_for(90))).reason.endswith("; no multiple of 64 is nearer")


def test_new_limits_act_at_once_and_can_be_taken_back():
    control = controller(256, settle=10)
    cut = control.apply_limits(100, Limits(memory=200, grain=24))
    assert (cut.batch, cut.action) == (192, Action.SHRINK)
    assert cut.reason == "256 to 192: the new limits forbid 256: multiples of 24 from 24, the memory limit 200"
    assert control.apply_limits(100, Limits(grain=64)).action is Action.HOLD
    assert control.decide(110, evidence(noise_for(256))).batch == 256


def test_a_move_of_the_reference_temperature_voids_the_estimate():
    control = controller(settle=1000)
    moved = control.decide(5000, evidence(noise_for(640)), reference=T / 10)
    assert moved.action is Action.HOLD
    assert moved.reason == ("held at 64: the reference's temperature moved by x0.1; estimates from before do not count")
    assert "settled" in control.decide(5500, evidence(noise_for(640)), reference=T / 10).reason
    # Ten times colder, the reference measures ten times the noise: the batch grows by sqrt(10), in two changes.
    for seen, batch in ((6000, 128), (7000, 200)):
        assert control.decide(seen, evidence(10 * noise_for(64), T / 10), reference=T / 10).batch == batch


def test_slow_drift_is_normalised_first_and_voids_later():
    control = controller(settle=10)
    assert control.decide(0, evidence(noise_for(100), T), reference=T * 0.95).target == pytest.approx(100 / 0.95**0.5)
    assert "moved by x0.9" in control.decide(100, evidence(noise_for(100), T), reference=T * 0.9).reason
    assert control.decide(101, evidence(noise_for(100), T), reference=0.0).action is Action.HOLD


STREAM = st.lists(
    st.tuples(
        st.floats(1e-3, 1e9),
        st.floats(0.0, 0.99),
        st.sampled_from(["identified", "not yet identified", "undefined"]),
        st.floats(0.01, 100.0),
        st.integers(0, 3000),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(
    stream=STREAM,
    grain=st.integers(1, 40),
    room=st.integers(1, 50),
    growth=st.floats(1.1, 4.0),
    cut=st.integers(0, 25),
)
def test_every_decision_is_allowed_bounded_and_survives_a_resume(stream, grain, room, growth, cut):
    limits = Limits(least=grain, most=grain * room, grain=grain)

    def fresh():
        return AdaptiveBatch(grain, RATE, T, limits, settle=1000, growth=growth)

    control, twin, seen, changed = fresh(), fresh(), 0, None
    for index, (value, spread, verdict, heat, samples) in enumerate(stream):
        seen, old = seen + samples, control.batch
        if index == cut:
            state = json.loads(json.dumps(control.state_dict()))
            control = fresh()
            control.load_state_dict(state)
        given = evidence(value, T * heat, spread, verdict)
        decision = control.decide(seen, given)
        assert decision == twin.decide(seen, given)
        assert decision.batch == control.batch
        assert limits.allows(decision.batch)
        assert decision.action == (
            Action.HOLD if decision.batch == old else Action.GROW if decision.batch > old else Action.SHRINK
        )
        assert old / growth - 1e-9 <= decision.batch <= old * growth + 1e-9 or abs(decision.batch - old) == grain
        if decision.batch != old:
            assert verdict == "identified"
            assert changed is None or seen - changed >= 1000
            changed = seen


def test_a_state_with_other_settings_is_refused_unless_asked_for():
    state = controller(settle=500).state_dict()
    other = controller(256, Limits(grain=64), settle=800)
    with pytest.raises(InputError, match=r"settle=800 differs from 500 in the state; .*new_settings=True"):
        other.load_state_dict(state)
    assert other.batch == 256
    other.load_state_dict(state, new_settings=True)
    assert (other.batch, other.limits, other.settle) == (64, LIMITS, 800)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 60}, "batch=60 must be a multiple of 8 from 8 with the largest batch 65536; near it: 56 or 64"),
        ({"batch": 64.0}, "batch=64.0 must be a whole number"),
        ({"reference": math.nan}, "reference=nan must be finite"),
        ({"since": -1}, "since=-1 must be at least 0"),
        ({"extra": 1}, "has the keys .*'extra'.*, expected"),
        ({"limits": {"grain": 8}}, "limits in the state has the keys"),
        ({"settings": None}, "settings in the state has the keys None"),
    ],
)
def test_a_bad_state_is_refused_whole(change, message):
    control = controller()
    before = control.state_dict()
    with pytest.raises(InputError, match=message):
        control.load_state_dict(before | change)
    assert control.state_dict() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: controller(60), "batch=60 must be a multiple of 8"),
        (lambda: controller(0), "batch=0 must be at least 1"),
        (lambda: controller(True), "batch=True must be a whole number"),
        (lambda: AdaptiveBatch(64, 0.0, T, LIMITS, settle=0), r"exchange_rate=0 must be in \(0"),
        (lambda: AdaptiveBatch(64, RATE, math.nan, LIMITS, settle=0), "reference temperature=nan"),
        (lambda: controller(growth=1.0), r"growth=1 must be in \(1"),
        (lambda: controller(hysteresis=-0.1), "hysteresis=-0.1 must be in"),
        (lambda: controller(drift=0.0), r"drift=0 must be in \(0"),
        (lambda: controller(settle=1.5), "settle=1.5 must be a whole number"),
        (lambda: controller().decide(-1, evidence(1.0)), "seen=-1 must be at least 0"),
        (lambda: controller().decide(0, Evidence(1.0, 2.0, 1.5, "identified", T)), r"\[2, 1.5\].*low <= high"),
        (lambda: controller().decide(0, Evidence("7", 2.0, 1.5, "identified", T)), "value='7' must be a number"),
        (lambda: controller().decide(0, Evidence(True, 2.0, 1.5, "identified", T)), "value=True must be a number"),
        (lambda: controller().decide(0, evidence(1.0), reference=-1.0), "reference temperature=-1 must be in"),
        (lambda: Limits(grain=0), "grain=0 must be at least 1"),
        (lambda: Limits(memory=-5), "memory limit=-5 must be at least 1"),
        (lambda: Limits(least=50, most=60, grain=24), r"no multiple of grain=24 lies in \[50, the largest batch 60\]"),
        (lambda: temperature(-0.1, 8), "lr=-0.1 must be in"),
        (lambda: temperature(0.1, 8, momentum=1.0), "momentum=1 must be in"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_samples_cannot_run_backwards():
    control = controller()
    control.decide(100, evidence(noise_for(128)))
    with pytest.raises(InputError, match="seen=99 must be at least 100, the last change; load an older state"):
        control.decide(99, evidence(noise_for(128)))


def test_the_temperature_is_what_the_batch_rules_keep():
    assert temperature(0.1 * 16, 64 * 16) == pytest.approx(temperature(0.1, 64))
    assert temperature(0.1 * 4, 64 * 16, exponent=0.5) == pytest.approx(temperature(0.1, 64, exponent=0.5))
    assert temperature(0.1, 64, momentum=0.9) == pytest.approx(10 * temperature(0.1, 64))
