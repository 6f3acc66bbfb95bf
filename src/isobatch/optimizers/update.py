"""One update of parameters that share their numbers: what tells the forms apart, and the arithmetic of a step."""

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from isobatch.gradients import local, own_gradient
from isobatch.optimizers.second_moment import (
    NoiseForm,
    Tensors,
    bias_correction,
    fold_,
    fold_chunks_,
    log_decay,
    noise_above_mean_,
    noise_weight,
    reduced_square,
    spread,
)
from isobatch.optimizers.window import Clock, fold_window, second_so_far

_LEAST_HALF = 2.0**-24


@dataclass(frozen=True)
class Form:
    """What tells one invariant optimizer from another.

    Args:
        decoupled: weight decay shrinks the weights (AdamW) instead of joining the gradient (L2).
        corrected: whether the second moment is divided by the weight it has gathered.
        decays: (beta1, beta2) of a parameter group.
        buffers: names of the state tensors that a parameter of that group needs.
        move: changes the weights, given parameters, gradients, roots, their states, group, learning rate and clock;
            roots and rate carry the second moment's bias correction.
    """

    decoupled: bool
    corrected: bool
    decays: Callable[[dict[str, Any]], tuple[float, float]]
    buffers: Callable[[dict[str, Any]], tuple[str, ...]]
    move: Callable[..., None]


@dataclass(frozen=True)
class StepBatch:
    """One step's batch.

    Args:
        samples: W.
        chunks: k.
        reference: B_ref.
        scale: what makes q of the summed squares.
        noise: how finely the noise is kept.
        keep: whether a variance measured now is kept for later steps.
        narrow: whether some weights are float16, in which an eps of 1e-8 is 0.
    """

    samples: float
    chunks: int
    reference: int
    scale: float
    noise: NoiseForm
    keep: bool
    narrow: bool = False

    @property
    def kappa(self) -> float:
        """W / B_ref."""
        return self.samples / self.reference


def update(
    form: Form,
    group: dict[str, Any],
    parameters: Tensors,
    states: Sequence[MutableMapping[str, Any]],
    clock: Clock,
    batch: StepBatch,
    squares: Tensors | None,
) -> None:
    """Apply one step to parameters that share their numbers.

    Args:
        form: which optimizer.
        group: their parameter group.
        parameters: with gradients.
        states: one for each, with exp_avg_sq.
        clock: their numbers.
        batch: this step's batch.
        squares: sums of squared chunk gradients, used up here; None where this step needs or has none.
    """
    gradients = gradients_of(parameters)
    parameters = [local(parameter) for parameter in parameters]
    shrink, rate = group["weight_decay"], float(group["lr"])
    if form.decoupled and shrink != 0:
        torch._foreach_mul_(parameters, 1 - rate * shrink)
    inputs = gradients
    if not form.decoupled and shrink != 0:
        inputs = torch._foreach_add(gradients, parameters, alpha=shrink)
    logs = [log_decay(beta) for beta in form.decays(group)]
    clock = clock._replace(log_decay1=clock.log_decay1 + logs[0])
    if batch.kappa < 1 or clock.window_steps > 0:
        clock = fold_window(
            states, inputs, clock, samples=batch.samples, reference_batch=batch.reference, log_decay=logs[1]
        )
    else:
        fold_batch(states, inputs, gradients, batch, squares, decay=form.decays(group)[1])
        clock = clock._replace(log_decay2=clock.log_decay2 + logs[1])
    roots, scale = _roots(form, states, clock)
    _add_eps(roots, group["eps"] * scale, narrow=batch.narrow)
    form.move(parameters, inputs, roots, states, group, rate * scale, clock)
    numbers = clock._asdict()
    for state in states:
        state.update(numbers)


def _add_eps(roots: Tensors, eps: float, *, narrow: bool) -> None:
    """Add eps; in float16 at least its smallest number, or a weight that never had a gradient would become 0 / 0."""
    if not narrow:
        torch._foreach_add_(roots, eps)
        return
    for root in roots:
        root.add_(max(eps, _LEAST_HALF) if eps > 0 and root.dtype == torch.float16 else eps)


def fold_batch(
    states: Sequence[MutableMapping[str, Any]],
    inputs: Tensors,
    gradients: Tensors,
    batch: StepBatch,
    squares: Tensors | None,
    *,
    decay: float,
) -> None:
    """Fold v = beta v + (1-beta) (input^2 + noise) for a batch of at least the reference.

    The noise is taken from the gradients alone: an L2 term shifts every chunk alike.

    Args:
        states: with exp_avg_sq; "variance" (s^2 per sample) is read, and written where it is to be kept.
        inputs: gradients with their L2 term.
        gradients: m.
        batch: this step's batch.
        squares: as for update.
        decay: beta.
    """
    second = [state["exp_avg_sq"] for state in states]
    if batch.kappa == 1:
        fold_(second, inputs, decay)
        return
    gap = 1 / batch.reference - 1 / batch.samples
    if squares is None:
        fold_(second, inputs, decay)
        noise = spread(_kept_variances(states, gradients, batch.noise), gradients, batch.noise)
        torch._foreach_add_(second, noise, alpha=(1 - decay) * gap)
        return
    weight = noise_weight(batch.kappa, batch.chunks)
    if batch.noise == "coordinate" and not batch.keep and inputs is gradients and weight <= 1:
        fold_chunks_(second, gradients, squares, decay=decay, scale=batch.scale, weight=weight)
        return
    noise_above_mean_(squares, gradients, scale=batch.scale, form=batch.noise)
    if batch.keep:
        torch._foreach_mul_(squares, batch.samples / (batch.chunks - 1))
        for state, variance in zip(states, squares, strict=True):
            state["variance"] = variance.to(state["exp_avg_sq"].dtype)
        weight = gap
    fold_(second, inputs, decay)
    torch._foreach_add_(second, spread(squares, gradients, batch.noise), alpha=(1 - decay) * weight)


def gradients_of(parameters: Tensors) -> Tensors:
    """Return this rank's parts of the gradients of parameters that have one.

    Args:
        parameters: any.

    Returns:
        Those `.grad` that are not None.
    """
    return [gradient for parameter in parameters if (gradient := own_gradient(parameter)) is not None]


def _kept_variances(states: Sequence[MutableMapping[str, Any]], gradients: Tensors, form: NoiseForm) -> Tensors:
    """Return the kept variances; a parameter that came in since they were measured has 0 until the next measurement."""
    kept = [state.get("variance") for state in states]
    return [
        torch.zeros_like(reduced_square(gradient, form)) if variance is None else variance
        for variance, gradient in zip(kept, gradients, strict=True)
    ]


def _roots(form: Form, states: Sequence[MutableMapping[str, Any]], clock: Clock) -> tuple[Tensors, float]:
    """Return sqrt(v), with an open window folded in, and what bias correction divides it by.

    lr / (sqrt(v)/c + eps) = c lr / (sqrt(v) + c eps), which saves a pass over the parameters.
    """
    if clock.window_steps > 0:
        roots = second_so_far(states, clock)
        torch._foreach_sqrt_(roots)
    else:
        roots = torch._foreach_sqrt([state["exp_avg_sq"] for state in states])
    gathered = bias_correction(clock.log_decay2 + clock.window_log_decay)
    return roots, math.sqrt(gathered) if form.corrected else 1.0
