"""Averages by name beside the model they follow: the tensors that every kind of average shares."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn

from isobatch.average.binding import Binding, unwrap
from isobatch.average.layout import Stacks, allocate, flatten
from isobatch.average.names import match_names, tell_changes
from isobatch.average.passes import Pass
from isobatch.average.rounding import refuse_lost
from isobatch.average.storage import NARROW, Buffers, Storage, kept_dtype
from isobatch.average.swap import exchanged
from isobatch.average.weights import Hold
from isobatch.errors import InputError, NonFiniteError

PROBES = 8


@final
class Tracks:
    """K averages of every averaged tensor of one model.

    Args:
        model: the model, wrapped or bare.
        count: K.
        dtype: in which the averages are held.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        storage: rounding, layout and selection.
        previous: whether the weights of the last update are kept too, for a first-order hold.

    Raises:
        InputError: a dtype that is not floating, or an unknown word for buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        count: int,
        *,
        dtype: torch.dtype,
        buffers: Buffers,
        storage: Storage | None = None,
        previous: bool = False,
    ):
        if buffers not in ("copy", "average"):
            raise InputError(f'buffers={buffers!r} must be "copy" or "average"')
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"dtype={dtype} must be a floating dtype, such as torch.float32")
        self.dtype, self.buffers = dtype, buffers
        self.storage = Storage() if storage is None else storage
        self.rounding = self.storage.resolve(dtype)
        self.exchanged = False
        self._count, self._hold = count, previous
        self._binding = Binding(model, buffers=buffers == "average", select=self.storage.select)
        self.generators: dict[torch.device, torch.Generator] = {}
        self.roles: dict[str, Stacks] = {}
        self._bind({})

    @property
    def root(self) -> nn.Module:
        """The bare model."""
        return self._binding.root

    def reset(self) -> None:
        """Start every average again at the model's present weights."""
        self._usable()
        self._binding.bind()
        self._bind({})

    def follow(self) -> None:
        """Let a first-order hold begin at the model's present weights."""
        if "previous" in self.roles:
            live = self.live()
            for name, stack in self.roles["previous"].tensors.items():
                stack[0].copy_(live[name].detach())

    def refresh(self, *, quick: bool = False) -> None:
        """Re-bind when a module or parameter was replaced, added, removed, moved or cast.

        Args:
            quick: whether Binding.unmoved() is enough, as in an update, where what is new has not moved yet.

        Raises:
            InputError: a tensor changed its shape, or the averages are lent to the model.
        """
        self._usable()
        if self._binding.unmoved() if quick else self._binding.current():
            return
        self._binding.bind()
        try:
            self._bind(self.roles)
        except InputError:
            self._binding.forget()
            raise

    def live(self) -> dict[str, Tensor]:
        """Return the model's averaged tensors by name."""
        return self._binding.tensors()

    def probes(self) -> list[Tensor]:
        """Return a few trained tensors, by which a changed model can be told from an unchanged one."""
        return self._probes

    def values(self, index: int) -> dict[str, Tensor]:
        """Return one average by name; the tensors are the average itself.

        Args:
            index: which of the K.

        Returns:
            Views of the stacks.
        """
        return {name: stack[index] for name, stack in self.roles["average"].tensors.items()}

    def read(self, seen: float) -> None:
        """Collect the weights of an update, and refuse them if they are not finite.

        Args:
            seen: samples so far, for the message.

        Raises:
            NonFiniteError: names the first bad tensor; no average was touched.
        """
        self._pass.read()
        if not self.storage.check_finite or self._pass.finite():
            return
        for name, tensor in self.live().items():
            if not bool(torch.isfinite(tensor.detach()).all()):
                raise NonFiniteError(
                    f"{name!r} is not finite after {seen:g} samples; the average was left as it was. Restore the "
                    "weights (they may be taken from the average), then go on",
                    seen=int(seen),
                    parameter=name,
                )

    def move(self, shares: Sequence[Hold]) -> None:
        """Move every average; read() comes first.

        Args:
            shares: weights of the update, one per average.

        Raises:
            InputError: rounding to nearest in a narrow dtype would lose any update of this weight.
        """
        if self.rounding == "nearest" and self.dtype in NARROW:
            refuse_lost(self.dtype, [1 - s.keep for s in shares])
        self._pass.move(shares)

    @contextmanager
    def applied(self, model: nn.Module, values: Mapping[str, Tensor]) -> Generator[None]:
        """Give `model` the given values inside the block.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
            values: by name, one for every averaged tensor.

        Yields:
            None, with the values in place.
        """
        self._usable()
        live = self._targets(model)
        self.exchanged = True
        try:
            with exchanged(unwrap(model), [(live[name], value) for name, value in values.items()]):
                yield
        finally:
            self.exchanged = False

    @torch.no_grad()
    def copy_to(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Write values into a model's tensors.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
            values: by name, one for every averaged tensor.
        """
        self._usable()
        for name, tensor in self._targets(model).items():
            tensor.copy_(values[name])

    def model(self, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the bare model with the given values, in evaluation mode, without gradients.

        Args:
            values: by name, one for every averaged tensor.

        Returns:
            The copy, in the dtypes of the model.

        Raises:
            InputError: the model cannot be copied.
        """
        self.refresh()
        live = self.live()
        memo: dict[int, Tensor] = {}
        for name, value in values.items():
            copy = value.detach().to(device=live[name].device, dtype=live[name].dtype, copy=True)
            learned = isinstance(live[name], nn.Parameter)
            memo[id(live[name])] = nn.Parameter(copy, requires_grad=False) if learned else copy
        try:
            made = deepcopy(self.root, memo)
        except Exception as error:
            raise InputError(f"the model cannot be copied ({error}); use applied(), which copies nothing") from error
        return made.eval().requires_grad_(False)

    def _targets(self, model: nn.Module) -> dict[str, Tensor]:
        if unwrap(model) is self.root:
            self.refresh()
            return self.live()
        live = Binding(model, buffers=self.buffers == "average", select=self.storage.select).tensors()
        match_names("model", self.live(), live)
        return live

    def _usable(self) -> None:
        if self.exchanged:
            raise InputError(
                "the averaged weights are applied just now, so the model does not hold its raw weights; leave the "
                "applied() block first"
            )

    def _bind(self, old: Mapping[str, Stacks]) -> None:
        if self.storage.flat:
            flatten(self.live())
            self._binding.pin()
        live = self.live()
        roles = self._allocate(live)
        for role, stacks in roles.items():
            kept = old[role].tensors if role in old else {}
            for name, stack in stacks.tensors.items():
                if name in kept and kept[name].shape[1:] != stack.shape[1:]:
                    was, now = tuple(kept[name].shape[1:]), tuple(stack.shape[1:])
                    raise InputError(
                        f"{name!r} changed its shape from {was} to {now}; reset() starts the average again"
                    )
                if name in kept:
                    stack.copy_(kept[name])
                elif role != "compensation":
                    stack.copy_(live[name].detach().expand_as(stack))
        tell_changes(set(old["average"].tensors) if old else set(live), set(live))
        self.roles = roles
        self._seed({t.device for t in live.values()})
        trained = [t for t in live.values() if t.requires_grad]
        self._probes = trained[:: max(1, len(trained) // PROBES)][:PROBES]
        self._pass = Pass(
            live,
            self.roles["average"],
            self.rounding,
            compensation=self.roles.get("compensation"),
            previous=self.roles.get("previous"),
            generators=self.generators,
        )

    def _allocate(self, live: dict[str, Tensor]) -> dict[str, Stacks]:
        def dtype_of(tensor: Tensor) -> torch.dtype:
            return kept_dtype(tensor, self.dtype)

        flat = self.storage.flat
        roles = {"average": allocate(live, self._count, dtype_of, flat=flat)}
        if self.rounding == "compensated":
            roles["compensation"] = allocate(live, self._count, dtype_of, flat=flat)
        if self._hold:
            roles["previous"] = allocate(live, 1, dtype_of, flat=flat, wide=True)
        return roles

    def _seed(self, devices: set[torch.device]) -> None:
        if self.rounding == "stochastic":
            for device in devices - self.generators.keys():
                self.generators[device] = torch.Generator(device).manual_seed(self.storage.seed)
