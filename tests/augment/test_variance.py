"""The two terms: unbiased, equal to the textbook, and the law that they obey."""

import numpy as np
import pytest
import torch
from scipy import stats
from tests.augment.cases import softmax_regression
from tests.reference import augmentation as reference

from isobatch.augment import Draws, ViewVariance, measure_views, shift_cutout, two_terms
from isobatch.errors import InputError


def sums(g):
    return float((g**2).sum()), float((g.mean(1) ** 2).sum()), float((g.mean((0, 1)) ** 2).sum())


def test_the_sums_give_the_textbook_s_mean_squares():
    g = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = two_terms(*sums(g), samples=5, views=3)
    assert (found.between, found.views, found.gradient_squared) == pytest.approx(reference.nested(g), rel=1e-12)


def test_the_terms_are_unbiased():
    """sigma_between^2 = 2 * 3, sigma_views^2 = 5 * 3, |G|^2 = 3 planted in 3 dimensions; the mean of many estimates."""
    rng, found = np.random.default_rng(1), []
    for _ in range(4000):
        sample = rng.normal(size=(4, 1, 3)) * 2**0.5
        terms = two_terms(*sums(1 + sample + rng.normal(size=(4, 2, 3)) * 5**0.5), samples=4, views=2)
        found.append((terms.between, terms.views, terms.gradient_squared))
    mean, error = np.mean(found, 0), np.std(found, 0) / 4000**0.5
    assert np.all(np.abs(mean - [6, 15, 3]) < 4 * error)
    assert np.all(error < [0.2, 0.2, 0.1])


def test_no_variance_between_views_is_found_to_be_none():
    g = np.repeat(np.random.default_rng(2).normal(size=(6, 1, 3)), 4, axis=1)
    found = two_terms(*sums(g), samples=6, views=4)
    assert found.views == pytest.approx(0, abs=1e-12)
    assert (found.pays(), found.at(1, 2)) == (1, pytest.approx(found.at(16, 2)))
    assert "M = 1" in found.sentence()


def test_pays_follows_the_share():
    assert ViewVariance(0.0, 1.0, 1.0).pays(most=16) == 16
    assert ViewVariance(1.0, 0.0, 1.0).pays() == 1
    terms = ViewVariance(0.7, 0.3, 1.0)
    falls = {m: 1 - terms.at(m, 1) / terms.at(m // 2, 1) for m in (2, 4, 8)}
    assert falls[2] > falls[4] > 0.05 > falls[8]
    assert terms.pays() == 4
    assert "30%" in terms.sentence()


def test_the_model_s_terms_are_those_of_its_rows():
    run = softmax_regression()
    x, y = run.samples[torch.arange(6)]
    before = {name: p.clone() for name, p in run.model.state_dict().items()}
    found = measure_views(run.loss, run.model, [(x[n : n + 1], y[n : n + 1]) for n in range(6)], shift_cutout, views=3)
    w = run.model[0].weight.detach().numpy()
    g = np.zeros((6, 3, 640))
    for n in range(6):
        for m in range(3):
            image = shift_cutout(x[n : n + 1], Draws(0, torch.tensor([n]), torch.tensor([m])))[0].numpy()
            g[n, m] = reference.grad_w(w, image, int(y[n])).ravel()
    assert (found.between, found.views, found.gradient_squared) == pytest.approx(reference.nested(g), rel=1e-9)
    assert found.low < found.share < found.high
    shares = []
    for out in range(6):
        between, views, _ = reference.nested(np.delete(g, out, axis=0))
        shares.append(views / (between + views))
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 * np.var(shares))
    assert (found.low, found.high) == pytest.approx((found.share - half, found.share + half), rel=1e-9)
    assert all(torch.equal(p, before[name]) for name, p in run.model.state_dict().items())
    assert run.model[0].weight.grad is None


def test_chunks_give_the_terms_of_one_sample():
    """Chunks of four, each sample with views of its own: both terms agree with those of single rows, within noise."""
    run = softmax_regression()
    batches = {size: [run.samples[torch.arange(1200)[i : i + size]] for i in range(0, 1200, size)] for size in (1, 4)}
    one, four = (measure_views(run.loss, run.model, batches[size], shift_cutout, views=2) for size in (1, 4))
    assert four.between == pytest.approx(one.between, rel=0.15)
    assert four.views == pytest.approx(one.views, rel=0.15)
    assert four.gradient_squared == pytest.approx(one.gradient_squared, rel=0.05)
    assert one.low < four.share < one.high or four.low < one.share < four.high


def test_too_little_is_refused():
    run = softmax_regression()
    with pytest.raises(InputError, match="samples=1 must be at least 2"):
        two_terms(1.0, 1.0, 1.0, samples=1, views=2)
    with pytest.raises(InputError, match="views=1 must be at least 2"):
        measure_views(run.loss, run.model, [], shift_cutout, views=1)
    with pytest.raises(InputError, match="1 chunks"):
        measure_views(run.loss, run.model, [run.samples[torch.arange(2)]], shift_cutout)
    with pytest.raises(InputError, match=r"\[1, 2\] samples must be of one size"):
        measure_views(run.loss, run.model, [run.samples[torch.arange(n)] for n in (1, 2)], shift_cutout)
    with pytest.raises(InputError, match="gain"):
        ViewVariance(1.0, 1.0, 1.0).pays(gain=0)
