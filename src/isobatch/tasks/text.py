"""Text: the bytes of the running Python's own standard library, and a small transformer.

The corpus is every `.py` file of the standard library (no tests, no site-packages) in sorted order; every tenth file
is held out. It moves with the version of Python, so its hash stands beside every result.
"""

import hashlib
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.tasks.metric import LOSS, Metric
from isobatch.tasks.task import Run, TensorSamples, device_of, seeded
from isobatch.units import whole

WINDOWS, HELD_OUT_WINDOWS, CONTEXT = 8192, 256, 64
HEADS = 4
SHORTEST, IGNORED = 8, -100
DECLARED = {"loss": LOSS, "validation_loss": Metric("ratio", better="lower")}
_SKIP = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "ensurepip", "turtledemo"}


@cache
def corpus(context: int = CONTEXT, windows: int = WINDOWS) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return training windows, held-out windows and the hash of the corpus.

    Args:
        context: bytes that a window predicts.
        windows: to train on, spread evenly over the corpus.

    Returns:
        uint8 tensors of shapes (windows, context + 1) and (256, context + 1), and a SHA-256.

    Raises:
        InputError: a Python without its standard library's sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not _SKIP & set(p.relative_to(root).parts))
    train = b"".join(p.read_bytes() for i, p in enumerate(files) if i % 10)
    held = b"".join(p.read_bytes() for i, p in enumerate(files) if i % 10 == 0)
    if min(len(train) // windows, len(held) // HELD_OUT_WINDOWS) <= context:
        raise InputError(f"{root} holds {len(train)} bytes of .py files, too few for {windows} windows of {context}")
    digest = hashlib.sha256(train + held).hexdigest()
    return _windows(train, windows, context), _windows(held, HELD_OUT_WINDOWS, context), digest


def _windows(text: bytes, count: int, context: int) -> torch.Tensor:
    stride = len(text) // count
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    starts = torch.arange(count)[:, None] * stride
    return data[starts + torch.arange(context + 1)]


class Transformer(nn.Module):
    """Causal transformer over bytes with pre-norm blocks.

    Args:
        width: of the residual stream.
        layers: blocks.
        context: longest window.
        heads: attention heads.
        biases: whether linear layers have biases and norms weights; without them every parameter is a matrix.
    """

    def __init__(
        self,
        width: int = 48,
        layers: int = 2,
        context: int = CONTEXT,
        heads: int = HEADS,
        biases: bool = True,
    ):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, biases) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=biases)
        self.head = nn.Linear(width, 256, biases)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, time, 256) for bytes of shape (batch, time)."""
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside the residual stream; causal unless a mask is given.

    Args:
        width: of the residual stream.
        heads: attention heads.
        biases: whether linear layers have biases and norms weights.
    """

    def __init__(self, width: int, heads: int, biases: bool = True):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=biases) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, biases), nn.Linear(width, width, biases)
        self.up, self.down = nn.Linear(width, 4 * width, biases), nn.Linear(4 * width, width, biases)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return x plus attention and MLP, shape (batch, time, width); `mask` says what each query may attend to."""
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LSTM(nn.Module):
    """An LSTM over bytes, one layer, with an embedding before and a linear layer after it.

    Args:
        width: hidden units; the embedding has as many.
    """

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, time, 256) for bytes of shape (batch, time)."""
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states)


def make_lstm(settings: Recipe, seed: int) -> Run:
    """Make a run of an LSTM language model on the same windows.

    Args:
        settings: the recipe; options.width (64) sets the hidden units; options.validation, options.held and
            options.windows are as in `make`.
        seed: of the initial weights.

    Returns:
        The run; one sample is one window of 64 bytes.
    """
    width = whole("options.width", settings.options.get("width", 64))
    with seeded(seed):
        model = LSTM(width)
    return _run(settings, model)


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of a byte transformer on the standard library.

    Args:
        settings: the recipe; options.width (48) and options.layers (2) set the model, options.biases = false leaves
            only matrices in it (Muon), options.held (256) the windows held out, the first so many of them. With
            options.validation = true "loss" is that of the odd held-out windows, and "validation_loss" that of the
            even ones chooses settings. options.windows (8192) is how many are trained on. options.ragged = true
            cuts each training window to between 8 and 64 bytes, the rest is padding that the loss leaves out;
            options.padded = true then lets the clock count 64 for each.
        seed: of the initial weights.

    Returns:
        The run; one sample is one window of 64 bytes, and of as many tokens.
    """
    width, layers = (whole(f"options.{n}", settings.options.get(n, d)) for n, d in (("width", 48), ("layers", 2)))
    if width % HEADS:
        raise InputError(f"options.width={width} must be a multiple of {HEADS}, the attention heads")
    biases = settings.options.get("biases", True)
    if not isinstance(biases, bool):
        raise InputError(f"options.biases={biases!r} must be true or false")
    with seeded(seed):
        model = Transformer(width, layers, biases=biases)
    return _run(settings, model)


def _run(settings: Recipe, model: nn.Module) -> Run:
    windows, ragged = settings.options.get("windows", WINDOWS), settings.options.get("ragged", False)
    windows = whole("options.windows", windows, WINDOWS if ragged else 1)
    if ragged and windows != WINDOWS:
        raise InputError(f"options.windows={windows} must be {WINDOWS} where options.ragged is true")
    train, held, digest = corpus(windows=windows)
    count = whole("options.held", settings.options.get("held", HELD_OUT_WINDOWS))
    if count > HELD_OUT_WINDOWS:
        raise InputError(f"options.held={count} must be at most {HELD_OUT_WINDOWS}, the windows held out")
    held = held[:count]
    parts = {"loss": held.long()}
    if settings.options.get("validation", False):
        parts = {"loss": held[1::2].long(), "validation_loss": held[::2].long()}

    def metrics(net: nn.Module) -> dict[str, float]:
        return {name: float(_mean_loss(net, (part.to(device_of(net)),))) for name, part in parts.items()}

    facts, lengths = {"corpus_sha256": digest}, torch.full((windows,), CONTEXT)
    if not ragged:
        return Run(model, TensorSamples(train), _mean_loss, metrics, facts, declared=DECLARED, lengths=lengths)
    real = ragged_lengths()
    counts: Callable[[Any], float] | None = _real_tokens
    if not settings.options.get("padded", False) and settings.batch.unit == "tokens":
        lengths, counts = real, None  # what the clock counts is what the mean runs over
    samples = TensorSamples(train, real)
    return Run(model, samples, _mean_loss, metrics, facts, counts=counts, declared=DECLARED, lengths=lengths)


def ragged_lengths() -> torch.Tensor:
    """Return how many bytes each window predicts where the text is ragged: 8 to 64, the same for every run.

    Returns:
        int64 tensor of shape (8192,).
    """
    return torch.randint(SHORTEST, CONTEXT + 1, (WINDOWS,), generator=torch.Generator().manual_seed(0))


def _real_tokens(batch: tuple[torch.Tensor, ...]) -> float:
    return float(batch[1].sum())


def _mean_loss(net: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean over the predicted bytes, those of the padding left out."""
    tokens = batch[0].long()
    wanted = tokens[:, 1:]
    if len(batch) > 1:
        places = torch.arange(wanted.shape[1], device=wanted.device)
        wanted = wanted.masked_fill(places >= batch[1][:, None], IGNORED)
    return F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
