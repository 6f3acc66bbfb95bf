r"""A batch smaller than the reference: sums over consecutive steps until a reference batch of samples has passed.

The steps of a window are the chunks: with S = sum W_t g_t, Q = sum W_t g_t^2 and N = sum W_t samples in k steps, m =
S/N and q = Q/N enter v as one reference batch would, decayed by the product of the window's betas. N = B_ref gives
v_in = (S/N)^2; where the last step overshoots, q - m^2 corrects for it, still unbiased and at least 0. While a window
is open, what divides the step is v with the window so far folded in.
"""

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch

from isobatch.errors import InputError
from isobatch.optimizers.second_moment import Tensors, bias_correction, fold_, noise_weight

LONGEST_WINDOW = 1024


class Clock(NamedTuple):
    """The plain numbers in a parameter's state: accumulated log-decays, and how far its window is.

    Args:
        log_decay1: sum of ln beta1 over the updates of the first moment.
        log_decay2: sum of ln beta2 over what has entered the second moment.
        window_samples: N so far.
        window_steps: k so far; 0 means that no window is open.
        window_log_decay: sum of ln beta2 over the window.
    """

    log_decay1: float = 0.0
    log_decay2: float = 0.0
    window_samples: float = 0.0
    window_steps: int = 0
    window_log_decay: float = 0.0

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Clock":
        """Return the numbers of a parameter's state.

        Args:
            state: the state, empty for a parameter that was never updated.

        Returns:
            Its clock, at zero for an empty state.
        """
        if not state:
            return cls()
        return cls(*(state[name] for name in cls._fields))


def refuse_endless(reference_batch: int, samples: float) -> None:
    """Refuse a first window that would be so long that the second moment stays undefined.

    Args:
        reference_batch: B_ref.
        samples: W of one step.

    Raises:
        InputError: more than `LONGEST_WINDOW` steps to a window.

    Example:
        >>> refuse_endless(64, 8)
    """
    if reference_batch > LONGEST_WINDOW * samples:
        raise InputError(
            f"reference_batch={reference_batch} takes {reference_batch / samples:.0f} steps of {samples:g} samples to "
            f"fill once; at most {LONGEST_WINDOW}. Give it in the unit that the chunks count, or a smaller one"
        )


def fold_window(
    states: Sequence[MutableMapping[str, Any]],
    gradients: Tensors,
    clock: Clock,
    *,
    samples: float,
    reference_batch: int,
    log_decay: float,
) -> Clock:
    """Add one step to the window and, once it holds a reference batch, fold it into v and close it.

    Args:
        states: one for each parameter, with exp_avg_sq; window_sum and window_squares live here while it is open.
        gradients: g_t, the step's mean gradients.
        clock: the numbers of these parameters.
        samples: W_t.
        reference_batch: B_ref.
        log_decay: ln beta2 of this step.

    Returns:
        The numbers after the step.
    """
    if clock.window_steps == 0:
        sums: Tensors = torch._foreach_mul(gradients, samples)
        squares: Tensors = torch._foreach_mul(gradients, gradients)
        torch._foreach_mul_(squares, samples)
        for state, total, square in zip(states, sums, squares, strict=True):
            state["window_sum"], state["window_squares"] = total, square
    else:
        sums = [state["window_sum"] for state in states]
        squares = [state["window_squares"] for state in states]
        torch._foreach_add_(sums, gradients, alpha=samples)
        torch._foreach_addcmul_(squares, gradients, gradients, samples)
    total = clock.window_samples + samples
    steps = clock.window_steps + 1
    passed = clock.window_log_decay + log_decay
    if total < reference_batch:
        return clock._replace(window_samples=total, window_steps=steps, window_log_decay=passed)
    decay = 1 - bias_correction(passed)
    second = [state["exp_avg_sq"] for state in states]
    torch._foreach_div_(sums, total)
    fold_(second, sums, decay)
    weight = noise_weight(total / reference_batch, steps)
    if weight > 0:
        torch._foreach_div_(squares, total)
        torch._foreach_addcmul_(squares, sums, sums, -1)
        torch._foreach_clamp_min_(squares, 0)
        torch._foreach_add_(second, squares, alpha=(1 - decay) * weight)
    for state in states:
        del state["window_sum"], state["window_squares"]
    return clock._replace(
        log_decay2=clock.log_decay2 + passed, window_samples=0.0, window_steps=0, window_log_decay=0.0
    )


def second_so_far(states: Sequence[MutableMapping[str, Any]], clock: Clock) -> Tensors:
    r"""Return v with the open window folded in for now: exp(L) v + (1 - exp(L)) (S/N)^2, L the window's log-decay.

    v itself waits for the full window, but what divides the step must know the step's own gradient: where v is stale
    and small, a new gradient would otherwise move the weights without bound. (S/N)^2 still carries the noise of fewer
    than B_ref samples, which adds about 1 - beta2 (at the reference batch) of the noise's part of v.

    Args:
        states: with exp_avg_sq and window_sum.
        clock: the numbers of these parameters, with an open window.

    Returns:
        New tensors of the parameters' shapes.
    """
    gathered = bias_correction(clock.window_log_decay)
    sums = [state["window_sum"] for state in states]
    second = torch._foreach_mul([state["exp_avg_sq"] for state in states], 1 - gathered)
    torch._foreach_addcmul_(second, sums, sums, gathered / clock.window_samples**2)
    return second
