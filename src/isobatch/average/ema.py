"""The exponential moving average of a model's weights, with its half-life in samples."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.tracks import Buffers, Tracks, match_names
from isobatch.average.weights import hold, plain
from isobatch.errors import InputError
from isobatch.units import finite, whole
from isobatch.units import half_life as half_life_of

AUTO_SPAN = 1 / 200


@final
class ModelEMA:
    r"""Exponential moving average of a model's weights, exact for any sequence of batch sizes.

    zeta <- 2**(-x) zeta + (1 - 2**(-x)) theta, x = samples / half-life: the EMA scaling rule rho**kappa. Call update()
    after the optimizer step (post-step order: the average reads the new weights).

    Args:
        model: the model, wrapped or bare; the average starts at its present weights.
        half_life: H in samples (or tokens: whatever update() counts).
        decay: rho per update at `batch_size`, instead of half_life.
        batch_size: reference batch of `decay`; with kind "hold" also the batch whose run is followed.
        kind: "plain", or "hold" (first-order hold), which keeps the previous weights too.
        dtype: in which the average is held; float32 holds float64 weights in float64.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        cadence: apply every m-th update with the exact exponent; "auto": once 1/200 of a half-life has passed.

    Raises:
        InputError: a setting outside its range, or not exactly one of half_life and decay.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> ema = ModelEMA(layer, half_life=100)
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(1.0)
        >>> ema.reset()
        >>> with torch.no_grad():
        ...     _ = layer.weight.fill_(3.0)
        >>> ema.update(samples=100)
        >>> ema.average()["weight"].item()
        2.0

    References:
        arXiv 2307.13813.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        half_life: float | None = None,
        decay: float | None = None,
        batch_size: float | None = None,
        kind: Literal["plain", "hold"] = "plain",
        dtype: torch.dtype = torch.float32,
        buffers: Buffers = "copy",
        cadence: int | Literal["auto"] = 1,
    ):
        if kind not in ("plain", "hold"):
            raise InputError(f'kind={kind!r} must be "plain" or "hold"')
        self.half_life = _half_life(half_life, decay, batch_size)
        self.batch_size = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
        self.kind = kind
        self.cadence = cadence if cadence == "auto" else whole("cadence", cadence)
        labels = ("average", "previous") if kind == "hold" else ("average",)
        self._tracks = Tracks(model, labels, dtype=dtype, buffers=buffers)
        self.seen: float = 0
        self._samples: float = 0
        self._halves = 0.0
        self._calls = 0

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: H in samples for this step alone, such as a momentum schedule averaged over it; inf for rho = 1.

        Raises:
            InputError: samples not positive, a bad half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; average and clock are left as they were.
        """
        size = finite("samples", samples, 0, open_low=True)
        halves = self._halves + _spans(size, self.half_life if half_life is None else half_life)
        calls = self._calls + 1
        self._tracks.refresh()
        due = halves >= AUTO_SPAN if self.cadence == "auto" else calls >= self.cadence
        if due:
            self._tracks.check_finite(self.seen + samples)
            self._apply(halves, self._samples + samples)
        self.seen += samples
        self._samples, self._halves, self._calls = (0, 0.0, 0) if due else (self._samples + samples, halves, calls)

    def average(self) -> Mapping[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies."""
        return self._tracks.averages["average"]

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give the model the averaged weights inside the block, the raw weights back afterwards.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
        """
        return self._tracks.applied(model, "average")

    def average_model(self) -> nn.Module:
        """Return a copy of the bare model with the averaged weights, in evaluation mode."""
        return self._tracks.model("average")

    def reset(self) -> None:
        """Start the average again at the model's present weights; the clock goes on."""
        self._tracks.reset()
        self._samples, self._halves, self._calls = 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": {name: tensor}, "values": JSON-able settings and clock}; tensors are not copies."""
        self._tracks.refresh()
        tensors = {
            f"{label}/{name}": t for label, average in self._tracks.averages.items() for name, t in average.items()
        }
        clock = {"seen": self.seen, "samples": self._samples, "halves": self._halves, "calls": self._calls}
        settings = {
            "half_life": self.half_life,
            "kind": self.kind,
            "cadence": self.cadence,
            "batch_size": self.batch_size,
        }
        return {"tensors": tensors, "values": {"class": "ModelEMA", "settings": settings, "clock": clock}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over averages, half-life and clock; the batch size may have changed since.

        Args:
            state: what state_dict() returned.

        Raises:
            InputError: names or shapes differ.
        """
        values, tensors = state["values"], state["tensors"]
        current = self.state_dict()["tensors"]
        match_names("state", current, tensors)
        for name, tensor in current.items():
            tensor.copy_(tensors[name])
        settings, clock = values["settings"], values["clock"]
        self.half_life, self.kind, self.cadence = settings["half_life"], settings["kind"], settings["cadence"]
        self.batch_size = settings["batch_size"]
        self.seen, self._samples, self._halves = clock["seen"], clock["samples"], clock["halves"]
        self._calls = clock["calls"]

    def _apply(self, halves: float, samples: float) -> None:
        if self.kind == "plain":
            self._tracks.lerp([plain(halves)])
            return
        share = hold(halves, None if self.batch_size is None else samples / self.batch_size)
        averages = list(self._tracks.averages["average"].values())
        previous = list(self._tracks.averages["previous"].values())
        with torch.no_grad():
            if share.after < 1:
                torch._foreach_lerp_(averages, previous, share.before / (1 - share.after))
        self._tracks.lerp([share.after, 1.0])


def _half_life(half_life: float | None, decay: float | None, batch_size: float | None) -> float:
    if (half_life is None) == (decay is None):
        raise InputError("give half_life (in samples), or decay with the batch_size at which it was chosen")
    if half_life is not None:
        return _checked(half_life)
    if batch_size is None:
        raise InputError(f"decay={decay} is per update, so it needs batch_size, the batch at which it was chosen")
    return half_life_of(decay, batch_size)  # ty: ignore[invalid-argument-type]


def _checked(half_life: float) -> float:
    if half_life == math.inf:
        return math.inf
    return finite("half_life", half_life, 0)


def _spans(samples: float, half_life: float) -> float:
    span = _checked(half_life)
    return math.inf if span == 0 else samples / span
