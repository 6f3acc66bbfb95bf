"""How many samples a backward pass holds, seen in the input of the outermost module that it goes through.

Modules that own the parameters are found in the process, with all that contain them. Where one is called with
gradients on, its output carries a hook that tells the shape of its first input when a backward pass arrives. Compiled
code takes no such hook: there the last shape that was called counts. After the first step only the outermost modules
are looked at.
"""

import dataclasses
import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isobatch.gradients.layer_hook import LayerHook

_COMPILED = 0


class _Note(NamedTuple):
    task: int
    module: int
    rows: int
    row: int | None  # entries of a row where the input holds whole numbers on two axes, such as tokens
    passes: set[int]  # those that this call's samples were counted in


@final
class _Last:
    """What compiled code called last."""

    def __init__(self) -> None:
        self.shape: Sequence[int] | None = None
        self.whole = False

    def write(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        for item in (*inputs, *named.values()):
            if isinstance(item, Tensor) and item.ndim > 0:
                self.shape, self.whole = item.shape, not item.is_floating_point()
                return


@final
class BatchRows:
    """Counts the samples of backward passes from the rows of what the model was given.

    Args:
        usual: samples of a full pass, as they were declared: rows of the first input, or entries (tokens) where it
            holds whole numbers in rows.
    """

    def __init__(self, usual: int):
        self.usual = usual
        self.doubt = ""
        self._last = _Last()
        self._handles: dict[int, tuple[weakref.ref[nn.Module], RemovableHandle]] = {}
        self._above: dict[int, set[int]] = {}
        self._by_row: dict[int, bool] = {}
        self._notes: list[_Note] = []
        self._taken: set[int] = set()
        self._samples = 0.0
        self._outermost: set[int] = set()
        self._settled = False
        weakref.finalize(self, _remove, self._handles)

    def look(self, parameters: Iterable[Tensor]) -> None:
        """Find the modules that own parameters, and those around them, and look at their calls.

        Args:
            parameters: any.
        """
        found, self._above = _around({id(p) for p in parameters})
        self._settled, self._outermost = False, set()
        for module in found:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks; what is around it does
            known = self._handles.get(id(module))
            if known is None or known[0]() is not module:
                hook = LayerHook(partial(_called, weakref.ref(self)), self._last.write)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                self._handles[id(module)] = (weakref.ref(module), handle)

    def samples(self) -> float | None:
        """Return the samples of the backward pass that has just reached its first parameter.

        Returns:
            Samples; None where nothing tells, and then `doubt` says why.
        """
        notes = self._of_this_pass()
        task = torch._C._current_graph_task_id()
        if any(note.passes - {task} for note in notes):
            self._doubt("two backward passes went through one call of the model; add its losses, call backward once")
        for note in notes:
            note.passes.add(task)
        self._taken = {note.task for note in notes} | {task}
        self._notes = []
        if not notes and self._last.shape is not None:
            shape, self._last.shape = self._last.shape, None
            row = int(shape[1]) if len(shape) == 2 and self._last.whole else None
            notes = [_Note(0, _COMPILED, int(shape[0]), row, set())]
        if not notes:
            self._doubt("the input of a backward pass could not be seen (or no module owns the parameters)")
            return None
        self._outermost |= {note.module for note in notes} - {_COMPILED}
        counts = {count for note in notes if (count := self._count(note)) is not None}
        if len(counts) != 1:
            rows = " and ".join(str(n) for n in sorted({note.rows for note in notes}))
            self._doubt(f"a full backward pass holds {self.usual}, but one was given {rows} rows")
            return None
        self._samples = counts.pop()
        return self._samples

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Make ready for the next step; what was not seen in this one is looked for again.

        Args:
            parameters: those whose modules are wanted.
        """
        if self.doubt:
            self.look(parameters)
        elif self._outermost and not self._settled:
            self._settled = True
            for key in [key for key in self._handles if key not in self._outermost]:
                self._handles.pop(key)[1].remove()
        self.doubt = ""
        self._notes, self._last.shape = [], None

    def _doubt(self, why: str) -> None:
        self.doubt = self.doubt or why

    def called(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """Take note of the shape of a call for when its gradient comes.

        Args:
            module: that was called.
            inputs: its arguments.
            named: those by keyword.
            output: what it gave.
        """
        first = next(_tensors([*inputs, *named.values()]), None)
        if first is None or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return
        row = first.shape[1] if first.ndim == 2 and not first.is_floating_point() else None
        tell = partial(self._note, id(module), len(first), row, set())
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(tell)

    def _note(self, module: int, rows: int, row: int | None, passes: set[int], gradient: Tensor) -> None:
        note = _Note(torch._C._current_graph_task_id(), module, rows, row, passes)
        if note.task not in self._taken:
            self._notes.append(note)
            return
        count = self._count(note) if not self._above.get(module, set()) & self._outermost else None
        self._outermost |= set() if self._above.get(module, set()) & self._outermost else {module}
        if count is not None and count != self._samples:
            self._doubt(f"a backward pass went through modules that were given {self._samples:g} and {count:g} samples")

    def _of_this_pass(self) -> list[_Note]:
        """Return what the outermost modules of the present pass told."""
        task = torch._C._current_graph_task_id()
        mine = [note for note in self._notes if note.task == task] or self._notes
        above = {key for note in mine for key in self._above.get(note.module, ())}
        mine = mine + [note for note in self._notes if note.task != task and note.module in above]
        inside = {note.module for note in mine}
        return [note for note in mine if not self._above.get(note.module, set()) & inside]

    def _count(self, note: _Note) -> float | None:
        """Return the samples of a call; None where its rows are in another unit than what was declared."""
        if note.module not in self._by_row:
            if note.rows == self.usual:
                self._by_row[note.module] = True
            elif note.row is not None and note.rows * note.row == self.usual:
                self._by_row[note.module] = False
            elif note.rows < self.usual and (note.row is None or note.rows * note.row > self.usual):
                return float(note.rows)  # a short pass comes first
            else:
                return None
        return float(note.rows if self._by_row[note.module] else note.rows * (note.row or 1))


def _called(rows: "weakref.ref[Any]", *call: Any) -> None:
    known = rows()
    if known is not None:
        known.called(*call)


def _remove(handles: dict[int, tuple[Any, RemovableHandle]]) -> None:
    for _, handle in handles.values():
        handle.remove()


def _around(wanted: set[int]) -> tuple[list[nn.Module], dict[int, set[int]]]:
    """Return the modules of this process that hold wanted parameters anywhere, and the ids of those around each."""
    things = gc.get_objects()
    # type(), not isinstance: lazy proxies must not be woken
    kinds = {kind for kind in set(map(type, things)) if issubclass(kind, nn.Module)}
    modules = {id(m): m for m in things if type(m) in kinds and "_modules" in vars(m)}
    parents: dict[int, set[int]] = {}
    for key, module in modules.items():
        for child in vars(module)["_modules"].values():
            parents.setdefault(id(child), set()).add(key)
    above: dict[int, set[int]] = {}

    def climb(key: int) -> set[int]:
        if key not in above:
            above[key] = set()
            for parent in parents.get(key, ()):
                above[key] |= {parent} | climb(parent)
        return above[key]

    owners = [k for k, m in modules.items() if any(id(p) in wanted for p in vars(m)["_parameters"].values())]
    inside = set(owners).union(*map(climb, owners)) if owners else set()
    return [modules[key] for key in inside], {key: above.get(key, set()) for key in inside}


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield tensors in tuples, lists, mappings and objects with such fields."""
    if isinstance(value, Tensor):
        if value.ndim > 0 or value.requires_grad:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
