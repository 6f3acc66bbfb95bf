"""Batch augmentation: M views of each sample in one update, at the learning rate of the batch without them.

    w' = w - eta * 1/(M*B) * sum over copies i and samples n of grad l(w; T_i(x_n), y_n)

The clock counts the B samples, not the M*B rows. Repeated augmentation differs: see data.RepeatedBatchSampler.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isobatch.augment.draws import Draws
from isobatch.augment.views import View, repeated, viewed
from isobatch.renamed import OldAttribute
from isobatch.units import whole

Passes = Literal["one", "copies"]


@dataclass(frozen=True)
class BatchAugmentation:
    """Views of each sample as rows of one pass, or as one pass a view.

    Without batch norm both give the same gradient. With it, "one" lets batch norm see all M*B rows, and "copies" a
    chunk of B distinct samples for each view (ghost batch norm), whose statistics are its own.

    Args:
        view: from inputs and draws to inputs of the same shape.
        views: M, at least 1.
        passes: one, or copies (accumulated).
        seed: of the views.

    Raises:
        InputError: views below 1, or a negative seed.

    Example:
        >>> from isobatch.augment import identity
        >>> twice = BatchAugmentation(identity, views=2)
        >>> twice.rows(torch.tensor([1.0, 2.0]), torch.arange(2), 0).tolist()
        [1.0, 2.0, 1.0, 2.0]

    References:
        arXiv 1901.09335 (copies together, or in chunks of distinct samples).
    """

    view: View
    views: int = 1
    passes: Passes = "one"
    seed: int = 0

    def __post_init__(self) -> None:
        whole("views", self.views)
        whole("seed", self.seed, 0)

    @property
    def count(self) -> int:
        """How many batches one batch of samples becomes: 1, or M of them."""
        return 1 if self.passes == "one" else self.views

    def rows(self, batch: Any, positions: Tensor, number: int) -> Any:
        """Return one of the batches that go through the model: M*n rows, or the n rows of one view.

        The mean of their mean losses is the loss of the update.

        Args:
            batch: n samples.
            positions: int64 tensor of shape (n,), their places in the sample order.
            number: which one, in [0, count).

        Returns:
            The batch, copy-major.

        Raises:
            InputError: a batch without a tensor of inputs, or a view that changes its shape.
        """
        copies = torch.arange(self.views) if self.passes == "one" else torch.tensor([number])
        draws = Draws(self.seed, positions.repeat(len(copies)), copies.repeat_interleave(len(positions)))
        return viewed(repeated(batch, len(copies)), self.view, draws)

    turn, turns = OldAttribute("rows"), OldAttribute("count")


class ViewAverage(nn.Module):
    """A model that answers with the mean of its outputs over views of the input, for evaluation.

    It may stand in for the model wherever a metric asks for outputs of shape (rows, ...).

    Args:
        model: the model.
        view: as in training, or another one.
        views: how many to average.
        of: outputs as they are ("logits"), or the logarithm of the mean softmax ("probabilities").
        seed: of the views; the same inputs in the same order get the same views.

    Raises:
        InputError: views below 1.

    Example:
        >>> from isobatch.augment import identity
        >>> model = nn.Linear(4, 2)
        >>> x = torch.ones(3, 4)
        >>> bool(torch.allclose(ViewAverage(model, identity, views=2)(x), model(x)))
        True

    References:
        arXiv 1901.09335 (the official code averages outputs over duplicates when it evaluates).
    """

    def __init__(
        self,
        model: nn.Module,
        view: View,
        views: int,
        *,
        of: Literal["logits", "probabilities"] = "logits",
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.view, self.views, self.of = model, view, whole("views", views), of
        self.seed = whole("seed", seed, 0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the averaged outputs.

        Args:
            inputs: rows.

        Returns:
            Outputs of the model's shape.
        """
        rows = torch.arange(len(inputs))
        copies = (torch.full_like(rows, copy) for copy in range(self.views))
        made = [self.model(viewed(inputs, self.view, Draws(self.seed, rows, copy))) for copy in copies]
        if self.of == "probabilities":
            return torch.stack([outputs.softmax(1) for outputs in made]).mean(0).log()
        return torch.stack(made).mean(0)
