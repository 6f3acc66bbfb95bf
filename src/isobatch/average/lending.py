"""The averaged weights lent out: given to the model for a block, or to a module that teaches."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.gradients import address, canonical, local, settle, sharded
from isobatch.modules import bare_class, copied, leaves_weights_alone

Mode = Literal["eval", "train"]
MODES = ("eval", "train")
LOOKS = 8
_LENT: dict[int, list["Loan"]] = {}
"""Loans of a tensor by its id, the latest last; each holds the tensor meanwhile."""


@final
class Loan:
    """Other values in a tensor for a while; what was there comes back, in whatever order loans of one tensor end.

    A shard keeps its storage, because FSDP gathers from there; any other tensor gets a copy of the values.

    Args:
        live: the tensor.
        value: what this rank's part of it shall hold.

    Example:
        >>> live = torch.zeros(1)
        >>> first, second = Loan(live, torch.ones(1)), Loan(live, torch.full((1,), 2.0))
        >>> first.end(), live.item(), second.end(), live.item()
        (None, 2.0, None, 0.0)
    """

    def __init__(self, live: Tensor, value: Tensor):
        self._live, self._part = live, local(live) if sharded(live) else None
        if self._part is None:
            self._raw = live.data
            live.data = value.detach().to(device=live.device, dtype=live.dtype, copy=True)
        else:
            self._raw = self._part.clone()
            self._part.copy_(value)
        _LENT.setdefault(id(live), []).append(self)

    def end(self) -> None:
        """Put back what was there, or hand it to the next loan where the tensor was lent again since."""
        loans = _LENT[id(self._live)]
        place = loans.index(self)
        del loans[place]
        if place < len(loans):
            loans[place]._raw = self._raw
        elif self._part is None:
            self._live.data = self._raw
        else:
            self._part.copy_(self._raw)
        if not loans:
            del _LENT[id(self._live)]


def lent(model: nn.Module) -> bool:
    """Whether some block has given a parameter of a model other values than its own.

    Args:
        model: bare.

    Returns:
        False where all hold what was trained.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with exchanged(layer, [(layer.weight, torch.zeros(1, 1))]):
        ...     lent(nn.Sequential(layer))
        True
    """
    return bool(_LENT) and any(id(parameter) in _LENT for parameter in model.parameters())


@contextmanager
def exchanged(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Generator[None]:
    """Let live tensors hold copies of other values inside the block; put everything back on the way out.

    Parameters and buffers are the same objects with the same storages afterwards, whatever a forward pass wrote into
    them, replaced, added or removed, and the values that were lent are not changed either. Blocks may end in any order.

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
    borrowed = list(pairs)
    loans: list[Loan] = []
    tables: list[dict[str, Any]] = [t for module in model.modules() for t in (module._parameters, module._buffers)]
    saved = [(table, dict(table)) for table in tables]
    passing = [(module, set(module._non_persistent_buffers_set)) for module in model.modules()]
    frozen: list[tuple[str, nn.Parameter, int]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for live, value in borrowed:
                loans.append(Loan(live, value))
            given = {id(live) for live, _ in borrowed}
            for table, entries in saved:
                for key, buffer in entries.items():
                    if buffer is None or id(buffer) in given or isinstance(buffer, nn.Parameter):
                        continue
                    given.add(id(buffer))
                    if buffer.is_inference():
                        table[key] = buffer.clone()
                    else:
                        loans.append(Loan(buffer, buffer.data))
        frozen = [
            (n, p, p._version) for n, p in model.named_parameters() if id(p) not in given and not p.is_inference()
        ]
        yield
        failed = False
    finally:
        settle(model, failed=failed)
        with torch.inference_mode(False), torch.no_grad():
            for loan in loans:
                loan.end()
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
