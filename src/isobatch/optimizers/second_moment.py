r"""The second moment that a reference batch would have, as plain functions.

A chunk of n samples has the mean gradient g_i with E g_i = G and, per coordinate, Var g_i = s^2/n. With k chunks, W =
sum n_i samples, m = sum n_i g_i / W (the batch's gradient) and q = sum n_i g_i^2 / W (the mean square):

    E q - m^2 = (k-1) s^2 / W,    so    v_in = m^2 + (kappa-1)/(k-1) (q - m^2),    kappa = W/B_ref,

has the expectation G^2 + s^2/B_ref for any sizes of chunk. q >= m^2 (Cauchy and Schwarz), so v_in >= m^2 >= 0 whenever
the batch is at least the reference; chunks of exactly B_ref samples give kappa = k and v_in = q.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from isobatch.errors import InputError

NoiseForm = Literal["coordinate", "factored", "row", "tensor"]
Tensors = list[Tensor] | tuple[Tensor, ...]
_SMALLEST_DECAY = 1e-300


def noise_weight(kappa: float, chunks: int) -> float:
    r"""Return the factor of q - m^2 that makes v_in unbiased.

    (kappa - 1) / (k - 1); 0 at kappa = 1, where the batch is the reference and needs no chunks.

    Args:
        kappa: W / B_ref, at least 1.
        chunks: k, how many chunk gradients were squared.

    Returns:
        The factor, at least 0.

    Raises:
        InputError: kappa below 1, or a single chunk beside kappa > 1 (its noise cannot be seen).

    Example:
        >>> noise_weight(16, 16), noise_weight(16, 4), noise_weight(1, 1)
        (1.0, 5.0, 0.0)

    References:
        arXiv 2402.18824 (chunks of the reference size); other sizes derived.
    """
    if not kappa >= 1:
        raise InputError(f"kappa={kappa:g} must be at least 1; sum steps until a reference batch is full")
    if kappa == 1:
        return 0.0
    if chunks < 2:
        raise InputError(
            f"a batch of {kappa:g} reference batches came as {chunks} chunk; its noise cannot be seen: "
            "give at least 2 chunks (micro-batches, ranks, or isobatch.optimizers.split_backward)"
        )
    return (kappa - 1) / (chunks - 1)


def reference_square(mean: Tensor, mean_square: Tensor, *, kappa: float, chunks: int) -> Tensor:
    r"""Return v_in, the squared gradient that a reference batch would have in expectation.

    v_in = m^2 + (kappa-1)/(k-1) max(q - m^2, 0). The maximum only catches rounding: q >= m^2 exactly.

    Args:
        mean: m, the gradient of the whole batch (mean reduction over samples or tokens).
        mean_square: q, the sample-weighted mean of the squared chunk gradients.
        kappa: W / B_ref, at least 1.
        chunks: k, at least 2 unless kappa is 1.

    Returns:
        v_in, never negative.

    Raises:
        InputError: as noise_weight.

    Example:
        >>> chunks = torch.tensor([1.0, 3.0])
        >>> float(reference_square(chunks.mean(), chunks.square().mean(), kappa=2, chunks=2))
        5.0

    References:
        arXiv 2402.18824.
    """
    weight = noise_weight(kappa, chunks)
    return mean.square() + weight * (mean_square - mean.square()).clamp_min(0)


def log_decay(decay: float) -> float:
    """Return ln(decay), finite also for a decay of 0, so that it can be summed and stored.

    Args:
        decay: beta in [0, 1).

    Returns:
        The logarithm.

    Example:
        >>> round(log_decay(0.5), 6)
        -0.693147
    """
    return math.log(max(decay, _SMALLEST_DECAY))


def bias_correction(total_log_decay: float) -> float:
    """Return 1 - product of all decays so far, from the sum of their logarithms.

    -expm1(sum ln beta_t): the betas may change at every step; with a constant beta it is torch's 1 - beta**step.

    Args:
        total_log_decay: the sum of ln beta_t, at most 0.

    Returns:
        The weight that the average has gathered, in [0, 1].

    Example:
        >>> round(bias_correction(2 * log_decay(0.9)), 12)
        0.19
    """
    return -math.expm1(total_log_decay)


def reduced_square(tensor: Tensor, form: NoiseForm) -> Tensor:
    """Return the squares of a tensor as the form keeps them.

    Args:
        tensor: a gradient; axis 0 is the row, the other axes together the column. Of a vector every form but "tensor"
            keeps each element.
        form: "coordinate" (all), "factored" (the sums of the rows, then those of the columns, in one vector), "row"
            (sums of the rows, axes kept) or "tensor" (one sum, axes kept).

    Returns:
        The squares.

    Example:
        >>> matrix = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> reduced_square(matrix, "row").flatten().tolist(), reduced_square(matrix, "factored").tolist()
        ([25.0, 1.0], [25.0, 1.0, 9.0, 17.0])
    """
    if form == "coordinate" or (form != "tensor" and tensor.ndim < 2):
        return tensor.square()
    if form == "tensor":
        flat = tensor.flatten()
        return torch.dot(flat, flat).reshape([1] * tensor.ndim)
    if form == "row":
        return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True).square()
    squares = tensor.flatten(1).square()
    return torch.cat([squares.sum(1), squares.sum(0)])


def noise_above_mean_(squares: Tensors, means: Tensors, *, scale: float, form: NoiseForm) -> None:
    """Turn summed squares into max(scale * squares - reduced m^2, 0), in place.

    Args:
        squares: sums of squared chunk gradients, reduced by form; scale * squares is q.
        means: m.
        scale: what makes q of them.
        form: how squares are reduced.
    """
    torch._foreach_mul_(squares, scale)
    if form == "coordinate":
        torch._foreach_addcmul_(squares, means, means, -1)
    else:
        torch._foreach_sub_(squares, [reduced_square(mean, form) for mean in means])
    torch._foreach_clamp_min_(squares, 0)


def spread(noise: Tensors, means: Tensors, form: NoiseForm) -> Tensors:
    r"""Return the noise per coordinate from what the form keeps of it.

    factored: row_i column_j / total, which is exact where the noise is a product of the two, as E delta_i^2 x_j^2 is
    for independent factors in a linear layer. row, tensor: the sum shared out in proportion to m^2, that is one noise
    share for all its coordinates; where m is 0 everywhere there is none.

    Args:
        noise: reduced by form.
        means: m.
        form: how noise is reduced.

    Returns:
        Tensors of the shapes of means.

    Example:
        >>> spread([torch.tensor([[10.0]])], [torch.tensor([[1.0, 3.0]])], "row")[0]
        tensor([[1., 9.]])
        >>> spread([torch.tensor([2.0, 6.0, 4.0, 4.0])], [torch.ones(2, 2)], "factored")[0]
        tensor([[1., 1.],
                [3., 3.]])

    References:
        arXiv 1804.04235 (Adafactor: a second moment kept as the sums of its rows and columns).
    """
    if form == "coordinate":
        return noise
    pairs = zip(noise, means, strict=True)
    if form == "factored":
        return [part if mean.ndim < 2 else _outer(part, mean) for part, mean in pairs]
    own = [reduced_square(mean, form) for mean in means]
    shares = [torch.where(total > 0, part / total, 0) for part, total in zip(noise, own, strict=True)]
    squares = torch._foreach_mul(means, means)
    torch._foreach_mul_(squares, shares)
    return squares


def _outer(sums: Tensor, like: Tensor) -> Tensor:
    """Return row_i column_j / total in the shape of like, 0 where the total is 0."""
    rows, columns = sums[: len(like)], sums[len(like) :]
    total = rows.sum()
    return torch.outer(rows, torch.where(total > 0, columns / total, 0)).view_as(like)


def fold_(second: Tensors, means: Tensors, decay: float) -> None:
    """Fold in place v = beta v + (1-beta) m^2: a batch that is the reference itself.

    Args:
        second: v.
        means: m.
        decay: beta.
    """
    torch._foreach_mul_(second, decay)
    torch._foreach_addcmul_(second, means, means, 1 - decay)


def fold_chunks_(
    second: Tensors,
    means: Tensors,
    squares: Tensors,
    *,
    decay: float,
    scale: float,
    weight: float,
) -> None:
    """Fold in place v = beta v + (1-beta) ((1-w) m^2 + w q), for w <= 1: every term is at least 0.

    Args:
        second: v.
        means: m.
        squares: per coordinate; scale * squares is q.
        decay: beta.
        scale: what makes q of squares.
        weight: w = (kappa-1)/(k-1), in [0, 1]; 1 where the chunks are reference batches.
    """
    torch._foreach_mul_(second, decay)
    if weight < 1:
        torch._foreach_addcmul_(second, means, means, (1 - decay) * (1 - weight))
    torch._foreach_add_(second, squares, alpha=(1 - decay) * weight * scale)
