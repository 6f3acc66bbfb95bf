"""Switch-EMA: the averaged weights are written back into the training run now and then."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from isobatch.average.base import ModelAverage, Which
from isobatch.average.ema import ModelEMA
from isobatch.average.engine import Engine
from isobatch.units import finite


@final
class SwitchEMA(ModelAverage):
    """A ModelEMA whose average replaces the weights where a multiple of `every` samples is passed.

    theta <- (1 - share) theta + share zeta, after the update in which the multiple is passed; what a cadence holds back
    is applied first. The optimizer's state is left alone.

    Args:
        ema: the average; use it only through this object afterwards.
        every: samples between two switches, such as an epoch.
        share: of the average in the new weights, in (0, 1].

    Raises:
        InputError: a setting outside its range.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.0)
        >>> switch = SwitchEMA(ModelEMA(layer, half_life=100), every=100)
        >>> _ = torch.nn.init.constant_(layer.weight, 3.0)  # stands for optimizer.step()
        >>> switch.update(samples=100)
        >>> layer.weight.item()
        2.0

    References:
        arXiv 2402.09240 (Switch EMA).
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"kind", "dtype", "buffers", "rounding"})

    def __init__(self, ema: ModelEMA, *, every: float, share: float = 1.0):
        self._ema = ema
        self._engine: Engine = ema._engine
        self.every = finite("every", every, 0, open_low=True)
        self.share = finite("share", share, 0, 1, open_low=True)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step, and switch when it is time; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: H in samples for this step alone, as in ModelEMA.

        Raises:
            InputError: samples not positive, a bad half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; average, weights and clock are left as they were.
        """
        before = self.seen
        self._ema.update(samples=samples, half_life=half_life)
        if math.floor(self.seen / self.every) > math.floor(before / self.every):
            self._engine.flush()
            self._write_back()

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: None; there is one average.

        Returns:
            Tensors by canonical name.
        """
        return self._ema.average(which)

    @torch.no_grad()
    def _write_back(self) -> None:
        live, values = self._engine.tracks.live(), self.average()
        for name, tensor in live.items():
            wide = torch.promote_types(values[name].dtype, tensor.dtype)
            tensor.copy_(torch.lerp(tensor.to(wide), values[name].to(wide), self.share))
        self._engine.tracks.follow()

    def _tracks(self, which: Which) -> tuple[int, ...]:
        return self._ema._tracks(which)

    def _settings(self) -> dict[str, Any]:
        return {**self._ema._settings(), "every": self.every, "share": self.share}

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self._ema._adopt(settings)
        self.every, self.share = settings["every"], settings["share"]
