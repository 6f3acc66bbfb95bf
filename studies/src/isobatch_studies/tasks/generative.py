"""An autoencoder and a variational autoencoder on digits: domains whose noise scale is known to misjudge the batch.

Losses are summed over the 64 pixels and averaged over samples, so that one sample's loss is a log-likelihood.
"""

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.plan import Recipe
from isobatch.tasks.folds import digits
from isobatch.tasks.metric import LOSS
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import whole

PIXELS = 64


class Autoencoder(nn.Module):
    """MLP 64-width-latent-width-64; logits of pixels.

    Args:
        width: hidden units.
        latent: units of the code.
        heads: outputs of the encoder for each unit of the code, 2 for mean and log variance.
    """

    def __init__(self, width: int, latent: int, heads: int = 1):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, heads * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, PIXELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 64) for images of the same shape."""
        return self.decoder(self.encoder(x))


class VAE(Autoencoder):
    """The same with a Gaussian code.

    Args:
        width: hidden units.
        latent: units of the code.
    """

    def __init__(self, width: int, latent: int):
        super().__init__(width, latent, heads=2)

    def forward(self, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the negative evidence bound of each image, shape (batch,); noise of shape (batch, latent)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if noise is None else noise
        logits = self.decoder(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + divergence


def _sizes(settings: Recipe) -> tuple[int, int]:
    width, latent = (whole(f"options.{n}", settings.options.get(n, d)) for n, d in (("width", 64), ("latent", 8)))
    return width, latent


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of an autoencoder: squared error of 64 pixels.

    Args:
        settings: the recipe; options.width (64), options.latent (8), and the data's options as for digits.
        seed: of the initial weights.

    Returns:
        The run.
    """
    data = digits(settings)
    with seeded(seed):
        model = Autoencoder(*_sizes(settings))

    def loss(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return (torch.sigmoid(net(batch[0])) - batch[0]).square().sum(1).mean()

    def metrics(net: nn.Module) -> dict[str, float]:
        return {"loss": float(loss(net, (data.held[0].to(device_of(net)),)))}

    return Run(model, TensorSamples(data.train[0]), loss, metrics, data.facts, declared={"loss": LOSS})


def make_vae(settings: Recipe, seed: int) -> Run:
    """Make a run of a variational autoencoder: Bernoulli pixels, a Gaussian code, the negative evidence bound.

    Args:
        settings: the recipe; options as in `make`.
        seed: of the initial weights.

    Returns:
        The run; held-out images meet the same noise at every evaluation.

    References:
        arXiv 1312.6114.
    """
    data = digits(settings)
    with seeded(seed):
        model = VAE(*_sizes(settings))
    with seeded(0):
        noise = torch.randn(len(data.held[0]), model.latent)

    def loss(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return net(batch[0]).mean()

    def metrics(net: nn.Module) -> dict[str, float]:
        where = device_of(net)
        return {"loss": float(net(data.held[0].to(where), noise.to(where)).mean())}

    return Run(model, TensorSamples(data.train[0]), loss, metrics, data.facts, declared={"loss": LOSS})
