"""Curves made of pieces: each way written out, the reference's steps at its batch, the same area at every other."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobatch.curves import SHAPES, WAYS, DecayCurve, Piece, Pieces, ways
from isobatch.errors import InputError

WRITTEN = {
    "linear": (Piece(100, "linear", 0.2, 1.0), lambda x: 0.2 + 0.8 * x),
    "cosine": (Piece(100, "cosine", 1.0, 0.1), lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2),
    "minus-sqrt": (Piece(100, "minus-sqrt", 1.0, 0.0), lambda x: 1 - x**0.5),
    "hold": (Piece(100, "hold", 0.7, 0.7), lambda x: 0.7),
    "step": (Piece(100, "step", 1.0, 0.1), lambda x: 0.1),
    "steps": (Piece(100, "step", 1.0, 1.0, every=30, gamma=0.5), lambda x: 0.5 ** (100 * x // 30)),
    "exp": (Piece(100, "exp", 1.0, 0.01), lambda x: 10 ** (-2 * x)),
    "power": (Piece(100, "power", 1.0, 0.2, p=3.0), lambda x: 0.2 + 0.8 * (1 - x) ** 3),
    "power up": (Piece(100, "power", 0.2, 1.0, p=2.0), lambda x: 0.2 + 0.8 * x * x),
    "inverse": (Piece(100, "inverse", 1.0, 1.0, p=0.5, scale=50), lambda x: 1 / math.sqrt(1 + 2 * x)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_way_is_the_formula_written_out(name):
    piece, formula = WRITTEN[name]
    curve = Pieces((piece, Piece(math.inf, "hold", 0.5, 0.5)), length=200, stair=5)
    for step in range(20):
        assert curve.at(5 * step) == pytest.approx(formula(step / 20), rel=1e-12)
    assert curve.at(100) == curve.at(1e9) == 0.5


def test_every_way_is_written_out():
    assert {piece.by for piece, _ in WRITTEN.values()} == set(ways()) == {*WAYS, *SHAPES} - {"constant"}


@st.composite
def curves(draw):
    stair = draw(st.integers(1, 16))
    names = draw(st.lists(st.sampled_from(sorted(WRITTEN)), min_size=1, max_size=4))
    pieces = tuple(WRITTEN[name][0]._replace(samples=draw(st.integers(1, 400))) for name in names)
    return Pieces((*pieces, Piece(math.inf, "hold", 0.3, 0.3)), draw(st.integers(1, 1000)), stair)


@settings(max_examples=60)
@given(data=st.data())
def test_the_area_over_any_samples_does_not_depend_on_the_batches(data):
    curve = data.draw(curves())
    end = data.draw(st.integers(1, int(curve.length) + 20))

    def area(cuts):
        return sum(curve.mean(a, b) * (b - a) for a, b in pairwise(sorted({0, end, *cuts})))

    brute = sum(curve.at(sample) for sample in range(end))
    for _ in range(2):
        assert area(data.draw(st.lists(st.integers(1, end), max_size=12))) == pytest.approx(brute, rel=1e-9, abs=1e-9)


@settings(max_examples=40)
@given(st.floats(0.5, 0.9999), st.integers(1, 8), st.integers(1, 60))
def test_a_moving_decay_is_the_product_of_the_references(decay, kappa, start):
    share = Pieces((Piece(math.inf, "cosine", 1.0, 0.0),), length=800, stair=8)
    moving = DecayCurve(decay, share, 8)
    product = math.prod(moving.at(index) for index in range(start, start + kappa))
    got = 2 ** (-8 * kappa / moving.half_life(8 * start, 8 * (start + kappa)))
    assert got == pytest.approx(product, rel=1e-9)
    assert moving.at(0) == pytest.approx(decay)


def test_what_it_says_of_itself():
    rise = Piece(80, "linear", 0.0, 1.0)
    curve = Pieces((rise, Piece(100, "hold", 1, 1), Piece(math.inf, "cosine", 1.0, 0.2)), length=400, stair=8)
    assert (curve.warmup, curve.decay_from, curve.shape) == (80, 180, "linear, hold, cosine")
    assert curve.final == pytest.approx(0.2)


@pytest.mark.parametrize(("pieces", "message"), [
    ((Piece(50, "hold", 1.0, 1.0),), r"a curve of 50 samples does not cover the run of 100"),
    ((Piece(1e9, "step", 1.0, 1.0, every=1e-3, gamma=2.0), Piece(math.inf, "hold", 1, 1)), "grows beyond any number"),
])  # fmt: skip
def test_curves_that_are_none_are_refused(pieces, message):
    with pytest.raises(InputError, match=message):
        Pieces(pieces, length=100).at(99), Pieces.ends_at(pieces[0])
