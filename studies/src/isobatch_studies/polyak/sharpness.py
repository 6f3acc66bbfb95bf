"""How wide is the place where weights sit: loss under random perturbations, and the largest Hessian eigenvalue."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isobatch.verify.workers import Job

SIZES, DRAWS, POWER, SAMPLES = (0.01, 0.02, 0.05, 0.1), 6, 15, 384
Loss = Callable[[nn.Module], Tensor]


@dataclass
class Sharpness:
    """Raw and averaged weights at the end of one run.

    Args:
        arm: name of the run.
        seed: of its initial weights.
        rise: model -> size of the perturbation -> rise of the training loss, the mean over draws.
        eigenvalue: model -> largest Hessian eigenvalue of the training loss.
        metrics: model -> metric -> held-out value.
    """

    arm: str
    seed: int
    rise: dict[str, dict[str, float]] = field(default_factory=dict)
    eigenvalue: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


def measure(job: Job) -> Sharpness:
    """Train a run to its end and look around its raw and its averaged weights.

    Args:
        job: the run; a job whose name ends in "taught" gives its metrics only.

    Returns:
        The figures.
    """
    from isobatch.tasks import make_run
    from isobatch.train import Device, Trainer

    device = Device.parse(job.device)
    trainer = Trainer(make_run(job.recipe, job.seed), job.recipe, order_seed=job.order_seed, device=device)
    trainer.train_to(job.stops[-1])
    found = Sharpness(job.arm, job.seed, metrics=trainer.evaluate())
    if job.arm.endswith("taught") or trainer.average is None:
        return found
    pixels, labels = trainer.run.samples[torch.arange(SAMPLES) * len(trainer.run.samples) // SAMPLES]
    x, model = pixels.float() / 255, trainer.run.model
    _look(found, "raw", model, x, labels, job.seed)
    with trainer.average.applied(model):
        _look(found, "average", model, x, labels, job.seed)
    return found


def _look(found: Sharpness, name: str, model: nn.Module, x: Tensor, labels: Tensor, seed: int) -> None:
    from isobatch_studies.tasks.probe import clean_statistics

    def loss(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(x), labels)

    model.eval()
    with clean_statistics(model, (x * 255).to(torch.uint8), lambda net, pixels: net(pixels)):
        found.rise[name] = {f"{size:g}": rise(loss, model, size, seed) for size in SIZES}
        found.eigenvalue[name] = largest_eigenvalue(loss, model, seed)
    model.train()


@torch.no_grad()
def rise(loss: Loss, model: nn.Module, size: float, seed: int) -> float:
    """Return how much a loss rises when weights move in random directions, filter by filter.

    Each row w of a parameter moves by size * |w| u, u of unit length, so that scales which a normalisation undoes do
    not count.

    Args:
        loss: of the model.
        model: put back afterwards.
        size: share of each row's length.
        seed: of the directions; the same ones for raw and averaged weights.

    Returns:
        Mean rise over the draws.

    References:
        arXiv 1712.09913 (filter normalisation).
    """
    kept = [(p, p.clone()) for p in model.parameters()]
    generator, base, total = torch.Generator().manual_seed(seed), float(loss(model)), 0.0
    for _ in range(DRAWS):
        for parameter, before in kept:
            step = torch.randn(before.shape, generator=generator).to(before)
            rows, flat = before.reshape(len(before), -1), step.reshape(len(before), -1)
            scale = rows.norm(dim=1, keepdim=True) / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
            parameter.copy_(before + size * (flat * scale).view_as(before))
        total += float(loss(model)) - base
    for parameter, before in kept:
        parameter.copy_(before)
    return total / DRAWS


def largest_eigenvalue(loss: Loss, model: nn.Module, seed: int) -> float:
    """Return the Hessian's largest eigenvalue by power iteration with Hessian-vector products.

    Args:
        loss: of the model, twice differentiable.
        model: whose weights count.
        seed: of the first direction.

    Returns:
        The Rayleigh quotient after fifteen steps.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> x = torch.diag(torch.tensor([3.0, 1.0]))
        >>> round(largest_eigenvalue(lambda m: m(x).square().sum(), net, 0), 4)
        18.0
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator, value = torch.Generator().manual_seed(seed), 0.0
    v = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    with torch.enable_grad():
        slope = torch.autograd.grad(loss(model), parameters, create_graph=True)
        for _ in range(POWER):
            length = torch.stack([part.square().sum() for part in v]).sum().sqrt()
            v = [part / length for part in v]
            dot = torch.stack([(g * part).sum() for g, part in zip(slope, v, strict=True)]).sum()
            product = torch.autograd.grad(dot, parameters, retain_graph=True)
            value = float(sum((part * h).sum() for part, h in zip(v, product, strict=True)))
            v = [h.detach() for h in product]
    return value
