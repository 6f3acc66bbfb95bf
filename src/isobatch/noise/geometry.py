r"""Geometries: which length of a gradient the noise scale is made of.

- euclidean: tr(Sigma)/|G|^2. Predicts the critical batch of SGD within an order of magnitude (1812.06162); 20 times off
  on autoencoders there, and far too small for language models trained with Adam (2505.23971).
- adam: the same after dividing gradients by sqrt(v) + eps. Stands for Adam's progress in Pollux (2008.12260); "mixed
  results" in 1812.06162, footnote 7.
- sign: |sigma|_1^2/|G|_1^2. Led the batch schedules of Signum and AdamW at 160M parameters (2602.03001); an adaptive
  run of AdamW at 1B ended worse than a constant batch there.
- `measure_hessian` (a probe, not a geometry of the running estimate): tr(H Sigma)/(G'HG). Beat euclidean on SVHN under
  SGD (1812.06162); little tried elsewhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isobatch.errors import InputError
from isobatch.gradients import local

Name = Literal["euclidean", "adam", "sign"]
NAMES: tuple[Name, ...] = ("euclidean", "adam", "sign")


@dataclass(frozen=True)
class Geometry:
    """A way to take lengths of gradients.

    Args:
        name: "euclidean", "adam" or "sign".
        optimizer: whose second moments "adam" divides by.

    Raises:
        InputError: another name, or "adam" without an optimizer.

    Example:
        >>> Geometry("sign").norm(torch.tensor([[3.0, -4.0]])).item()
        7.0
        >>> Geometry("euclidean").norm(torch.tensor([[3.0, -4.0]])).item()
        5.0
    """

    name: Name = "euclidean"
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(f"geometry={self.name!r} must be one of {', '.join(NAMES)}")
        if self.name == "adam" and self.optimizer is None:
            raise InputError('geometry="adam" divides by the second moments of an optimizer; give optimizer=')

    @property
    def by_coordinate(self) -> bool:
        """Whether sigma is needed coordinate by coordinate, which takes a buffer as large as the model."""
        return self.name == "sign"

    def weight(self, parameter: Tensor) -> Tensor | None:
        r"""Return what a parameter's gradients are multiplied by: 1/(sqrt(v) + eps), with v before this step.

        Args:
            parameter: any.

        Returns:
            A tensor of its shape; None for a factor of 1.

        Raises:
            InputError: an optimizer without second moments.
        """
        if self.name != "adam" or self.optimizer is None:
            return None
        state = self.optimizer.state.get(parameter, {})
        square = state.get("exp_avg_sq", state.get("square_avg"))
        square = square if square is None else local(square)
        if square is None:
            raise InputError(
                f"{type(self.optimizer).__name__} holds no second moment (exp_avg_sq, square_avg) for a parameter; "
                'geometry="adam" needs Adam, AdamW or RMSprop after their first step'
            )
        group = next(g for g in self.optimizer.param_groups if any(p is parameter for p in g["params"]))
        return 1 / (square / _correction(state, group)).sqrt_().add_(group.get("eps", 1e-8))

    @property
    def ready(self) -> bool:
        """Whether gradients can be measured yet: second moments exist after the optimizer's first step."""
        return self.name != "adam" or (self.optimizer is not None and len(self.optimizer.state) > 0)

    def norm(self, gradients: Tensor) -> Tensor:
        """Return the norm of each row: Euclidean, for "sign" the sum of absolute values.

        Args:
            gradients: already weighted; one gradient for each entry of axis 0.

        Returns:
            Shape (rows,), float32 or wider.
        """
        kind = gradients.dtype if gradients.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(gradients.flatten(1), self._order, dim=1, dtype=kind)

    def norms(self, gradients: list[Tensor]) -> Tensor:
        """Return the norms of several tensors, with one launch where the backend has one.

        Args:
            gradients: already weighted; at least one.

        Returns:
            float64, shape (tensors,).
        """
        wide = any(g.dtype == torch.float64 for g in gradients)
        return torch.stack(
            torch._foreach_norm(gradients, self._order, torch.float64 if wide else torch.float32)
        ).double()

    def additive(self, norms: Tensor) -> Tensor:
        """Return from norms of tensors what adds up over tensors: squares, for "sign" the norms themselves.

        Args:
            norms: any shape.

        Returns:
            The same shape.
        """
        return norms if self.by_coordinate else norms.square()

    def squared(self, sums: Tensor) -> Tensor:
        """Return squared norms from sums of what `additive` gave.

        Args:
            sums: any shape.

        Returns:
            The same shape.
        """
        return sums.square() if self.by_coordinate else sums

    @property
    def _order(self) -> int:
        return 1 if self.by_coordinate else 2


def _correction(state: dict, group: dict) -> float | Tensor:
    """Return the weight that the second moment has gathered; 1 for optimizers that do not correct it."""
    if "exp_avg_sq" not in state or "betas" not in group:
        return 1.0
    if "log_decay2" in state:
        return -math.expm1(state["log_decay2"]) or 1.0
    if "step" not in state:
        return 1.0
    return 1 - group["betas"][1] ** (step.double() if isinstance(step := state["step"], Tensor) else step)


def gaussian_root(freedom: Tensor) -> Tensor:
    r"""Return E sqrt(chi^2_k / k): how much the root of a sample variance falls short for normal data.

    Args:
        freedom: k, positive.

    Returns:
        sqrt(2/k) Gamma((k+1)/2)/Gamma(k/2), in (0, 1).

    Example:
        >>> [round(x, 4) for x in gaussian_root(torch.tensor([1.0, 100.0])).tolist()]
        [0.7979, 0.9975]
    """
    return (2 / freedom).sqrt() * ((freedom + 1) / 2).lgamma().sub((freedom / 2).lgamma()).exp()
