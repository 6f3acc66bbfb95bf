"""The exponential moving average of a model's weights, with its half-life in samples."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.clock import Cadence, number_in, number_out
from isobatch.average.engine import Engine
from isobatch.average.options import checked_half_life, only_average, resolved, storage_settings
from isobatch.average.stepwarmup import warmup_from
from isobatch.average.storage import Buffers, Storage
from isobatch.average.tracks import Tracks
from isobatch.average.warmup import NoWarmup, Warmup
from isobatch.errors import InputError
from isobatch.units import finite


@final
class ModelEMA(ModelAverage):
    r"""Exponential moving average of a model's weights, exact for any sequence of batch sizes.

    zeta <- 2**(-x) zeta + (1 - 2**(-x)) theta, x = samples / half-life: the EMA scaling rule rho**kappa. Post-step
    order: call update() after the optimizer step. The plain rule is close to the run at the reference batch while one
    update replaces little of the average; report() says when it does not.

    Args:
        model: the model, wrapped or bare; the average starts at its present weights.
        half_life: H in samples (or tokens: whatever update() counts), from 0 (a copy) to infinity (frozen).
        decay: rho per update at `batch_size`, instead of half_life.
        batch_size: reference batch of `decay`; with kind "hold" also the batch whose run is followed.
        kind: "plain", or "hold": a first-order hold, which takes the weights to move straight between two updates and
            keeps a copy of the previous ones.
        dtype: in which the average is held; float32 holds float64 weights in float64.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        cadence: apply every m-th update with the exact exponent of the samples passed; "auto": once 1/200 of a
            half-life has passed.
        warmup: how the half-life grows at the start.
        storage: rounding, layout and selection of tensors.

    Raises:
        InputError: a setting outside its range, or not exactly one of half_life and decay.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> ema = ModelEMA(layer, half_life=100)
        >>> _ = nn.init.constant_(layer.weight, 3.0)  # stands for optimizer.step()
        >>> ema.update(samples=100)
        >>> with ema.applied(layer):
        ...     layer.weight.item()
        2.0

    References:
        arXiv 2307.13813.
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"kind", "dtype", "buffers", "rounding"})

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
        warmup: Warmup | None = None,
        storage: Storage | None = None,
    ):
        if kind not in ("plain", "hold"):
            raise InputError(f'kind={kind!r} must be "plain" or "hold"')
        self.half_life = resolved(half_life, decay, batch_size)
        self.warmup = NoWarmup() if warmup is None else warmup
        reference = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
        hold = kind == "hold"
        tracks = Tracks(model, 1, dtype=dtype, buffers=buffers, storage=storage, previous=hold)
        self._engine = Engine(tracks, 1, Cadence.parse(cadence), holds=hold, batch_size=reference)

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
        span = self.half_life if half_life is None else checked_half_life(half_life)
        clock = self._engine.clock
        self._engine.advance(samples, (self.warmup.spans(clock.seen, size, span, clock.calls),))

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: None; there is one average.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.tracks.values(self._tracks(which)[0])

    def _tracks(self, which: Which) -> tuple[int, ...]:
        only_average(which)
        return (0,)

    def _settings(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "half_life": number_out(self.half_life),
            "kind": "hold" if engine.holds else "plain",
            "batch_size": engine.batch_size if engine.holds else None,
            "cadence": engine.cadence.word(),
            "warmup": self.warmup.settings(),
            **storage_settings(engine.tracks),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self.half_life = number_in(settings["half_life"])
        self._engine.batch_size = settings["batch_size"]
        self._engine.cadence = Cadence.parse(settings["cadence"])
        self.warmup = warmup_from(settings["warmup"])
