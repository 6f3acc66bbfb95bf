"""Several exponential moving averages at once, from one reading of the weights."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.base import ModelAverage, Which
from isobatch.average.clock import Cadence, number_in, number_out
from isobatch.average.engine import Engine
from isobatch.average.options import chosen, no_half_life, resolved, storage_settings
from isobatch.average.stepwarmup import warmup_from
from isobatch.average.storage import Buffers, Storage
from isobatch.average.tracks import Tracks
from isobatch.average.warmup import NoWarmup, Warmup
from isobatch.errors import InputError
from isobatch.units import finite


@final
class Horizons(ModelAverage):
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

    Raises:
        InputError: a setting outside its range, or not exactly one of half_lives and decays.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1.0)
        >>> averages = Horizons(layer, half_lives=[50, 100])
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
    ):
        if (half_lives is None) == (decays is None):
            raise InputError("give half_lives (in samples), or decays with the batch_size at which they were chosen")
        if kind not in ("plain", "hold"):
            raise InputError(f'kind={kind!r} must be "plain" or "hold"')
        given = [resolved(h, None, None) for h in half_lives or ()]
        self.half_lives = tuple(given or [resolved(None, d, batch_size) for d in decays or ()])
        if not self.half_lives or len(set(self.half_lives)) < len(self.half_lives):
            raise InputError(f"half-lives {list(self.half_lives)} must be at least one, all different")
        self.warmup = NoWarmup() if warmup is None else warmup
        reference = None if batch_size is None else finite("batch_size", batch_size, 0, open_low=True)
        count, hold = len(self.half_lives), kind == "hold"
        tracks = Tracks(model, count, dtype=dtype, buffers=buffers, storage=storage, previous=hold)
        self._engine = Engine(tracks, count, Cadence.parse(cadence), holds=hold, batch_size=reference)

    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the optimizer step.
            half_life: must be None; ModelEMA takes a half-life per step.

        Raises:
            InputError: samples not positive, a half-life, or inside an applied() block.
            NonFiniteError: a weight that is not finite; averages and clock are left as they were.
        """
        no_half_life(half_life, "Horizons")
        size = finite("samples", samples, 0, open_low=True)
        clock = self._engine.clock
        self._engine.advance(samples, [self.warmup.spans(clock.seen, size, h, clock.calls) for h in self.half_lives])

    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name; they are the average itself, not copies.

        Args:
            which: a half-life, one of `half_lives`.

        Returns:
            Tensors by canonical name.
        """
        return self._engine.tracks.values(self._tracks(which)[0])

    def _tracks(self, which: Which) -> tuple[int, ...]:
        return (chosen("half-life", self.half_lives, which),)

    def _settings(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "half_lives": [number_out(h) for h in self.half_lives],
            "kind": "hold" if engine.holds else "plain",
            "batch_size": engine.batch_size if engine.holds else None,
            "cadence": engine.cadence.word(),
            "warmup": self.warmup.settings(),
            **storage_settings(engine.tracks),
        }

    def _adopt(self, settings: Mapping[str, Any]) -> None:
        self.half_lives = tuple(number_in(h) for h in settings["half_lives"])
        self._engine.batch_size = settings["batch_size"]
        self._engine.cadence = Cadence.parse(settings["cadence"])
        self.warmup = warmup_from(settings["warmup"])
