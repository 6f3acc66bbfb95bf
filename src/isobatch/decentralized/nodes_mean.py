"""What the nodes of a run have in common: their mean weights and states, and how far they are from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobatch.checkpoint import load
from isobatch.checkpoint.manifest import verify
from isobatch.errors import InputError
from isobatch.gradients import rebuilt


def consensus_distance(x: Tensor) -> float:
    """Return how far nodes disagree: mean_i |x_i - xbar|**2 / |xbar|**2.

    Args:
        x: weights [nodes, size].

    Returns:
        A number of at least 0.

    Example:
        >>> consensus_distance(torch.tensor([[1.0], [3.0]]))
        0.25
    """
    return relative_error(x, x.mean(0))


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Return the nodes' relative squared distance to a point: mean_i |x_i - x*|**2 / |x*|**2, the bias for a known x*.

    Args:
        x: weights [nodes, size].
        reference: x* [size].

    Returns:
        A number of at least 0.
    """
    return float((x - reference).square().sum(-1).mean() / reference.square().sum())


def node_state(path: str | Path, rank: int, world: int) -> Any:
    """Return the state that a rank takes up: its own where as many ranks saved, else the mean over all of them.

    Weights and momenta of the mean are those of the averaged run, which is what every method's mean follows; the
    topology may be another one either way.

    Args:
        path: folder of one checkpoint, saved by every rank through `isobatch.checkpoint.Checkpoints`.
        rank: of this process.
        world: number of ranks now.

    Returns:
        The nested state as it was given to `save`.

    Raises:
        InputError: a damaged checkpoint, or ranks that saved states of different shapes.
    """
    stored = verify(Path(path), ranks=())["world_size"]
    if stored == world:
        return load(path, rank=rank).state
    return mean_state([load(path, rank=other).state for other in range(stored)])


def mean_state(states: Sequence[Any]) -> Any:
    """Return the mean of nested states: floating tensors are averaged, everything else is taken from the first.

    Args:
        states: nested dicts, lists and tuples of one shape.

    Returns:
        A state of the same shape.

    Raises:
        InputError: keys, lengths or shapes differ.

    Example:
        >>> mean_state([{"w": torch.ones(2), "step": 3}, {"w": torch.zeros(2), "step": 3}])
        {'w': tensor([0.5000, 0.5000]), 'step': 3}
    """
    if not states:
        raise InputError("states=[] holds none; give the state of each node")
    first = states[0]
    if isinstance(first, torch.Tensor):
        if len({state.shape for state in states}) != 1:
            raise InputError(f"nodes saved tensors of shapes {[tuple(state.shape) for state in states]}; take another")
        if not (first.is_floating_point() or first.is_complex()):
            return first
        wide = [state.float() if first.element_size() < 4 else state for state in states]  # 8 bits have no sums
        return torch.stack(wide).mean(0).to(first.dtype)
    if isinstance(first, dict):
        if any(state.keys() != first.keys() for state in states):
            raise InputError(f"nodes saved states with different names than {sorted(first)}; take another checkpoint")
        return {key: mean_state([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        if len({len(state) for state in states}) != 1:
            raise InputError(
                f"nodes saved lists of lengths {[len(state) for state in states]}; take another checkpoint"
            )
        means = [mean_state(parts) for parts in zip(*states, strict=True)]
        return rebuilt(first, means)
    return first
