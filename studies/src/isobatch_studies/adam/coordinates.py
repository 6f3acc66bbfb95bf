"""Why the square root fails where the noise share says that it holds: the share, coordinate by coordinate.

`python -m isobatch_studies.adam.coordinates` prints the table for digits from batch 1, on a seed that no claim uses.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from isobatch.tasks import Run, make_run
from isobatch.train import Trainer
from isobatch_studies.adam.grid import reference
from isobatch_studies.claims import criteria

POINTS, KAPPAS, SEED = (0.02, 0.05, 0.1, 0.2, 0.4), (4, 16, 64), 100


@dataclass(frozen=True)
class Coordinates:
    """Noise shares of a model at one sample a step.

    Args:
        scalar: one share for the whole gradient, from sums of squares.
        weighted: mean of the coordinates' shares, each weighted by what it moves the loss.
        errors: kappa -> error of the square root's drift, with the same weights.
    """

    scalar: float
    weighted: float
    errors: dict[int, float]


def shares(mean: Tensor, square: Tensor) -> Coordinates:
    """Return shares and drift errors from the first two moments of one sample's gradient.

    f_i = 1 - G_i**2/S_i; the loss falls by G_i**2/sqrt(S_i) a step, and under the square root at kappa by
    1/sqrt(kappa(1 - f_i) + f_i) of that for every sample.

    Args:
        mean: G, shape (parameters,).
        square: S, the mean of squares, same shape.

    Returns:
        The figures.

    Example:
        >>> found = shares(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 9.0]))  # one coordinate has all the signal
        >>> found.scalar, found.weighted, found.errors[4]
        (0.9..., 0.0, -0.5)
    """
    mean, square = mean.double(), square.double().clamp_min(1e-24)
    share, weight = 1 - mean.square() / square, mean.square() / square.sqrt()
    weight = weight / weight.sum()
    errors = {k: float((weight / (k * (1 - share) + share).sqrt()).sum()) - 1 for k in KAPPAS}
    scalar = 1 - mean.square().sum() / square.sum()
    return Coordinates(float(scalar), float((weight * share).sum()), errors)


def measure(run: Run) -> Coordinates:
    """Return the figures of a run's model on all its training samples.

    Args:
        run: of a classifier; its samples are pairs of inputs and labels.

    Returns:
        The figures.
    """
    x, y = run.samples[torch.arange(len(run.samples))]
    weights = {name: value.detach() for name, value in run.model.named_parameters()}

    def loss(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(run.model, values, (one[None],)), label[None])

    found = vmap(grad(loss), (None, 0, 0))(weights, x, y).values()
    mean, square = (
        torch.cat([part(g.double()).flatten() for g in found])
        for part in (lambda g: g.mean(0), lambda g: g.square().mean(0))
    )
    return shares(mean, square)


def main() -> None:
    """Write the figures at points of the reference run to standard output, as Markdown."""
    recipe = reference("digits", 1, criteria("adam", "from-one")["grid"]["digits"])
    run = make_run(recipe, SEED)
    trainer = Trainer(run, recipe, order_seed=3)
    head = [
        "point of the run",
        "share of the sums",
        "share weighted by drift",
        *(f"error at kappa {k}" for k in KAPPAS),
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in POINTS:
        trainer.train_to(int(trainer.length * point))
        found = measure(run)
        errors = [f"{error:+.3f}" for error in found.errors.values()]
        lines.append("| " + " | ".join([f"{point:g}", f"{found.scalar:.4f}", f"{found.weighted:.4f}", *errors]) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
