"""What could fool a check does not: no verdict without a comparison, no cause that is not one, nothing left changed."""

import math

import pytest
import torch
from tests.split import fooling
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.split import split
from isobatch.split.compare import distance
from isobatch.split.layouts import Quiet

SLOW = {
    "samples_outlive_the_trainer", "teacher_outlives_the_trainer", "mixing_by_beta", "half_of_the_units_dropped",
    "mixing_by_a_random_of_its_own", "legacy_generator_of_its_own", "average_in_half_precision",
    "average_per_part_beside_a_huge_gradient",
}  # fmt: skip
"""Those whose fault another test or trainer holds too."""


@pytest.mark.parametrize("name", fooling.REFUSED)
def test_without_anything_to_compare_there_is_no_verdict(name):
    make, said = fooling.REFUSED[name]
    with pytest.raises(InputError, match=said):
        split(make, 2)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in fooling.JUDGED
])  # fmt: skip
def test_the_cause_is_the_cause(name):
    make, causes, code, options = fooling.JUDGED[name]
    report = split(make, 2, **options)
    assert [cause.name for cause in report.causes] == causes, str(report)
    assert report.exit_code == code, str(report)


def test_what_outlives_a_trainer_is_given_back():
    split(fooling.samples_outlive_the_trainer, 2)
    split(fooling.teacher_outlives_the_trainer, 2)
    tensors = [*fooling.SHARED.tensors, *fooling.TEACHER.parameters()]
    assert all(one.dtype == torch.float32 and bool(one.isfinite().all()) for one in tensors)


D = torch.distributions
X = 0.25 + torch.arange(12.0, dtype=torch.float64).reshape(4, 3) / 12
P = X / X.sum(1, keepdim=True)
DRAWS = {
    "rand": lambda x: torch.rand(x.shape),
    "rand of a generator": lambda x: torch.rand(x.shape, generator=torch.Generator()),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(9, x.shape),
    "randint from": lambda x: torch.randint(5, 10, x.shape, dtype=torch.int32),
    "randint_like": lambda x: torch.randint_like(x, 2, 9),
    "normal of tensors": lambda x: torch.normal(x, x),
    "normal of a mean": lambda x: torch.normal(x, 0.5),
    "normal of a deviation": lambda x: torch.normal(2.0, x),
    "normal of numbers": lambda x: torch.normal(2.0, 0.5, x.shape),
    "bernoulli": torch.bernoulli,
    "bernoulli of p": lambda x: torch.bernoulli(x, 0.3),
    "bernoulli_": lambda x: x.clone().bernoulli_(),
    "bernoulli_ of p": lambda x: x.clone().bernoulli_(0.3),
    "bernoulli_ of a tensor": lambda x: x.clone().bernoulli_(x / 2),
    "dropout of half": lambda x: F.dropout(x, 0.5),
    "dropout": lambda x: F.dropout(x, 0.2),
    "poisson": torch.poisson,
    "binomial": lambda x: torch.binomial(torch.full_like(x, 3), x / 2),
    "gamma": lambda x: D.Gamma(x, torch.ones_like(x)).sample(),
    "beta": lambda x: D.Beta(x, x).sample(),
    "dirichlet": lambda x: D.Dirichlet(x).sample(),
    "uniform_": lambda x: x.clone().uniform_(),
    "uniform_ from": lambda x: x.clone().uniform_(2, 3),
    "normal_": lambda x: x.clone().normal_(),
    "normal_ of a mean": lambda x: x.clone().normal_(3.0, 0.5),
    "exponential_": lambda x: x.clone().exponential_(2.0),
    "geometric_": lambda x: x.clone().geometric_(0.5),
    "log_normal_": lambda x: x.clone().log_normal_(0.1, 0.3),
    "random_ to": lambda x: x.clone().random_(7),
    "random_ from": lambda x: x.clone().random_(5, 10),
}
ORDERS = {
    "randperm": lambda x: torch.randperm(len(x)),
    "multinomial": lambda x: torch.multinomial(x, 2),
    "multinomial with replacement": lambda x: torch.multinomial(x, 6, replacement=True),
    "cauchy_": lambda x: x.clone().cauchy_(),
    "seed": lambda x: torch.empty((), dtype=torch.int64).random_(),
}


def _held(draw, x):
    with Quiet() as quiet:
        found = draw(x)
    assert quiet.count >= 1
    assert not quiet.loose
    return found


@pytest.mark.parametrize("name", DRAWS | ORDERS)
def test_a_random_operation_is_held_at_its_mean(name):
    draw = (DRAWS | ORDERS)[name]
    torch.manual_seed(0)
    held, real = _held(draw, P), draw(P)
    assert held.shape == real.shape
    assert held.dtype == real.dtype
    assert torch.equal(held, _held(draw, P))
    if name in ORDERS:
        return
    halves = torch.cat([_held(draw, P[:1]), _held(draw, P[1:])])
    assert torch.allclose(held, halves, rtol=1e-15)  # a row's number does not depend on the rows beside it
    many = draw(P.repeat(4000, 1)).reshape(4000, *P.shape).double()
    error = 5 * many.std(0) / math.sqrt(4000) + 1e-12
    assert bool(((many.mean(0) - held).abs() <= error + (0.5 if not held.is_floating_point() else 0)).all())


def test_what_has_no_mean_is_said_to_be_loose():
    with Quiet() as quiet:
        F.rrelu(-P, training=True)
    assert quiet.loose == {"rrelu_with_noise"}


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(("one", "other", "wanted"), [
    ([NAN, 1.0], [0.0, 1.0], INF), ([NAN, 1.0], [NAN, 1.0], 0.0), ([INF, 2.0], [INF, 1.0], 1.0),
    ([-INF, 1.0], [INF, 1.0], INF), ([0.0], [0.0], 0.0), ([1.0], [0.0], 1.0), ([INF], [0.0], INF),
])  # fmt: skip
def test_the_distance_of_what_is_not_finite(one, other, wanted):
    assert distance(torch.tensor(one), torch.tensor(other)) == wanted
