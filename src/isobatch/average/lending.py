"""The averaged weights lent out: looked at first, then given to the model for a block or to a module that teaches."""

import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.kernels import Item, gather
from isobatch.average.layout import Stacks
from isobatch.errors import InputError, NonFiniteError
from isobatch.gradients import Shards, address, canonical, first_not_finite, local, may_be_finite, settle, sharded
from isobatch.modules import bare_class, copied, leaves_weights_alone

Mode = Literal["eval", "train"]
MODES = ("eval", "train")
LOOKS, LEAST = 8, 1 << 14  # elements looked at in every update at least, so models of no more as a whole
TURNS = 64  # updates after which everything was looked at, however large the model


@final
class Turns:
    """Weights and averages, cut into the shares that are looked at in turn.

    Args:
        items: of every tensor of a model that is averaged.
        always: small weights that are looked at before every update: of biases and norms every layer has some.

    Example:
        >>> Turns([Item(torch.zeros(1, 2), torch.ones(2), None, None)], ()).weights(whole=False)
        True
    """

    def __init__(self, items: Sequence[Item], always: Sequence[Tensor]):
        total = sum(item.weights.numel() for item in items)
        size = max(LEAST, ceil(total / TURNS))
        self._turns = gather(items, size)
        self._items, self._now = items, 0
        cheap = max(LEAST, total // 16)
        self._always = [w for w in always if w.numel() <= cheap] if len(self._turns) > 1 else []

    @property
    def count(self) -> int:
        """Updates that a full round takes."""
        return max(1, len(self._turns))

    def weights(self, *, whole: bool) -> bool:
        """Go on to the next share, and say whether the small weights may be finite; where there are none, its weights.

        Args:
            whole: look at all of them.

        Returns:
            False where a sum overflowed or a weight is not finite.
        """
        self._now = (self._now + 1) % self.count
        if whole:
            return may_be_finite(item.weights for item in self._items)
        return may_be_finite(self._always or (item.weights for item in self._due()))

    def averages(self, *, whole: bool = False) -> bool:
        """Whether the averages of the present share may be finite.

        Args:
            whole: look at all of them.

        Returns:
            False where a sum overflowed or an average is not finite.
        """
        return may_be_finite(item.average for item in (self._items if whole else self._due()))

    def _due(self) -> Sequence[Item]:
        return self._turns[self._now] if self._turns else ()


@final
class FiniteCheck:
    """What an average promises about values that are not finite: named before they are used, and undone.

    - Before every update, all small weights are looked at (where there are none, a share of the weights), and a share
      of the averages. What is found is refused by name, and nothing has moved: a loss that became NaN reaches the small
      weights of every layer at once. After a refusal, everything is looked at until it is finite.
    - A single weight elsewhere is named when its share is due, `turns` updates later at most, and before the average
      is lent, copied or stored. Elements that took it in start again at the weights once these are finite, with a
      warning that counts them; the others were never touched by it.

    Args:
        check: True as above, "all" to look at everything before every update, False to look at nothing.
    """

    def __init__(self, check: bool | Literal["all"]):
        self._check, self._stale, self._seen, self._refused = check, 0, 0.0, False
        self._moved = False  # unlike _stale it is the same on every rank, whatever share of the model a rank has

    @property
    def turns(self) -> int:
        """Updates after which everything was looked at."""
        return 1 if self._check == "all" else self._turns.count

    def bind(
        self,
        items: Sequence[Item],
        small: Sequence[Tensor],
        live: Mapping[str, Tensor],
        roles: Mapping[str, Stacks],
        shards: Shards,
        still: Collection[str],
    ) -> None:
        """Look at these tensors from now on.

        Args:
            items: of every tensor that is averaged.
            small: weights that are looked at before every update.
            live: the model's tensors by name, as this rank holds them.
            roles: the averages and their companions.
            shards: over which ranks agree.
            still: names of tensors that hold infinities by design.
        """
        self._turns = Turns(items, small)
        self._live, self._shards, self._still = live, shards, still
        self._stacks = {role: stacks.tensors for role, stacks in roles.items()}

    @contextmanager
    def paused(self) -> Generator[None]:
        """Hand out averages as they are inside the block, for a report that names what is wrong with them.

        Yields:
            None.
        """
        check, self._check = self._check, False
        try:
            yield
        finally:
            self._check = check

    def before_update(self, seen: float, *, whole: bool) -> None:
        """Refuse weights that are not finite, on this rank or on another; mend averages whose weights are again.

        Args:
            seen: samples so far, for the message.
            whole: look at everything, as where a teacher computes with the average after every update.

        Raises:
            NonFiniteError: names the first bad tensor; the update moved nothing.
        """
        if not self._check:
            return
        self._seen, average = seen, self._stacks["average"]
        whole = whole or self._refused or self.turns == 1
        fine = self._turns.weights(whole=whole)
        spoilt = None
        if self._stale and not (fine and self._turns.averages(whole=self._refused)):
            spoilt = first_not_finite(average, self._still)
        own = None if fine and spoilt is None else first_not_finite(self._live, self._still)
        bad = self._shards.first(own, self._live)
        self._refused = bad is not None
        if bad is not None:
            raise NonFiniteError(
                f"{bad!r} is not finite after {seen:g} samples; the average was left as it was{self._took(spoilt)}. "
                "Restore the weights (they may be taken from the average), then go on; what is infinite by design is "
                'left out with Storage(select=...), a buffer with buffers="copy"',
                seen=int(seen),
                parameter=bad,
            )
        if spoilt is not None:
            self._mend()
        self._stale += not whole or self._stale > 0
        self._moved = True

    def before_use(self) -> None:
        """Look at all averages that were moved since they were last looked at as a whole; all ranks agree.

        Raises:
            NonFiniteError: an average took in a weight that was not finite, and its weights still are not.
        """
        if not self._check or not (self._moved or self._stale):
            return
        fine = not self._stale or self._turns.averages(whole=True)
        spoilt = None if fine else first_not_finite(self._stacks["average"], self._still)
        lost = spoilt is not None and first_not_finite(self._live, self._still) is not None
        bad = self._shards.first(spoilt if lost else None, self._live)
        if bad is not None:
            raise NonFiniteError(
                f"after {self._seen:g} samples the average must not be used{self._took(bad)}. Restore finite "
                "weights, then go on; or load the averages of a checkpoint",
                seen=int(self._seen),
                parameter=bad,
            )
        if spoilt is not None:
            self._mend()
        self._stale, self._moved = 0, False

    def _took(self, name: str | None) -> str:
        words = "took in a weight that was not finite within the last"
        again = "updates, and start again at the weights once these are finite"
        return "" if name is None else f"; elements of the average of {name!r} {words} {self._stale} {again}"

    @torch.no_grad()
    def _mend(self) -> None:
        """Start elements that are not finite again at the present weights."""
        for name, stack in self._stacks["average"].items():
            bad = ~torch.isfinite(stack)
            count = 0 if name in self._still else int(bad.sum())
            if not count:
                continue
            weights = self._live[name].detach().to(stack.device)
            stack.copy_(torch.where(bad, weights.to(stack.dtype), stack))
            if "compensation" in self._stacks:
                self._stacks["compensation"][name].masked_fill_(bad, 0)
            if "previous" in self._stacks:
                before = self._stacks["previous"][name]
                before.copy_(torch.where(torch.isfinite(before), before, weights.to(before.dtype)))
            warnings.warn(
                f"{count} elements of the average of {name!r} took in a weight that was not finite within the last "
                f"{self._stale} updates; they start again at the present weights, after {self._seen:g} samples",
                stacklevel=6,
            )


@contextmanager
def exchanged(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Generator[None]:
    """Let live tensors hold copies of other values inside the block; put everything back on the way out.

    Parameters and buffers are the same objects with the same storages afterwards, whatever a forward pass wrote into
    them, replaced, added or removed, and the values that were lent are not changed either. A shard keeps its storage
    inside the block too, because FSDP gathers from there.

    Args:
        model: the module whose buffers are shielded.
        pairs: (live tensor, what this rank's part of it shall hold).

    Yields:
        None, with the values in place.

    Raises:
        InputError: something was written into a parameter that is not exchanged.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with exchanged(layer, [(layer.weight, torch.full((1, 1), 2.0))]):
        ...     layer.weight.item()
        2.0
    """
    settle(model)
    failed = True
    lent = list(pairs)
    undo: list[tuple[Tensor, Tensor]] = []
    shards: list[tuple[Tensor, Tensor]] = []
    tables: list[dict[str, Any]] = [t for module in model.modules() for t in (module._parameters, module._buffers)]
    saved = [(table, dict(table)) for table in tables]
    passing = [(module, set(module._non_persistent_buffers_set)) for module in model.modules()]
    frozen: list[tuple[str, nn.Parameter, int]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for live, value in lent:
                if sharded(live):
                    shards.append((local(live), local(live).clone()))
                    local(live).copy_(value)
                    continue
                undo.append((live, live.data))
                live.data = value.detach().to(device=live.device, dtype=live.dtype, copy=True)
            given = {id(live) for live, _ in lent}
            for table, entries in saved:
                for key, buffer in entries.items():
                    if buffer is None or id(buffer) in given or isinstance(buffer, nn.Parameter):
                        continue
                    given.add(id(buffer))
                    if buffer.is_inference():
                        table[key] = buffer.clone()
                    else:
                        undo.append((buffer, buffer.data))
                        buffer.data = buffer.data.clone()
        frozen = [
            (n, p, p._version) for n, p in model.named_parameters() if id(p) not in given and not p.is_inference()
        ]
        yield
        failed = False
    finally:
        settle(model, failed=failed)
        with torch.inference_mode(False), torch.no_grad():
            for part, raw in shards:
                part.copy_(raw)
        for live, raw in undo:
            live.data = raw
        for table, entries in saved:
            if [*table] != [*entries] or any(table[key] is not entries[key] for key in entries):
                table.clear()
                table.update(entries)
        for module, names in passing:
            module._non_persistent_buffers_set = names
    _refuse_written(frozen)


@final
class Teacher:
    """A module that holds an average, without gradients, whose calls change neither the student nor the average.

    Where all code is that of torch's own layers, its parameters are the average's own storage, so that an update of the
    average moves the teacher too; in evaluation mode its buffers are the student's own. Anything else may write into
    its weights or buffers, and gets copies of its own, brought up to date by refresh().

    Args:
        root: the student, bare.
        live: its averaged tensors by name.
        others: its parameters that are not averaged, by name; they are shared.
        values: returns the average by name.
        mode: "eval" or "train".

    Raises:
        InputError: an unknown mode, or a model that cannot be copied truly.
    """

    def __init__(
        self,
        root: nn.Module,
        live: Mapping[str, Tensor],
        others: Iterable[tuple[str, Tensor]],
        values: Callable[[], Mapping[str, Tensor]],
        mode: Mode,
    ):
        if mode not in MODES:
            raise InputError(f'mode={mode!r} must be "eval" or "train"')
        self._values = values
        trusted = leaves_weights_alone(root)
        self._shared = trusted and mode == "eval"
        average = values()
        with torch.inference_mode(False), torch.no_grad():
            buffers = root.named_buffers(remove_duplicate=False) if self._shared else ()
            given = {canonical(name): buffer for name, buffer in buffers} | {name: p.data for name, p in others}
            for name, value in average.items():
                share = trusted and (mode == "eval" or isinstance(live[name], nn.Parameter))
                given[name] = _like(live[name], value, share=share)
            try:
                copy = copied(root, given)
            except InputError as error:
                raise InputError(f"{error}; until then the average cannot teach") from error
        self.module: nn.Module = copy.module.train(mode == "train").requires_grad_(False)
        self._pairs = copy.pairs
        self._words = [] if trusted else [(vars(a), vars(b), key) for a, b in copy.pairs for key in _constants(a)]
        names = {id(tensor): name for name, tensor in live.items()}
        self._averaged = set(names)
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        for student, mine in copy.pairs:
            for here, there in ((student._parameters, mine._parameters), (student._buffers, mine._buffers)):
                self._places |= {names[id(t)]: (there, key) for key, t in here.items() if id(t) in names}
        self._stamp: tuple[int, int] = self._versions(average)
        self._looks, self._past = (0 if trusted else LOOKS), False

    @torch.no_grad()
    def refresh(self, *, moved: bool = False) -> None:
        """Bring what is not shared up to date with the average and the student.

        Args:
            moved: whether the average has moved since; otherwise it is asked.
        """
        with torch.inference_mode(False):
            settle(self.module)
            values = self._values()
            if moved or self._versions(values) != self._stamp or self._written(values):
                for name, (table, key) in self._places.items():
                    _bring(table, key, values[name])
                self._stamp = self._versions(values)
            for student, mine in self._pairs:
                self._follow(student, mine)
            for theirs, own, key in self._words:
                if theirs.get(key) != own.get(key):
                    own[key] = theirs.get(key)

    def _follow(self, student: nn.Module, mine: nn.Module) -> None:
        """Take over the student's buffers, and its parameters that are not averaged."""
        own: Any
        for key, tensor in student._buffers.items():
            own = mine._buffers.get(key)
            if tensor is None or id(tensor) in self._averaged:
                continue
            if not self._shared:
                _bring(mine._buffers, key, tensor)
            elif own is None or own.data_ptr() != tensor.data_ptr():
                mine._buffers[key] = tensor.detach()
        for key in mine._buffers.keys() - student._buffers.keys():
            del mine._buffers[key]
        for key, parameter in student._parameters.items():
            own = mine._parameters.get(key)
            if parameter is None or own is None or id(parameter) in self._averaged:
                continue
            if sharded(own):
                local(own).copy_(local(parameter))
            elif own.data_ptr() != parameter.data_ptr():
                own.data = parameter.data

    def _versions(self, values: Mapping[str, Tensor]) -> tuple[int, int]:
        held = [table.get(key) for table, key in self._places.values()]
        return (
            sum(local(v)._version for v in values.values()),
            sum(-1 if h is None or h.is_inference() else h._version for h in held),
        )

    def _written(self, values: Mapping[str, Tensor]) -> bool:
        """Whether calls write weights past their versions: looked at for the first few askings, then known."""
        if self._looks and not self._past:
            self._looks -= 1
            self._past = any(not _equal(table.get(key), values[name]) for name, (table, key) in self._places.items())
        return self._past


def _bring(table: dict[str, Any], key: str, value: Tensor) -> None:
    """Give a place the values of a tensor, in its own storage."""
    own = table.get(key)
    if own is not None and own.requires_grad:  # a forward put a parameter of its own there
        own = table[key] = nn.Parameter(own.detach(), requires_grad=False)
    if own is None or own.is_inference() or own.shape != value.shape:
        made = (
            value.detach().clone() if own is None else value.detach().to(device=own.device, dtype=own.dtype, copy=True)
        )
        table[key] = nn.Parameter(made, requires_grad=False) if isinstance(own, nn.Parameter) else made
    elif address(own) != address(value) or own.dtype != value.dtype:
        local(own).copy_(local(value))


def _equal(own: Tensor | None, value: Tensor) -> bool:
    if own is None or own.shape != value.shape:
        return False
    mine, theirs = local(own), local(value)
    return torch.equal(mine, theirs.to(mine))


def _constants(module: nn.Module) -> list[str]:
    """Names of a module's own settings, which may be changed as training goes."""
    if bare_class(module).__module__.startswith("torch."):
        return []
    plain = set(vars(nn.Module()))
    return [k for k, v in vars(module).items() if k not in plain and isinstance(v, int | float | str | None)]


def _like(live: Tensor, value: Tensor, *, share: bool) -> Tensor:
    made = value.detach().to(device=live.device, dtype=live.dtype)
    return made.clone() if address(made) == address(value) and not share else made


def _refuse_written(parameters: Iterable[tuple[str, nn.Parameter, int]]) -> None:
    written = [name for name, parameter, version in parameters if parameter._version != version]
    if written:
        raise InputError(
            f"{written[:5]} are not averaged and were written inside the applied() block, so the model's own weights "
            "have changed; average them too, or evaluate average_model()"
        )
