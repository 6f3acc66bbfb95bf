"""What every task with a name must do; a table of sizes and options buys it."""

from copy import deepcopy

import pytest
import torch
from tests.recipes import recipe

from isobatch.errors import InputError
from isobatch.tasks import LossContext, make_run


def made(name, size, options, seed=0):
    return make_run(recipe(task=name, data_size=size, options=options), seed)


def context(run):
    """What the loop would hand to the first pass."""
    if run.needs is None:
        return None
    average = deepcopy(run.model).requires_grad_(False) if run.needs.teacher else None
    return LossContext(0, 4, 1000, torch.arange(4), run.needs.means, average)


def the_seed_alone_gives_the_weights(name, size, options):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    one, same, other = (made(name, size, options, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = list(zip(one.model.parameters(), same.model.parameters(), other.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    assert one.facts


def a_step_gives_a_loss_with_gradients_and_evaluation_gives_numbers(name, size, options):
    run = made(name, size, options)
    loss = run.step(run.samples[torch.arange(4)], context(run))
    loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None for p in run.model.parameters())
    metrics = run.evaluate()
    assert metrics["loss"] > 0
    assert all(isinstance(value, float) for value in metrics.values())
    assert run.model.training
    assert len(run.samples) == size


def an_option_that_it_does_not_read_is_refused_and_those_it_reads_are_named(name, size, options):
    wanted = rf"options\.widht is not an option of task='{name}', which looks for: "
    with pytest.raises(InputError, match=wanted) as error:
        made(name, size, options | {"widht": 8})
    assert ("dimension" if name == "quadratic" else "width") in str(error.value)


BATTERY = (
    the_seed_alone_gives_the_weights,
    a_step_gives_a_loss_with_gradients_and_evaluation_gives_numbers,
    an_option_that_it_does_not_read_is_refused_and_those_it_reads_are_named,
)
