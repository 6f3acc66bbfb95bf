"""The one interface of every average of a model's weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from isobatch.average.binding import Weights, bare, reusable
from isobatch.average.clock import Clock, counted
from isobatch.average.engine import Engine, Report, measured, overflowed
from isobatch.average.lending import Mode
from isobatch.average.state import (
    FORMAT,
    Missing,
    Settings,
    Unexpected,
    opened,
    plain_in,
    tensors_in,
    tensors_out,
    winner,
)
from isobatch.errors import InputError, IsobatchError
from isobatch.gradients import bare_optimizer, refuse_stranger
from isobatch.markup import panel
from isobatch.units import finite

Which = float | None


class ModelAverage(ABC):
    """An average of a model's weights on the sample clock.

    update() comes after each optimizer step (post-step order: it reads the new weights) and is told the samples of
    that step. applied() lends the averaged weights to the model, average_model() makes a copy that holds them.
    """

    _engine: Engine
    _stored: dict[str, Tensor] | None = None
    _written = False
    _attached: dict[int, RemovableHandle] | None = None
    _FIXED: ClassVar[frozenset[str]] = frozenset({"dtype", "buffers", "rounding"})

    @abstractmethod
    def update(self, *, samples: float, half_life: float | None = None) -> None:
        """Take in the weights of one optimizer step; call it after the step.

        Args:
            samples: global samples (or tokens) of the step.
            half_life: half-life in samples for this step alone, where the kind has one.
        """

    @abstractmethod
    def average(self, which: Which = None) -> dict[str, Tensor]:
        """Return the averaged tensors by name.

        Args:
            which: the horizon, where there are several.

        Returns:
            Tensors by canonical name.
        """

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return JSON-able settings."""

    @abstractmethod
    def _adopt(self, settings: Mapping[str, Any]) -> None:
        """Take over settings that do not shape the tensors."""

    @property
    def seen(self) -> float:
        """Samples that update() was told of."""
        return self._engine.clock.seen

    @property
    def n_averaged(self) -> int:
        """Updates so far, under the name that torch's AveragedModel gives it."""
        return self._engine.clock.calls

    @property
    def root(self) -> nn.Module:
        """The bare model that is averaged; a list of parameters where the average was built from parameters."""
        return self._engine.buffers.root

    @property
    def module(self) -> nn.Module:
        """The averaged weights as a module in evaluation mode: `teacher()`, under the name of torch's AveragedModel."""
        return self.teacher()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the averaged model without gradients, as torch's AveragedModel and ema-pytorch do.

        Args:
            *args: of the model's forward pass.
            **kwargs: of the model's forward pass.

        Returns:
            Its output.
        """
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def store(self, model: Weights | None = None) -> None:
        """Keep the raw weights, until restore() writes them back; `copy_to` may come in between.

        Args:
            model: a model or its parameters; the bound model unless given.

        Raises:
            InputError: inside an applied() block, or where copy_to() wrote the average over weights not restored yet.

        Example:
            >>> import isobatch as ib
            >>> layer = nn.Linear(1, 1)
            >>> ema = ib.ModelEMA(layer.parameters(), half_life=100)
            >>> ema.store(layer.parameters())
            >>> ema.copy_to(layer.parameters())
            >>> ema.restore(layer.parameters())
        """
        if self._written:
            raise InputError(
                "the model holds the average, and the raw weights that store() kept were not written back; storing "
                "again would lose them. Call restore() first"
            )
        self._stored = self._engine.buffers.raw(self.root if model is None else model)

    def restore(self, model: Weights | None = None) -> None:
        """Write back the raw weights that store() kept.

        Args:
            model: a model or its parameters; the bound model unless given.

        Raises:
            InputError: nothing is stored, or inside an applied() block.
        """
        if self._stored is None:
            raise InputError("nothing is stored; call store() before copy_to() and restore()")
        self._engine.buffers.copy_to(self.root if model is None else model, self._stored)
        self._stored, self._written = None, False

    def applied(self, model: Weights, which: Which = None) -> AbstractContextManager[None]:
        """Give the model the averaged weights inside the block, its raw weights and buffers back afterwards.

        The block works on copies of the averaged weights and of the buffers: whatever a forward pass writes, replaces
        or removes there, the model and the average are bit for bit what they were, also after an exception. Inside
        the block update() and state_dict() are refused, because the model does not hold its raw weights.

        Args:
            model: the bound model, a wrapper of it, another model with the same names, or parameters in its order.
            which: the horizon, where there are several.

        Returns:
            A context manager.
        """
        self._engine.buffers.refresh()
        return self._engine.buffers.applied(model, self.average(which))

    def average_model(self, which: Which = None) -> nn.Module:
        """Return a copy of the bare model with the averaged weights, in evaluation mode.

        Args:
            which: the horizon, where there are several.

        Returns:
            A new module in the model's dtypes, without gradients.
        """
        self._engine.buffers.refresh()
        return self._engine.buffers.model(self.average(which))

    def teacher(self, mode: Mode = "eval", which: Which = None) -> nn.Module:
        """Return the averaged weights as a module beside the model, to be called in training: the average teaches.

        A call changes neither the student nor the average. Where all of the model's code is that of torch's own layers,
        the parameters are the average's own storage and nothing is copied; other code may write into its weights or
        buffers, so it gets copies, brought up to date at every update and every asking. The same module comes back
        until the model is moved or cast. Call it under torch.no_grad().

        Args:
            mode: "eval", or "train": batch norm uses the statistics of the teacher's batch and keeps none.
            which: the horizon, where there are several.

        Returns:
            A module without gradients.

        Raises:
            InputError: an unknown mode, or a model that cannot be copied truly; the message names what.

        Example:
            >>> import isobatch as ib
            >>> student = nn.Linear(1, 1)
            >>> ema = ib.ModelEMA(student, half_life=100)
            >>> ema.teacher().weight.data_ptr() == ema.average()["weight"].data_ptr()
            True
        """
        self._engine.buffers.refresh()
        return self._engine.teacher(mode, which, partial(self.average, which)).module

    def copy_to(self, model: Weights, which: Which = None) -> None:
        """Write the averaged weights into a model for good, such as at the end of training.

        Args:
            model: the bound model, a wrapper of it, another model with the same names, or parameters in its order.
            which: the horizon, where there are several.
        """
        given = reusable(model)
        self._engine.buffers.refresh()
        self._engine.buffers.copy_to(given, self.average(which))
        if self._stored is not None:
            own = {id(tensor) for tensor in self._engine.buffers.live().values()}
            self._written = self._written or any(id(tensor) in own for tensor in bare(given).parameters())

    def attach(self, optimizer: Optimizer, samples: float | Callable[[], float]) -> RemovableHandle:
        """Update after every step of an optimizer, without further calls of update().

        A step that never happens, such as one that a gradient scaler skips, is not counted.

        Args:
            optimizer: whose steps the average follows, bare or in the wrapper of a framework.
            samples: global samples of each step, or a function that tells those of the step just made.

        Returns:
            A handle whose remove() ends it.

        Raises:
            InputError: no optimizer of this model, one that the average follows already, or samples that are neither a
                positive number nor a function.
        """
        inner = self._own(optimizer)
        self._attached = self._attached or {}
        held = self._attached.get(id(inner))
        if held is not None and held.id in (held.hooks_dict_ref() or ()):
            raise InputError(
                "the average follows this optimizer already, so every step would count twice; remove() the handle of "
                "the first attach() before"
            )
        size: Any = samples if callable(samples) else counted(samples)

        def after_step(*_: Any) -> None:
            if not overflowed(inner):
                self.update(samples=size() if callable(size) else size)

        self._attached[id(inner)] = inner.register_step_post_hook(after_step)
        return self._attached[id(inner)]

    def reset(self) -> None:
        """Start again at the model's present weights, such as after loading pretrained ones; the clock goes on.

        Which tensors are averaged is chosen afresh too. In SWA and PowerEMA the present weights then stand for all
        samples so far; build a new one where the count is to begin again.

        Raises:
            NonFiniteError: a weight that is not finite, by name; the average was left as it was.
        """
        self._engine.restart()

    def watch(self, optimizer: Optimizer) -> RemovableHandle:
        """Count the optimizer's steps, so that updates which do not match them are reported.

        Args:
            optimizer: whose steps the average follows, bare or in the wrapper of a framework.

        Returns:
            A handle whose remove() ends the count.

        Raises:
            InputError: no optimizer, or one that trains nothing of this model.
        """
        return self._engine.watch.optimizer(self._own(optimizer))

    def report(self, which: Which = None) -> Report:
        """Measure the average: half-life, mean age, frozen share, distance to the weights, and what looks wrong.

        Args:
            which: the horizon, where there are several.

        Returns:
            The report; its warnings are sentences.
        """
        self._engine.buffers.refresh()
        with self._engine.buffers.check.paused():
            return measured(self._engine, self.average(which), self._indices(which), self._meant(which))

    def _repr_html_(self) -> str:
        """As notebooks show it: its report, or why it has none without being asked for a horizon."""
        try:
            found = self.report()
        except InputError as error:
            return panel(type(self).__name__, notes=[str(error)])
        rows: list[list[object]] = [["of the average", "value"]]
        rows += [
            ["half-life (samples)", "-" if found.half_life is None else f"{found.half_life:,.6g}"],
            ["mean age (samples)", f"{found.mean_age:,.6g}"],
            ["samples seen", f"{found.seen:,.12g}"],
            ["distance to the weights", f"{found.distance:.4g} ({found.relative_distance:.2%} of them)"],
        ]
        return panel(type(self).__name__, rows, found.warnings)

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": {name: tensor}, "values": JSON-able settings and clock}.

        The tensors are the averages themselves, as with a module's state_dict(): copy them to keep a moment.

        Returns:
            The state; tensors and values are apart, so that each can be stored in its own format.

        Raises:
            InputError: inside an applied() block.
        """
        self._engine.buffers.refresh()
        values = {
            "class": type(self).__name__,
            "format": FORMAT,
            "settings": self._settings(),
            "clock": self._engine.clock.state(),
        }
        self._engine.buffers.verify()
        return {"tensors": tensors_out(self._engine.buffers), "values": values}

    def load_state_dict(
        self,
        state: Mapping[str, Any] | None,
        *,
        settings: Settings = "match",
        missing: Missing = "refuse",
        unexpected: Unexpected = "refuse",
    ) -> None:
        """Take over averages, settings and clock; the batch size may have changed since.

        Args:
            state: what state_dict() returned; None for a checkpoint without averages.
            settings: "match" refuses settings that differ from this object's, "saved" or "given" name the winner.
            missing: "refuse", or "weights": averages that were not saved start at the present weights.
            unexpected: "refuse", or "drop" averages of tensors that are not averaged here.

        Raises:
            InputError: names, shapes or settings differ in a way that the choices do not cover; nothing was changed.
            NonFiniteError: a saved average that is not finite, by name; nothing was changed.
        """
        self._engine.buffers.replaced()
        if state is None and missing == "weights":
            self.reset()
            return
        values, tensors = opened(state, type(self).__name__)
        given = self._settings()
        chosen = winner(values["settings"], given, settings, self._FIXED)
        clock = Clock.load(values["clock"])
        if len(clock.spans) != len(self._engine.clock.spans) or len(clock.ages) != len(clock.spans):
            raise InputError(f"{len(clock.spans)} averages in the state, {len(self._engine.clock.spans)} here")
        try:
            self._adopt(chosen)
            tensors_in(self._engine.buffers, tensors, missing, unexpected)
        except (KeyError, TypeError, AttributeError) as error:
            self._adopt(given)
            raise InputError(f"the settings in the state are damaged ({error!r}); it has {dict(chosen)}") from error
        except IsobatchError:
            self._adopt(given)
            raise
        self._engine.resume(clock)

    def load_average(self, tensors: Mapping[str, Tensor], *, seen: float = 0, which: Which = None) -> None:
        """Take over an average from tensors named as in the model, such as one made by another library.

        Args:
            tensors: by name, with or without "module." before all names; other entries are left out.
            seen: samples of the run behind that average, by which SWA, PowerEMA and warm-ups weigh it against what
                comes; in LAWA it stands for all snapshots until they are replaced one by one.
            which: the horizon, where there are several.

        Raises:
            InputError: a name is missing, a shape differs, or so few samples that the next update would replace it.
            NonFiniteError: a tensor that is not finite, by name; nothing was changed.
        """
        past = finite("seen", seen, 0)
        places = self._places(which, past)
        self._engine.buffers.replaced()
        plain_in(self._engine.buffers, tensors, places)
        self._engine.buffers.follow()
        zeros = (0.0,) * len(self._engine.clock.spans)
        clock = Clock(seen=int(seen) if isinstance(seen, Integral) else past, spans=zeros, ages=zeros)
        self._engine.resume(clock._replace(applied=len(places) if len(places) > 1 else 0))

    def _own(self, optimizer: Optimizer) -> Optimizer:
        """Return the bare optimizer of this model, or refuse another one."""
        inner, root = bare_optimizer(optimizer), self.root
        refuse_stranger(inner, root.parameters(), type(root).__name__, "or call update() after each of its steps")
        return inner

    def _places(self, which: Which, seen: float) -> tuple[int, ...]:
        """Return which of the K averages a loaded one becomes, or refuse one that the next update would replace."""
        return self._indices(which)

    def _meant(self, which: Which) -> float | None:
        """The half-life that it keeps once a warm-up is over; None for a kind without one."""
        return None

    @abstractmethod
    def _indices(self, which: Which) -> tuple[int, ...]:
        """Return which of the K averages an average is made of."""
