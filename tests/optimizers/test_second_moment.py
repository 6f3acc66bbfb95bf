import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.invariant_adam import estimates, mean_gradient, v_in

from isobatch.errors import InputError
from isobatch.optimizers.second_moment import (
    bias_correction,
    fold_chunks_,
    log_decay,
    noise_above_mean_,
    noise_weight,
    reference_square,
    spread,
)

PARTITIONS = [([8.0] * 4, 8), ([4.0] * 4, 8), ([16.0] * 3, 8), ([3.0, 5.0, 1.0, 9.0], 4), ([64.0, 2.0], 1)]


def mean_and_square(g, n):
    g, n = torch.as_tensor(g), torch.as_tensor(n, dtype=torch.float64)
    share = (n / n.sum()).reshape(-1, *[1] * (g.ndim - 1))
    return (share * g).sum(0), (share * g.square()).sum(0)


@pytest.mark.parametrize(("n", "reference"), PARTITIONS)
def test_agrees_with_the_slow_reference(n, reference):
    g = np.random.default_rng(0).normal(0.3, 1, (len(n), 5))
    mean, square = mean_and_square(g, n)
    found = reference_square(mean, square, kappa=sum(n) / reference, chunks=len(n))
    np.testing.assert_allclose(found.numpy(), v_in(g, n, reference), rtol=1e-13)


def test_chunks_of_the_reference_need_no_correction():
    g = np.random.default_rng(1).normal(0.3, 1, (16, 5))
    mean, square = mean_and_square(g, [8.0] * 16)
    np.testing.assert_allclose(reference_square(mean, square, kappa=16, chunks=16), (g**2).mean(0), rtol=1e-14)


@pytest.mark.parametrize(("n", "reference"), PARTITIONS)
def test_unbiased_for_any_sizes_of_chunk(n, reference):
    """E v_in = G^2 + s^2/B_ref, within 4 standard errors of 40,000 draws, and the errors small enough to matter."""
    true, variance, draws = 0.2, 2.0, 40_000
    rng = np.random.default_rng(2)
    g = np.stack([rng.normal(true, np.sqrt(variance / n_i), draws) for n_i in n])
    mean, square = mean_and_square(g, n)
    found = reference_square(mean, square, kappa=sum(n) / reference, chunks=len(n)).numpy()
    wanted = true**2 + variance / reference
    error = found.std(ddof=1) / np.sqrt(draws)
    assert error < 0.01 * wanted
    assert abs(found.mean() - wanted) < 4 * error
    uncorrected = square.numpy().mean()
    if reference * len(n) != sum(n):
        assert abs(uncorrected - wanted) > 20 * error


def test_the_variance_that_a_step_keeps_is_unbiased():
    n = [3.0, 5.0, 1.0, 9.0]
    rng = np.random.default_rng(3)
    g = np.stack([rng.normal(0.2, np.sqrt(2.0 / n_i), 40_000) for n_i in n])
    variance = estimates(g, n)[1]
    assert abs(variance.mean() - 2.0) < 4 * variance.std() / 200


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False, width=32), min_size=2, max_size=6),
    st.lists(st.floats(0.1, 100), min_size=6, max_size=6),
    st.floats(1, 1000),
)
def test_never_negative(values, sizes, kappa):
    n = sizes[: len(values)]
    g = torch.tensor(values, dtype=torch.float32)[:, None]
    mean, square = mean_and_square(g, n)
    mean, square = mean.float(), square.float()
    assert reference_square(mean, square, kappa=kappa, chunks=len(n)) >= mean.square()
    second = [torch.zeros_like(mean)]
    weight = noise_weight(kappa, len(n))
    if weight <= 1:
        fold_chunks_(second, [mean], [square.clone()], decay=0.9, scale=1.0, weight=weight)
    assert second[0] >= 0
    squares = [square.clone()]
    noise_above_mean_(squares, [mean], scale=1.0, form="coordinate")
    assert squares[0] >= 0


@pytest.mark.parametrize("form", ["factored", "row", "tensor"])
def test_shared_noise_keeps_the_sum_and_spares_empty_rows(form):
    means = [torch.tensor([[1.0, -2.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)]
    noise, sums = {
        "factored": ([5.0, 0.0, 20.0, 10.0, 15.0], [5.0, 0.0, 20.0]),
        "row": ([[5.0], [7.0], [20.0]], [5.0, 0.0, 20.0]),
        "tensor": ([[30.0]], [10.0, 0.0, 20.0]),
    }[form]
    shared = spread([torch.tensor(noise, dtype=torch.float64)], means, form)[0]
    assert shared.sum(1).tolist() == pytest.approx(sums)
    assert (shared[1] == 0).all()
    if form == "factored":
        assert shared.sum(0).tolist() == pytest.approx([10.0, 15.0])


def test_factored_noise_is_exact_where_it_is_a_product():
    rows, columns = torch.rand(4, 1, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    noise = rows * columns
    kept = torch.cat([noise.sum(1), noise.sum(0)])
    assert torch.allclose(spread([kept], [torch.ones(4, 2, 3, dtype=torch.float64)], "factored")[0].flatten(1), noise)


def test_no_noise_is_no_division():
    for form, size in (("factored", (5,)), ("row", (3, 1)), ("tensor", (1, 1))):
        assert (spread([torch.zeros(size)], [torch.zeros(3, 2)], form)[0] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 1 - 1e-9])
def test_bias_correction_is_one_minus_the_product(beta):
    assert bias_correction(3 * log_decay(beta)) == pytest.approx(1 - beta**3, rel=1e-6)


@pytest.mark.parametrize(
    ("kappa", "chunks", "message"),
    [(0.5, 4, "kappa=0.5 must be at least 1"), (float("nan"), 4, "kappa=nan"), (16, 1, "came as 1 chunk")],
)
def test_refuses(kappa, chunks, message):
    with pytest.raises(InputError, match=message):
        noise_weight(kappa, chunks)


def test_the_reference_of_the_tests_weighs_samples():
    assert mean_gradient([[1.0], [4.0]], [1, 2]) == pytest.approx([3.0])
