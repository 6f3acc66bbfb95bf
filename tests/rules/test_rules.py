"""The battery that every row of tests/cases.py buys."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, Case, State

from isobatch.errors import InputError

EXACT = [case for case in CASES if case.exception is None]
EXCEPTIONS = [case for case in CASES if case.exception is not None]
rows = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def close(got: State, wanted: State, rel: float = 1e-9) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value, rel=rel, abs=1e-13), (key, got, wanted)


def states(case: Case):
    return st.fixed_dictionaries({key: st.floats(*bounds) for key, bounds in case.domain.items()})


def kappas(case: Case, low: float | None = None):
    return st.floats(math.log(low or 1 / case.largest), math.log(case.largest)).map(math.exp)


def middle(case: Case) -> State:
    return {key: (low + high) / 2 for key, (low, high) in case.domain.items()}


@rows
@settings(max_examples=30)
@given(data=st.data())
def test_kappa_one_is_the_identity(case, data):
    state = data.draw(states(case))
    assert case.move(state, 1) == state


@rows
@settings(max_examples=25)
@given(data=st.data())
def test_agrees_with_the_slow_reference(case, data):
    state, k = data.draw(states(case)), data.draw(st.integers(2, min(24, int(case.largest))))
    close(case.move(state, k), case.slow(state, k))


@pytest.mark.parametrize("case", EXACT, ids=[case.name for case in EXACT])
@settings(max_examples=30)
@given(data=st.data())
def test_composes_and_comes_back(case, data):
    state, a, b = data.draw(states(case)), data.draw(kappas(case)) ** 0.5, data.draw(kappas(case)) ** 0.5
    once = case.move(state, a * b)
    close(case.move(case.move(state, a), b), once)
    if all(once[key] > 1e-300 or value == 0 for key, value in state.items() if key != "buffer"):
        close(case.move(once, 1 / (a * b)), state, rel=1e-7)


@rows
def test_four_times_is_twice_two_times(case):
    state = middle(case)
    twice = case.move(case.move(state, 2), 2)
    if case.upwards:
        close(twice, case.move(state, 4))
    else:
        assert twice != pytest.approx(case.move(state, 4), rel=1e-3)


@pytest.mark.parametrize("case", EXCEPTIONS, ids=[case.name for case in EXCEPTIONS])
def test_the_stated_exception_is_one(case):
    odd = case.exception
    moved, at_once = case.move(case.move(odd.state, odd.a), odd.b), case.move(odd.state, odd.a * odd.b)
    assert moved != pytest.approx(at_once, rel=1e-3), odd.why


@settings(max_examples=50)
@given(data=st.data())
def test_a_floor_still_composes_while_the_batch_grows(data):
    case = next(case for case in EXCEPTIONS if case.upwards)
    state, a, b = data.draw(states(case)), data.draw(kappas(case, 1.0)), data.draw(kappas(case, 1.0))
    close(case.move(case.move(state, a), b), case.move(state, a * b))


@rows
@pytest.mark.parametrize("kappa", [0, -2.0, math.nan, math.inf, True, "4"])
def test_kappa_outside_its_domain_is_refused(case, kappa):
    with pytest.raises(InputError, match=r"(kappa|ratio)=.*\(0, inf\]"):
        case.move(middle(case), kappa)


@rows
@pytest.mark.parametrize("bad", [math.nan, True, "0.5"])
def test_what_is_not_a_number_is_refused(case, bad):
    for key in case.domain:
        if key == "buffer":
            continue
        with pytest.raises(InputError, match=rf"{key}=.*must be"):
            case.move(middle(case) | {key: bad}, 2.0)


@pytest.mark.parametrize(
    ("case", "state", "message"),
    [(case, state, message) for case in CASES for state, message in case.refused],
    ids=lambda value: value.name if isinstance(value, Case) else None,
)
def test_a_value_outside_the_domain_is_named_with_its_range(case, state, message):
    with pytest.raises(InputError, match=message):
        case.move(state, 2.0)
