"""Averages by name beside the model they follow: the tensors that every kind of average shares."""

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import final

import torch
from torch import Tensor, nn

from isobatch.average.binding import Binding, Weights, bare, reusable, tell_changes
from isobatch.average.intake import Application, FiniteCheck, Intake, Lost
from isobatch.average.kernels import refuse_beyond
from isobatch.average.layout import Buffers, Stacks, Storage, allocate, flatten, kept_dtype
from isobatch.average.lending import exchanged, lent
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import Shards, canonical, dressed, first_not_finite, fitted, local, piece, settle, unwrap
from isobatch.modules import with_weights

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@final
class AverageBuffers:
    """K averages of every averaged tensor of one model.

    Args:
        model: the model, wrapped or bare.
        count: K.
        dtype: in which the averages are held.
        buffers: "copy" leaves buffers the model's own, "average" averages the floating ones.
        storage: rounding, layout, selection and device.
        previous: whether the weights of the last update are kept too, for a first-order hold.

    Raises:
        InputError: another dtype, an unknown word for buffers, or a tensor that cannot be averaged, by name.
        NonFiniteError: a weight that is not finite, by name.
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
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype} must be torch.float32, float64, bfloat16 or float16")
        if storage is not None and not isinstance(storage, Storage):
            raise InputError(f"storage={storage!r} must be a Storage(...), or None for the defaults")
        self.dtype, self.of_buffers = dtype, buffers
        self.storage = Storage() if storage is None else storage
        self.rounding = self.storage.resolve(dtype, count)
        self.exchanged = False
        self._lost = Lost(dtype)
        self._count, self._hold = count, previous
        self._binding = Binding(model, buffers=buffers == "average", select=self.storage.select)
        self.generators: dict[torch.device, torch.Generator] = {}
        self.roles: dict[str, Stacks] = {}
        self._was_still: set[str] = set()
        self.shards = Shards(())
        self.check = FiniteCheck(self.storage.check_finite)
        self.intake = Intake(self.storage, self.check)
        self._bind({})
        own = self._own_buffers()
        self._by_design = {name for name in own if first_not_finite({name: own[name]}) is not None}

    @property
    def root(self) -> nn.Module:
        """The bare model."""
        return self._binding.root

    @property
    def still(self) -> set[str]:
        """Names of tensors that hold infinities by design and do not train; their averages are copies."""
        return self._binding.still

    @property
    def aliases(self) -> Mapping[str, str]:
        """First names of tied tensors, by their further names."""
        return self._binding.aliases

    def others(self) -> list[tuple[str, Tensor]]:
        """Return the parameters that are not averaged, by name."""
        return self._binding.others()

    def _own_buffers(self) -> dict[str, Tensor]:
        live = self.live()
        return {
            name: tensor
            for name, tensor in self.root.named_buffers()
            if name not in live and tensor.is_floating_point() and not tensor.is_meta and tensor.layout == torch.strided
        }

    def bad_buffer(self) -> str | None:
        """Return the first buffer that stays the model's own and has lost its finite values, by name.

        Returns:
            A name; None where there is none, or where it held infinities when the average was made.
        """
        return first_not_finite(self._own_buffers(), self._by_design)

    def reset(self) -> None:
        """Start every average again at the model's present weights, with the selection made afresh.

        Raises:
            NonFiniteError: a weight that is not finite; the averages were left as they were.
        """
        self.refuse_lent()
        self._take_in_or_leave_out()
        self._rebind({}, anew=True)

    def reconsider(self) -> None:
        """Let go of buffers that the first forward passes have shown to be unit vectors."""
        self.intake.finish()
        if self._binding.reconsider():
            gone = self.roles["average"].tensors.keys() - self._binding.slots.keys()
            self._bind(self.roles, gone)

    def follow(self) -> None:
        """Let a first-order hold begin at the model's present weights."""
        if "previous" in self.roles:
            self.refuse_lent()
            parts = self.parts()
            for name, stack in self.roles["previous"].tensors.items():
                stack[0].copy_(parts[name].detach())

    def refresh(self, *, quick: bool = False) -> None:
        """Re-bind when a module or parameter was replaced, added, removed, moved or cast.

        Args:
            quick: whether Binding.unmoved() is enough, as in an update, where what is new has not moved yet; otherwise
                what is under way is taken in.

        Raises:
            InputError: a tensor changed its shape, or the averages are lent to the model.
            NonFiniteError: what was under way is not finite.
        """
        self._usable()
        if not quick:
            self.intake.finish()
        if self.shards:
            settle(self.root)
        if self._binding.unmoved() if quick else self._binding.current():
            return
        self.intake.finish()
        self._rebind(self.roles)

    def _rebind(self, old: Mapping[str, Stacks], *, anew: bool = False) -> None:
        try:
            self._binding.bind(anew=anew)
            self._bind(old)
        except (InputError, NonFiniteError):
            self._binding.forget()
            raise

    def live(self) -> dict[str, Tensor]:
        """Return the model's averaged tensors by name."""
        return self._binding.tensors()

    def parts(self) -> dict[str, Tensor]:
        """Return what this rank holds of the model's averaged tensors, by name."""
        return {name: local(tensor) for name, tensor in self.live().items()}

    def dressed(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parts as tensors that are spread over ranks as the model's are.

        Args:
            parts: by name, of the shapes that this rank holds.

        Returns:
            By name.
        """
        live = self.live() if self.shards else {}
        return {name: dressed(part, live[name]) if live else part for name, part in parts.items()}

    def trained(self) -> list[Tensor]:
        """Return the tensors that train now, by which a changed model can be told from an unchanged one."""
        return [t for t in self.live().values() if t.requires_grad]

    def values(self, index: int) -> dict[str, Tensor]:
        """Return one average by name; the tensors are the average itself.

        Args:
            index: which of the K.

        Returns:
            Views of the stacks.

        Raises:
            NonFiniteError: the average took in a weight that was not finite.
        """
        self.verify()
        return self.dressed({name: stack[index] for name, stack in self.roles["average"].tensors.items()})

    def verify(self) -> None:
        """Look at the averages before they are used, unless a loan holds them as they were when it began.

        Raises:
            NonFiniteError: an average took in a weight that was not finite, or one under way is not.
        """
        self.intake.finish()
        if not self.exchanged:
            self.check.before_use()

    def apply(self, application: Application) -> None:
        """Move every average by the present weights: now, or with Storage(overlap=True) while the model computes on.

        Args:
            application: weights of the update, one per average, and what belongs to it.

        Raises:
            InputError: rounding to nearest in a narrow dtype would lose any update of this weight.
            NonFiniteError: names the first bad tensor; no average was moved.
        """
        if self.rounding == "nearest" and max(application.shares)[0] > self._lost.above:
            self._lost.note([1 - s.keep for s in application.shares])
        self.intake.apply(application)

    def replaced(self) -> None:
        """Get ready for averages that somebody loads: what is under way is taken in, or left out where it is refused.

        Raises:
            InputError: inside an applied() block.
        """
        self._usable()
        self._take_in_or_leave_out()
        self.refresh()

    def _take_in_or_leave_out(self) -> None:
        with suppress(NonFiniteError):
            self.intake.finish()

    @contextmanager
    def applied(self, model: Weights, values: Mapping[str, Tensor]) -> Generator[None]:
        """Give `model` the given values inside the block.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
            values: by name, one for every averaged tensor.

        Yields:
            None, with the values in place.
        """
        self._usable()
        given = reusable(model)
        targets = self._targets(given).items()
        pairs = [(tensor, fitted(values[name], tensor, name)) for name, tensors in targets for tensor in tensors]
        self.exchanged = True
        try:
            with exchanged(bare(given), pairs):
                yield
        finally:
            self.exchanged = False

    @torch.no_grad()
    def copy_to(self, model: Weights, values: Mapping[str, Tensor]) -> None:
        """Write values into a model's tensors.

        Args:
            model: the bound model, a wrapper of it, or another model with the same names.
            values: by name; tensors that joined the model since these were stored stay as they are.
        """
        given = reusable(model)
        self.refuse_lent(given)
        for name, tensors in self._targets(given).items():
            if name not in values:
                continue
            for tensor, value in [(tensor, fitted(values[name], tensor, name)) for tensor in tensors]:
                if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
                    tensor.data = value.to(device=tensor.device, dtype=tensor.dtype, copy=True)
                else:
                    local(tensor).copy_(value)

    def model(self, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the bare model with the given values, in evaluation mode, without gradients.

        Args:
            values: by name, one for every averaged tensor.

        Returns:
            The copy, in the dtypes of the model.

        Raises:
            InputError: the model cannot be copied truly.
        """
        self.refresh()
        live = self.live()
        with torch.inference_mode(False), torch.no_grad():
            copies = {
                name: value.detach().to(device=live[name].device, dtype=live[name].dtype, copy=True)
                for name, value in values.items()
            }
        try:
            made = with_weights(self.root, copies)
        except InputError as error:
            raise InputError(f"{error}; or use applied(), which makes no copy of the model") from error
        return made.eval().requires_grad_(False)

    @torch.no_grad()
    def raw(self, model: Weights) -> dict[str, Tensor]:
        """Return copies of a model's own values, for copy_to().

        Args:
            model: the bound model, a wrapper of it, another model with the same names, or parameters in its order.

        Returns:
            By name.
        """
        given = reusable(model)
        self.refuse_lent(given)
        return {name: tensors[0].detach().clone() for name, tensors in self._targets(given).items()}

    def _targets(self, model: Weights) -> dict[str, list[Tensor]]:
        if not isinstance(model, nn.Module):
            return in_order(self.root, self.live(), list(bare(model).parameters()))
        if unwrap(model) is self.root:
            self.refresh()
            return {name: [tensor] for name, tensor in self.live().items()}
        return self._binding.in_other(model)

    def refuse_lent(self, model: Weights | None = None) -> None:
        """Refuse to read, or to write for good, weights that an average has given other values for a while.

        Args:
            model: whose weights; the bound model unless given.

        Raises:
            InputError: inside an applied() block, of this average or of another one of the same weights.
        """
        self._usable()
        if lent(self.root if model is None else bare(model)):
            raise InputError(
                "another average of these weights is applied just now, so the model does not hold its raw weights; "
                "leave its applied() block first"
            )

    def _usable(self) -> None:
        if self.exchanged:
            raise InputError(
                "the averaged weights are applied just now, so the model does not hold its raw weights; leave the "
                "applied() block first"
            )

    def _bind(self, old: Mapping[str, Stacks], told: Collection[str] = ()) -> None:
        with torch.inference_mode(False), torch.no_grad():
            if self.storage.moves:
                # the binding's own alias is made anew; one of somebody else would go on with the old values
                flatten(self.parts(), self.storage.moves, holders=1)
                self._binding.pin()
            self.shards = Shards(self.live().values())
            live = self.parts()
            kept = {role: self._cut(stacks.tensors) for role, stacks in old.items()}
            self._refuse(live, kept.get("average", {}))
            read = self.intake.read(live, spread=bool(self.shards))
            roles = self._allocate(read)
            for role, stacks in roles.items():
                for name, stack in stacks.tensors.items():
                    if name in kept.get(role, {}) and not (name in self._was_still and name not in self.still):
                        stack.copy_(kept[role][name])
                    elif role != "compensation":
                        stack.copy_(read[name].detach().expand_as(stack))
            self._seed({t.device for t in read.values()})
            self._lost.held(stack.dtype for stack in roles["average"].tensors.values())
            self.intake.bind(live, roles, self.rounding, self.generators, self.shards, set(self.still))
        tell_changes(set(kept["average"]) - set(told) if old else set(live), set(live))
        self.roles, self._was_still = roles, set(self.still)

    def _cut(self, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's parts of averages that began before the model was sharded."""
        live, found = self.live(), dict(stacks)
        for name, stack in stacks.items():
            tensor = live.get(name)
            if tensor is not None and stack.shape[1:] == tensor.shape != local(tensor).shape:
                found[name] = torch.stack([piece(average, tensor) for average in stack])
        return found

    def _refuse(self, live: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        """Refuse a changed shape, and new averages that would start at something that is not finite."""
        for name, tensor in live.items():
            if name in kept and kept[name].shape[1:] != tensor.shape:
                was, now = tuple(kept[name].shape[1:]), tuple(tensor.shape)
                raise InputError(f"{name!r} changed its shape from {was} to {now}; reset() starts the average again")
        for name in live.keys() - kept.keys():
            refuse_beyond(name, live[name], kept_dtype(live[name], self.dtype))
        bad = self.shards.first(first_not_finite(live, {*self.still, *(kept.keys() - self._was_still)}), live)
        if bad is not None:
            raise NonFiniteError(
                f"{bad!r} is not finite, and an average that starts there never recovers; start it at finite weights. "
                'What is infinite by design is left out with Storage(select=...), a buffer with buffers="copy"',
                parameter=bad,
            )

    def _allocate(self, live: dict[str, Tensor]) -> dict[str, Stacks]:
        def dtype_of(tensor: Tensor) -> torch.dtype:
            return kept_dtype(tensor, self.dtype)

        still = self.still
        roles = {"average": allocate(live, self._count, dtype_of, still=still)}
        if self.rounding == "compensated":
            roles["compensation"] = allocate(live, self._count, dtype_of, still=still)
        if self._hold:
            roles["previous"] = allocate(live, 1, dtype_of, wide=True, still=still)
        return roles

    def _seed(self, devices: set[torch.device]) -> None:
        if self.rounding == "stochastic":
            for device in devices - self.generators.keys():
                self.generators[device] = torch.Generator(device).manual_seed(self.storage.seed)


def in_order(root: nn.Module, names: Collection[str], parameters: list[nn.Parameter]) -> dict[str, list[Tensor]]:
    """Return parameters under the names that a model's own have, taken to be in its order.

    Args:
        root: the model.
        names: of those wanted.
        parameters: as many as the model has, of the same shapes.

    Returns:
        One for each name.

    Raises:
        InputError: another number of them, or another shape.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> list(in_order(net, ["bias"], list(nn.Linear(1, 1).parameters())))
        ['bias']
    """
    own = [(canonical(name), p) for name, p in root.named_parameters()]
    if len(own) != len(parameters):
        raise InputError(f"{len(parameters)} parameters given, and the model has {len(own)}; give model.parameters()")
    for (name, mine), theirs in zip(own, parameters, strict=True):
        if mine.shape != theirs.shape:
            raise InputError(f"{name!r} has shape {tuple(mine.shape)} here, {tuple(theirs.shape)} was given")
    found = {name: p for (name, _), p in zip(own, parameters, strict=True)}
    return {name: [found[name]] for name in names}
