"""Exponential moving averages of a model's weights: one, several from one reading, one that is written back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.buffers import AverageBuffers
from isobatch.average.clock import Cadence, checked_half_life, counted, number_in, number_out, refuse_replaced
from isobatch.average.engine import Engine
from isobatch.average.layout import Buffers, Storage, placed
from isobatch.average.state import (
    chosen,
    fitting_warmup,
    no_half_life,
    only_average,
    resolved,
    several,
    storage_settings,
)
from isobatch.curves import Warmup, warmup_from
from isobatch.errors import InputError
from isobatch.gradients import local
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
        storage: rounding, layout, selection of tensors and device.
        device: where the average lies, such as "cpu" for a model on a GPU; short for Storage(device=...).

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
        device: torch.device | str | int | None = None,
    ):
        if kind not in ("plain", "hold"):
            raise InputError(f'kind={kind!r} must be "plain" or "hold"')
        storage = placed(storage, device)
        self.half_life = resolved(half_life, decay, batch_size)
        reference = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
        self.warmup = fitting_warmup(warmup, reference)
        hold = kind == "hold"
        averages = AverageBuffers(model, 1, dtype=dtype, buffers=buffers, storage=storage, previous=hold)
        self._engine = Engine(averages, 1, Cadence.parse(cadence), holds=hold, batch_size=reference)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: H in samples for this step alone, such as a momentum schedule averaged over it; inf for rho = 1.

        Raises:
            InputError: samples not positive, a bad half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; average and clock are left as they were.
        """
        size = counted(samples)
        span = self.half_life if half_life is None else checked_half_life(half_life)
        clock = self._engine.clock
        self._engine.advance(size, (self.warmup.spans(clock.seen, size, span, clock.calls),))

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: None; there is one average.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.buffers.values(self._indices(which)[0])

    def _indices(self, which: Which) -> tuple[int, ...]:
        only_average(which)
        return (0,)

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        _refuse_copied(self.warmup, seen, self.half_life)
        return self._indices(which)

    def _meant(self, which: Which) -> float:
        return self.half_life

    def _settings(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "half_life": number_out(self.half_life),
            "kind": "hold" if engine.holds else "plain",
            "batch_size": engine.batch_size if engine.holds else None,
            "cadence": engine.cadence.word(),
            "warmup": self.warmup.settings(),
            **storage_settings(engine.buffers),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self.half_life = checked_half_life(number_in(settings["half_life"]))
        size = settings["batch_size"]
        self._engine.batch_size = None if size is None else finite("batch_size", size, 0, open_low=True)
        self._engine.cadence = Cadence.parse(settings["cadence"])
        self.warmup = warmup_from(settings["warmup"])


@final
class MultiEMA(ModelAverage):
    """Exponential moving averages of one model with several half-lives, held side by side.

    Each is what ModelEMA with that half-life is; the weights are read once for all. `which` of average(), applied(),
    average_model() and report() is a half-life, one of `half_lives`.

    Args:
        model: the model, wrapped or bare; the averages start at its present weights.
        half_lives: in samples.
        decays: per update at `batch_size`, instead of half_lives.
        batch_size: reference batch of `decays`; with kind "hold" also the batch whose run is followed.
        kind: "plain" or "hold", as in ModelEMA.
        dtype: in which the averages are held; float32 holds float64 weights in float64.
        buffers: "copy" or "average", as in ModelEMA.
        cadence: as in ModelEMA; "auto" follows the shortest half-life.
        warmup: how the half-lives grow at the start.
        storage: rounding, layout and selection of tensors.
        device: where the averages lie, such as "cpu" for a model on a GPU; short for Storage(device=...).

    Raises:
        InputError: a setting outside its range, or not exactly one of half_lives and decays.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> averages = MultiEMA(layer, half_lives=[50, 100])
        >>> _ = nn.init.constant_(layer.weight, 3.0)  # stands for optimizer.step()
        >>> averages.update(samples=100)
        >>> averages.average(50)["weight"].item(), averages.average(100)["weight"].item()
        (2.5, 2.0)

    References:
        arXiv 2307.13813.
    """

    _FIXED: ClassVar[frozenset[str]] = frozenset({"kind", "dtype", "buffers", "rounding"})

    def __init__(
        self,
        model: nn.Module,
        *,
        half_lives: Sequence[float] | None = None,
        decays: Sequence[float] | None = None,
        batch_size: float | None = None,
        kind: Literal["plain", "hold"] = "plain",
        dtype: torch.dtype = torch.float32,
        buffers: Buffers = "copy",
        cadence: int | Literal["auto"] = 1,
        warmup: Warmup | None = None,
        storage: Storage | None = None,
        device: torch.device | str | int | None = None,
    ):
        if (half_lives is None) == (decays is None):
            raise InputError("give half_lives (in samples), or decays with the batch_size at which they were chosen")
        if kind not in ("plain", "hold"):
            raise InputError(f'kind={kind!r} must be "plain" or "hold"')
        if half_lives is not None:
            self.half_lives = tuple(resolved(h, None, None) for h in several("half_lives", half_lives))
        else:
            self.half_lives = tuple(resolved(None, d, batch_size) for d in several("decays", decays))
        if len(set(self.half_lives)) < len(self.half_lives):
            raise InputError(f"half-lives {list(self.half_lives)} must be all different")
        reference = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
        self.warmup = fitting_warmup(warmup, reference)
        count, hold = len(self.half_lives), kind == "hold"
        place = placed(storage, device)
        averages = AverageBuffers(model, count, dtype=dtype, buffers=buffers, storage=place, previous=hold)
        self._engine = Engine(averages, count, Cadence.parse(cadence), holds=hold, batch_size=reference)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: must be None; ModelEMA takes a half-life per step.

        Raises:
            InputError: samples not positive, a half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; averages and clock are left as they were.
        """
        no_half_life(half_life, "MultiEMA")
        size = counted(samples)
        clock = self._engine.clock
        self._engine.advance(size, [self.warmup.spans(clock.seen, size, h, clock.calls) for h in self.half_lives])

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: a half-life, one of `half_lives`.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.buffers.values(self._indices(which)[0])

    def _indices(self, which: Which) -> tuple[int, ...]:
        return (chosen("half-life", self.half_lives, which),)

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        _refuse_copied(self.warmup, seen, self._meant(which))
        return self._indices(which)

    def _meant(self, which: Which) -> float:
        return self.half_lives[self._indices(which)[0]]

    def _settings(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "half_lives": [number_out(h) for h in self.half_lives],
            "kind": "hold" if engine.holds else "plain",
            "batch_size": engine.batch_size if engine.holds else None,
            "cadence": engine.cadence.word(),
            "warmup": self.warmup.settings(),
            **storage_settings(engine.buffers),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self.half_lives = tuple(checked_half_life(number_in(h)) for h in settings["half_lives"])
        size = settings["batch_size"]
        self._engine.batch_size = None if size is None else finite("batch_size", size, 0, open_low=True)
        self._engine.cadence = Cadence.parse(settings["cadence"])
        self.warmup = warmup_from(settings["warmup"])


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
        if not isinstance(ema, ModelEMA):
            raise InputError(f"ema={type(ema).__name__} must be a ModelEMA")
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
        parts, values = self._engine.buffers.parts(), self.average()
        for name, tensor in parts.items():
            if name in self._engine.buffers.still:
                continue  # a mask of infinities: between two of them lies no number
            value = local(values[name])
            wide = torch.promote_types(value.dtype, tensor.dtype)
            tensor.copy_(torch.lerp(tensor.to(wide), value.to(tensor.device, wide), self.share))
        self._engine.buffers.follow()

    def _indices(self, which: Which) -> tuple[int, ...]:
        return self._ema._indices(which)

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        return self._ema._places(which, seen)

    def _meant(self, which: Which) -> float:
        return self._ema._meant(which)

    def _settings(self) -> dict[str, Any]:
        return {**self._ema._settings(), "every": self.every, "share": self.share}

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        every, share = settings["every"], settings["share"]
        self._ema._adopt(settings)
        self.every, self.share = finite("every", every, 0, open_low=True), finite("share", share, 0, 1, open_low=True)


def _refuse_copied(warmup: Warmup, seen: float, half_life: float) -> None:
    """Refuse an average that is loaded where the warm-up still copies the weights."""
    if half_life > 0 and math.isinf(warmup.spans(seen, 1.0, half_life, 0)):
        refuse_replaced(seen, f"the warm-up {type(warmup).__name__} copies the weights there")
