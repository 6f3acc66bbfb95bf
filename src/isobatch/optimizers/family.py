"""The invariant forms of AdamW, Adam and RMSprop: what each does with the shared second moment."""

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any, final

import torch

from isobatch.gradients import Ranks
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.optimizers.second_moment import NoiseForm, Tensors, bias_correction
from isobatch.optimizers.settings import decay, decays
from isobatch.optimizers.update import Form
from isobatch.optimizers.window import Clock


def move_adam(
    parameters: Tensors,
    gradients: Tensors,
    roots: Tensors,
    states: Sequence[MutableMapping[str, Any]],
    group: dict[str, Any],
    lr: float,
    clock: Clock,
) -> None:
    """Adam's move: m = beta1 m + (1-beta1) g; theta = theta - lr m_hat / (sqrt(v_hat) + eps).

    Args:
        parameters: theta.
        gradients: g, with the L2 term where there is one.
        roots: sqrt(v) + c eps, with c^2 = 1 - the product of all beta2.
        states: with exp_avg.
        group: with betas.
        lr: c times the learning rate.
        clock: with the log-decay that corrects m.
    """
    first = [state["exp_avg"] for state in states]
    torch._foreach_lerp_(first, gradients, 1 - group["betas"][0])
    torch._foreach_addcdiv_(parameters, first, roots, -lr / bias_correction(clock.log_decay1))


def move_rmsprop(
    parameters: Tensors,
    gradients: Tensors,
    roots: Tensors,
    states: Sequence[MutableMapping[str, Any]],
    group: dict[str, Any],
    lr: float,
    clock: Clock,
) -> None:
    """RMSprop's move: b = mu b + g / (sqrt(v) + eps); theta = theta - lr b.

    Args:
        parameters: theta.
        gradients: g, with its L2 term.
        roots: sqrt(v) + eps.
        states: with momentum_buffer where there is momentum.
        group: with momentum.
        lr: learning rate.
        clock: not used; RMSprop corrects no bias.
    """
    if group["momentum"] == 0:
        torch._foreach_addcdiv_(parameters, gradients, roots, -lr)
        return
    buffers = [state["momentum_buffer"] for state in states]
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_addcdiv_(buffers, gradients, roots)
    torch._foreach_add_(parameters, buffers, alpha=-lr)


def _adam_decays(group: dict[str, Any]) -> tuple[float, float]:
    return group["betas"]


def _adam_buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq")


def _rmsprop_decays(group: dict[str, Any]) -> tuple[float, float]:
    return group["momentum"], group["alpha"]


def _rmsprop_buffers(group: dict[str, Any]) -> tuple[str, ...]:
    return ("exp_avg_sq", "momentum_buffer") if group["momentum"] > 0 else ("exp_avg_sq",)


_ADAMW = Form(decoupled=True, corrected=True, decays=_adam_decays, buffers=_adam_buffers, move=move_adam)
_ADAM = Form(decoupled=False, corrected=True, decays=_adam_decays, buffers=_adam_buffers, move=move_adam)
_RMSPROP = Form(decoupled=False, corrected=False, decays=_rmsprop_decays, buffers=_rmsprop_buffers, move=move_rmsprop)


@final
class InvariantAdamW(InvariantOptimizer):
    r"""AdamW whose second moment is the one of a reference batch, at any batch size.

    m = beta1 m + (1-beta1) g,  v = beta2 v + (1-beta2) v_in,  theta = (1 - lr wd) theta - lr m_hat/(sqrt(v_hat) + eps),
    with v_in an unbiased estimate of the squared gradient of B_ref samples (see `second_moment`). So lr x kappa,
    betas**kappa, weight decay and eps unchanged keep the run when the batch grows by kappa, without the assumption of
    the square-root rule that noise dominates v. At kappa = 1 it is torch.optim.AdamW to rounding.

    Call backward once for each micro-batch, its loss scaled as for any accumulation, inside `chunk(samples)`, or give
    `micro_batch` and leave the loop as it is. Batches smaller than the reference are summed over steps (`window`).

    Args:
        params: as for any torch optimizer; 16-bit parameters keep 16-bit state, as in torch.
        lr: learning rate of the coming step.
        betas: decays of the coming step, at its batch.
        eps: added to the root of the second moment.
        weight_decay: decoupled, multiplied by lr.
        reference_batch: B_ref, the batch whose second moment is kept, in what `chunk` counts.
        micro_batch: samples of a full backward pass outside `chunk`, the shorter ones are seen in the input of the
            model; None where every pass is declared by it.
        noise: "coordinate" (one buffer more than AdamW), or the cheaper "factored" (sums of rows and columns), "row"
            and "tensor"; see `second_moment.spread`.
        variance_every: F; measure the noise at every F-th step only (denser early), and keep it in between.
        process_group: ranks that gradients are averaged over; None takes those of the DistributedDataParallel around
            the parameters, "alone" says that each rank trains for itself.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = InvariantAdamW([weight], lr=0.1, reference_batch=1)
        >>> for x in (1.0, 3.0):
        ...     with optimizer.chunk(samples=1):
        ...         (weight * x / 2).sum().backward()
        >>> optimizer.step()
        >>> round(float(optimizer.state[weight]["exp_avg_sq"]), 6)  # (1 + 9) / 2, not ((1 + 3) / 2)**2, times 1 - beta2
        0.005

    References:
        arXiv 2402.18824 (Wang and Aitchison, squares of micro-batches); other chunk sizes derived.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        reference_batch: int,
        micro_batch: int | None = None,
        noise: NoiseForm = "coordinate",
        variance_every: int = 1,
        process_group: Ranks = None,
    ):
        super().__init__(
            params,
            {"lr": lr, "betas": decays("betas", betas), "eps": eps, "weight_decay": weight_decay},
            _ADAMW,
            reference_batch=reference_batch,
            micro_batch=micro_batch,
            noise=noise,
            variance_every=variance_every,
            process_group=process_group,
        )


@final
class InvariantAdam(InvariantOptimizer):
    r"""Adam with coupled L2 decay and the second moment of a reference batch, at any batch size.

    g + wd theta takes the gradient's place in m and in v_in; the noise is that of the gradients alone. Otherwise as
    InvariantAdamW. At kappa = 1 it is torch.optim.Adam to rounding.

    Args:
        params: as for any torch optimizer.
        lr: learning rate of the coming step.
        betas: decays of the coming step, at its batch.
        eps: added to the root of the second moment.
        weight_decay: L2 factor.
        reference_batch: B_ref, in what `chunk` counts.
        micro_batch: samples of a full backward pass outside `chunk`, the shorter ones are seen in the input of the
            model; None where every pass is declared by it.
        noise: "coordinate", "factored", "row" or "tensor".
        variance_every: F, see InvariantAdamW.
        process_group: as for InvariantAdamW.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> InvariantAdam([torch.nn.Parameter(torch.ones(1))], reference_batch=8).reference_batch
        8

    References:
        arXiv 2402.18824; the coupled form derived.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        reference_batch: int,
        micro_batch: int | None = None,
        noise: NoiseForm = "coordinate",
        variance_every: int = 1,
        process_group: Ranks = None,
    ):
        super().__init__(
            params,
            {"lr": lr, "betas": decays("betas", betas), "eps": eps, "weight_decay": weight_decay},
            _ADAM,
            reference_batch=reference_batch,
            micro_batch=micro_batch,
            noise=noise,
            variance_every=variance_every,
            process_group=process_group,
        )


@final
class InvariantRMSprop(InvariantOptimizer):
    r"""RMSprop with the second moment of a reference batch, at any batch size.

    v = alpha v + (1-alpha) v_in, b = mu b + g/(sqrt(v) + eps), theta = theta - lr b; no bias correction, not centered.
    lr x kappa, alpha**kappa (and mu**kappa with its compensated lr) keep the run. At kappa = 1 it is
    torch.optim.RMSprop to rounding.

    Args:
        params: as for any torch optimizer.
        lr: learning rate of the coming step.
        alpha: decay of the second moment in the coming step.
        eps: added to the root of the second moment.
        weight_decay: L2 factor.
        momentum: mu of the coming step.
        reference_batch: B_ref, in what `chunk` counts.
        micro_batch: samples of a full backward pass outside `chunk`, the shorter ones are seen in the input of the
            model; None where every pass is declared by it.
        noise: "coordinate", "factored", "row" or "tensor".
        variance_every: F, see InvariantAdamW.
        process_group: as for InvariantAdamW.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> InvariantRMSprop([torch.nn.Parameter(torch.ones(1))], reference_batch=8).reference_batch
        8

    References:
        arXiv 2402.18824; without bias correction derived.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        *,
        reference_batch: int,
        micro_batch: int | None = None,
        noise: NoiseForm = "coordinate",
        variance_every: int = 1,
        process_group: Ranks = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": decay("alpha", alpha),
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": decay("momentum", momentum),
            },
            _RMSPROP,
            reference_batch=reference_batch,
            micro_batch=micro_batch,
            noise=noise,
            variance_every=variance_every,
            process_group=process_group,
        )
