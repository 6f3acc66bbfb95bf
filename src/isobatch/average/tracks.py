"""Averages by name beside the model they follow: what every kind of average shares."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.binding import Binding, Select, kept_dtype, unwrap
from isobatch.average.kernels import Pass
from isobatch.average.swap import exchanged
from isobatch.errors import InputError, NonFiniteError

Buffers = Literal["copy", "average"]


@final
class Tracks:
    """Named averages of one model's tensors.

    Args:
        model: the model, wrapped or bare.
        labels: name of each average, in order.
        dtype: in which the averages are held.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        select: which parameters to average; None for all.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str],
        *,
        dtype: torch.dtype,
        buffers: Buffers = "copy",
        select: Select | None = None,
    ):
        if buffers not in ("copy", "average"):
            raise InputError(f'buffers={buffers!r} must be "copy" or "average"')
        if not dtype.is_floating_point:
            raise InputError(f"dtype={dtype} must be a floating dtype, such as torch.float32")
        self._binding = Binding(model, buffers=buffers == "average", select=select)
        self._buffers = buffers == "average"
        self._select = select
        self._dtype = dtype
        self._exchanged = False
        self.averages: dict[str, dict[str, Tensor]] = {label: {} for label in labels}
        self._bind()

    def reset(self) -> None:
        """Start every average again at the model's present weights."""
        self.averages = {label: {} for label in self.averages}
        self._bind()

    def refresh(self) -> None:
        """Re-bind when a module or parameter was replaced, added, removed, moved or cast."""
        if self._exchanged:
            raise InputError("the averaged weights are applied; leave the applied() block before updating or saving")
        if not self._binding.current():
            self._binding.bind()
            self._bind()
        elif not self._pass.current():
            self._bind()

    def lerp(self, shares: Sequence[float]) -> None:
        """Move every average towards the weights.

        Args:
            shares: weight of the new weights, one per average.
        """
        self._pass.lerp(shares)

    def weights(self) -> dict[str, Tensor]:
        """Return the live tensors by name."""
        return self._binding.tensors()

    def check_finite(self, seen: float) -> None:
        """Refuse weights that hold a NaN or an infinity, before any of them enters an average.

        Args:
            seen: samples so far, for the message.

        Raises:
            NonFiniteError: names the first bad tensor; nothing was changed.
        """
        for name, tensor in self.weights().items():
            if not bool(torch.isfinite(tensor.detach()).all()):
                raise NonFiniteError(
                    f"{name!r} is not finite after {seen:g} samples; the average was left as it was. "
                    "Restore the weights, then go on",
                    seen=int(seen),
                    parameter=name,
                )

    @contextmanager
    def applied(self, model: nn.Module, label: str) -> Generator[None]:
        """Give `model` the values of one average inside the block.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
            label: which average.

        Yields:
            None, with the averaged weights in place.
        """
        if self._exchanged:
            raise InputError("the averaged weights are applied already; applied() cannot be nested")
        live, values = self._targets(model), self.averages[label]
        self._exchanged = True
        try:
            with exchanged(unwrap(model), [(live[name], value) for name, value in values.items()]):
                yield
        finally:
            self._exchanged = False

    def model(self, label: str) -> nn.Module:
        """Return a copy of the bare model that holds one average, in evaluation mode, without gradients.

        Args:
            label: which average.
        """
        live, memo = self.weights(), {}
        for name, average in self.averages[label].items():
            value = average.detach().to(live[name].dtype, copy=True)
            learned = isinstance(live[name], nn.Parameter)
            memo[id(live[name])] = nn.Parameter(value, requires_grad=False) if learned else value
        try:
            copy = deepcopy(self._binding.root, memo)
        except Exception as error:
            raise InputError(f"the model cannot be copied ({error}); use applied(), which copies nothing") from error
        return copy.eval().requires_grad_(False)

    def _targets(self, model: nn.Module) -> dict[str, Tensor]:
        if unwrap(model) is self._binding.root:
            self.refresh()
            return self.weights()
        live = Binding(model, buffers=self._buffers, select=self._select).tensors()
        match_names("model", self.weights(), live)
        return live

    def _bind(self) -> None:
        live = self.weights()
        for label, old in self.averages.items():
            new = {}
            for name, tensor in live.items():
                if name not in old:
                    new[name] = tensor.detach().to(kept_dtype(tensor, self._dtype), copy=True)
                elif old[name].shape != tensor.shape:
                    raise InputError(
                        f"{name!r} changed its shape from {tuple(old[name].shape)} to {tuple(tensor.shape)}; "
                        "call reset() to start the average again"
                    )
                else:
                    new[name] = old[name].to(tensor.device)
            self.averages[label] = new
        self._pass = Pass([list(a.values()) for a in self.averages.values()], list(live.values()))


def match_names(what: str, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Refuse two sets of tensors that differ in names or shapes.

    Args:
        what: what `given` is, for the message.
        wanted: tensors that are averaged here.
        given: tensors offered.

    Raises:
        InputError: names the difference, with both shapes.
    """
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise InputError(f"{what} does not match the average: missing {missing[:5]}, unexpected {extra[:5]}")
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise InputError(f"{name!r} has shape {tuple(given[name].shape)} in the {what}, {tuple(tensor.shape)} here")
