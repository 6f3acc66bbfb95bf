"""How averages are held: the options of their memory, and where they live in it.

K averages of one tensor are one tensor of shape [K, *shape], so a single operation moves all of them and reads the
weights once. Tensors of at most SMALL elements share one buffer of shape [K, total].
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from isobatch.average.binding import Select
from isobatch.errors import InputError
from isobatch.units import whole

Buffers = Literal["copy", "average"]
RoundingInForce = Literal["nearest", "stochastic", "compensated"]
NARROW = (torch.bfloat16, torch.float16)
Rounding = Literal["auto", "nearest", "stochastic", "compensated"]
SMALL = 4096
MANY, THIN = 64, 8192  # small tensors, and elements of the model to each, from which "auto" moves them together
ALIGNED = 32  # elements: at least the 64 bytes of torch's own allocations, so that no kernel takes another path

# (average dtype, weights dtype, device): tensors with the same key go through the same operations.
Key = tuple[torch.dtype, torch.dtype, torch.device]


@final
@dataclass(frozen=True)
class Storage:
    """Options of the memory behind an average; the defaults suit almost every model.

    Args:
        rounding: how a result is rounded to the average's dtype: "nearest"; "stochastic" (unbiased, from a private
            seeded generator, so ranks agree); "compensated" (a second tensor keeps what rounding lost); "auto" takes
            nearest for float32 and wider, stochastic below.
        seed: of the stochastic rounding.
        flat: move the model's parameters into one buffer per dtype, so that they are averaged in one operation; they
            stay the same objects, aligned as before. "auto" moves small ones, on a CPU where collecting them costs
            more than averaging them (at least 64, with less than 8,192 elements of the model to each); True moves
            all, which for a moment takes the memory of the model again. Parameters whose memory somebody else holds
            too stay where they are.
        select: which parameters to average, by canonical name and tensor; None for all. The rest, and buffers that
            are not averaged, stay the model's own. What was chosen stays chosen when it is frozen; what is chosen
            later joins with a warning.
        check_finite: True refuses weights that are not finite by name, looking before every update at all small
            ones and at a 64th of the averages (at everything in models of up to 16,384 elements), and at everything
            before the average is used; "all" looks at everything before every update (one more read of the
            weights); False looks at nothing, where the training loop has judged the step already.
        compiled: update large tensors on a CPU by torch.compile, equal to rounding: compensated averages, measured 2.5
            to 3.5 times as fast, and several averages of one model. Each call into compiled code costs, so parameters
            are moved as with flat=True unless flat=False is given. It needs a C++ compiler and some seconds at the
            first update; where compiling fails, a warning says so once and plain PyTorch goes on. "triton": a kernel
            for averages of float32 on a GPU, one or several, in one pass; not measured yet.
        device: where the average lies; None: beside its weights. Elsewhere, such as "cpu" for a model on a GPU, it
            takes no memory beside the model; every update first copies the weights over, into memory that is kept
            there. What is lent or copied to the model, and a teacher, is on the model's device. Not for sharded models.
        overlap: with `device`, an update orders the copies and returns; they are taken in during the next update or
            before the average is used, whichever is first, with the same numbers. What is not finite is named then.

    Raises:
        InputError: an unknown rounding, layout or check, a bad seed, a selection that is no function, no device, or
            overlap without one, or stochastic rounding compiled, whose random numbers would be others.

    Example:
        >>> Storage(rounding="stochastic").resolve(torch.bfloat16)
        'stochastic'
    """

    rounding: Rounding = "auto"
    seed: int = 0
    flat: bool | Literal["auto"] = "auto"
    select: Select | None = None
    check_finite: bool | Literal["all"] = True
    compiled: bool | Literal["triton"] = False
    device: torch.device | str | int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in ("auto", "nearest", "stochastic", "compensated"):
            raise InputError(
                f'rounding={self.rounding!r} must be "auto", "nearest", "stochastic" or "compensated"; "auto" is safe'
            )
        if self.flat not in (True, False, "auto"):
            raise InputError(f'flat={self.flat!r} must be True, False or "auto"; "auto" moves what is safe to move')
        if self.check_finite not in (True, False, "all"):
            raise InputError(f'check_finite={self.check_finite!r} must be True, False or "all"; True is safe and cheap')
        if self.compiled not in (True, False, "triton"):
            raise InputError(f'compiled={self.compiled!r} must be True or False (plain PyTorch), or "triton" on a GPU')
        if self.compiled and self.rounding == "stochastic":
            self._refuse_compiled("stochastic")
        whole("seed", self.seed, 0)
        if self.select is not None and not callable(self.select):
            raise InputError(f"select={self.select!r} must be a function of name and tensor, or None for all")
        if self.overlap not in (True, False) or (self.overlap and self.device is None):
            raise InputError(f'overlap={self.overlap!r} must be False, or True with a device such as device="cpu"')
        self.place()

    @property
    def moves(self) -> bool | Literal["auto"]:
        """Which parameters are moved into one buffer: `flat`, or all where a compiled update is to be one call."""
        return True if self.compiled and self.flat == "auto" else self.flat

    def _refuse_compiled(self, rounding: str) -> None:
        raise InputError(
            f'compiled=True with rounding={rounding!r} must be left out here: it speeds up rounding="compensated" and '
            "several averages of one model; other averages are as fast or faster without"
        )

    def place(self) -> torch.device | None:
        """Return where the average lies, with its index.

        Returns:
            The device; None beside the weights.

        Raises:
            InputError: no device, or one that is not there.
        """
        if self.device is None:
            return None
        try:
            found = torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise InputError(
                f"device={self.device!r} cannot be used here ({said}); leave it out, and the average lies beside its "
                'weights, or give "cpu"'
            ) from error
        if found.type == "meta":
            raise InputError('device="meta" holds no values; give "cpu", or leave it out')
        return found

    def resolve(self, dtype: torch.dtype, count: int = 1) -> RoundingInForce:
        """Return the rounding in force for averages held in `dtype`.

        Args:
            dtype: of the average.
            count: how many averages of one model.

        Returns:
            nearest, stochastic or compensated; stochastic rounding exists below float32 only.

        Raises:
            InputError: compiled averages where that was measured to be no faster.
        """
        narrow = dtype in NARROW
        found: RoundingInForce = "compensated" if self.rounding == "compensated" else "nearest"
        if narrow and self.rounding in ("auto", "stochastic"):
            found = "stochastic"
        if self.compiled == "triton":
            if found != "nearest" or narrow:
                raise InputError('compiled="triton" is for float32 averages rounded to nearest; leave it out')
        elif self.compiled and (found == "stochastic" or (found == "nearest" and count == 1)):
            self._refuse_compiled(found)
        return found


def kept_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a tensor's average is held.

    Args:
        tensor: the model's tensor.
        dtype: what the user asked for.

    Returns:
        dtype, except that float32 holds float64 weights in float64, and complex weights stay complex.

    Example:
        >>> kept_dtype(torch.zeros(1, dtype=torch.bfloat16), torch.float32)
        torch.float32
    """
    if tensor.is_complex() or (dtype == torch.float32 and tensor.dtype == torch.float64):
        return tensor.dtype
    return dtype


def placed(storage: Storage | None, device: torch.device | str | int | None) -> Storage | None:
    """Return the options with the device that was given beside them.

    Args:
        storage: options, or None for the defaults.
        device: where the average lies; None where the options say it.

    Returns:
        The options.

    Raises:
        InputError: two devices.

    Example:
        >>> placed(None, "cpu").place()
        device(type='cpu')
    """
    if device is None or (storage is not None and not isinstance(storage, Storage)):
        return storage
    given = Storage() if storage is None else storage
    found = replace(given, device=device)
    if given.device is not None and given.place() != found.place():
        raise InputError(f"device={device!r} and Storage(device={given.device!r}) differ; give one of them")
    return found


def dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps, so that a one-dimensional alias covers it.

    Args:
        tensor: any tensor.

    Returns:
        True for contiguous and channels-last tensors.

    Example:
        >>> dense(torch.zeros(4, 4)[:, :2])
        False
    """
    if tensor.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.dim() in formats and tensor.is_contiguous(memory_format=formats[tensor.dim()])


def alias(tensor: Tensor) -> Tensor:
    """Return a one-dimensional view of a dense tensor in memory order, outside autograd.

    Args:
        tensor: a dense tensor.

    Returns:
        A view of shape [numel].

    Example:
        >>> alias(torch.zeros(2, 3)).shape
        torch.Size([6])
    """
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def rows(stack: Tensor) -> Tensor:
    """Return [K, numel] of a stack [K, *shape] whose every average is dense.

    Args:
        stack: K averages of one tensor.

    Returns:
        A view, one average per row.

    Example:
        >>> rows(torch.zeros(3, 2, 2)).shape
        torch.Size([3, 4])
    """
    return stack.as_strided((stack.shape[0], stack[0].numel()), (stack.stride(0), 1))


def groups(live: Mapping[str, Tensor], dtype_of: Callable[[Tensor], torch.dtype]) -> dict[Key, list[str]]:
    """Return tensor names by (average dtype, weights dtype, device), in the model's order.

    Args:
        live: the model's tensors by name.
        dtype_of: dtype of a tensor's average.

    Returns:
        Names of each group.

    Example:
        >>> list(groups({"a": torch.zeros(1)}, lambda t: t.dtype).values())
        [['a']]
    """
    found: dict[Key, list[str]] = {}
    for name, tensor in live.items():
        found.setdefault((dtype_of(tensor), tensor.dtype, tensor.device), []).append(name)
    return found


def pooled(live: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    """Return the names whose tensors are small enough to share a buffer.

    Args:
        live: the model's tensors by name.
        names: of one group.

    Returns:
        Names of small dense tensors on a CPU, none when fewer than two; accelerators have multi-tensor kernels.

    Example:
        >>> pooled({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(9999)}, "abc")
        ['a', 'b']
    """
    small = [n for n in names if live[n].numel() <= SMALL and dense(live[n]) and live[n].device.type == "cpu"]
    return small if len(small) > 1 else []


@final
@dataclass(frozen=True)
class Stacks:
    """Averages by name, each [K, *shape]; names by group; shared buffers [K, total] with their members in order."""

    tensors: dict[str, Tensor]
    groups: dict[Key, list[str]]
    pools: dict[Key, tuple[Tensor, list[str]]]


def allocate(
    live: Mapping[str, Tensor],
    count: int,
    dtype_of: Callable[[Tensor], torch.dtype],
    *,
    wide: bool = False,
    still: Collection[str] = (),
) -> Stacks:
    """Return zeroed stacks of `count` averages for every tensor, strided like the tensor.

    Args:
        live: the model's tensors by name.
        count: K.
        dtype_of: dtype of a tensor's average.
        wide: hold in the wider of the average's and the weights' dtype instead.
        still: names that no update moves; they belong to no group.

    Returns:
        The stacks, in the model's order. What flatten() moved together is pooled as it lies.

    Example:
        >>> allocate({"w": torch.zeros(2, 3)}, 4, lambda t: t.dtype).tensors["w"].shape
        torch.Size([4, 2, 3])
    """
    made: dict[str, Tensor] = {}
    pools: dict[Key, tuple[Tensor, list[str]]] = {}
    found = groups({name: tensor for name, tensor in live.items() if name not in still}, dtype_of)
    made |= {name: _stack(live[name], count, dtype_of(live[name])) for name in still}
    for key, names in found.items():
        dtype = torch.promote_types(key[0], key[1]) if wide else key[0]
        together = span(live, names)
        small = together[1] if together else pooled(live, names)
        if small:
            size = together[0].numel() if together else sum(live[n].numel() for n in small)
            pool = torch.zeros(count, size, dtype=dtype, device=key[2])
            pools[key] = pool, small
            made |= _views(pool, [(n, live[n]) for n in small], ALIGNED if together else 1)
        made |= {n: _stack(live[n], count, dtype) for n in names if n not in made}
    return Stacks({name: made[name] for name in live}, found, pools)


def flatten(live: Mapping[str, Tensor], flat: bool | Literal["auto"], *, holders: int) -> None:
    """Move parameters of one dtype and device into one buffer; they stay the same objects.

    Only plain parameters move that own their storage, are not shared between processes, and whose storage nobody else
    holds: a view of a parameter made before would go on with the old values.

    Args:
        live: the model's tensors by name.
        flat: True for all sizes, or "auto" for small ones where it pays.
        holders: of each storage that are known to follow.

    Example:
        >>> a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        >>> flatten({"a": a, "b": b}, True, holders=0)
        >>> a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
        True
    """
    fits = flat is True
    small = {n: t for n, t in live.items() if isinstance(t, nn.Parameter) and (fits or t.numel() <= SMALL) and dense(t)}
    if flat == "auto":
        small = {n: t for n, t in small.items() if t.device.type == "cpu" and type(t) is nn.Parameter}
        if len(small) < MANY or sum(t.numel() for t in live.values()) >= THIN * len(small):
            return
    alone = {n: t for n, t in small.items() if _owns_storage(t) and not t.is_shared() and _held(t) <= holders}
    for names in groups(alone, lambda t: t.dtype).values():
        if len(names) < 2:
            continue
        first = alone[names[0]]
        size = sum(map(_padded, (alone[n].numel() for n in names)))
        buffer = torch.zeros(1, size, dtype=first.dtype, device=first.device)
        for name, view in _views(buffer, [(n, alone[n]) for n in names], ALIGNED).items():
            view[0].copy_(alone[name].detach())
            alone[name].data = view[0]


def span(live: Mapping[str, Tensor], names: Iterable[str]) -> tuple[Tensor, list[str]] | None:
    """Return one alias over the tensors that flatten() laid one after another, and their names as they lie.

    Args:
        live: the model's tensors by name.
        names: of one group.

    Returns:
        A view of shape [total], gaps included, and the names; None where fewer than two lie so.

    Example:
        >>> a, b, c = (nn.Parameter(torch.full((2,), x)) for x in (1.0, 2.0, 3.0))
        >>> flatten({"a": a, "b": b}, True, holders=0)
        >>> found, names = span({"a": a, "b": b, "c": c}, "abc")
        >>> found.shape, found[::32], names
        (torch.Size([64]), tensor([1., 2.]), ['a', 'b'])
    """
    by_storage: dict[int, list[str]] = {}
    for name in names:
        tensor = live[name]
        if tensor.numel() and dense(tensor) and not _owns_storage(tensor):
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for together in by_storage.values():
        lying = sorted(together, key=lambda n: live[n].storage_offset())
        start = offset = live[lying[0]].storage_offset()
        for name in lying:
            if live[name].storage_offset() != offset:
                break
            offset += _padded(live[name].numel())
        else:
            first = live[lying[0]]
            if len(lying) > 1 and offset * first.element_size() <= first.untyped_storage().nbytes():
                return first.detach().as_strided((offset - start,), (1,), start), lying
    return None


def _padded(elements: int, step: int = ALIGNED) -> int:
    return -(-elements // step) * step


def _held(tensor: Tensor) -> float:
    """How many hold the tensor's storage besides the tensor itself; infinite where this torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    held = [count(t.untyped_storage()._cdata) for t in (tensor, torch.empty(1))] if count else [float("inf"), 0]
    return held[0] - held[1]


def _owns_storage(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _views(pool: Tensor, tensors: Sequence[tuple[str, Tensor]], step: int) -> dict[str, Tensor]:
    made, offset, count = {}, 0, pool.shape[0]
    for name, tensor in tensors:
        made[name] = pool.as_strided((count, *tensor.shape), (pool.stride(0), *tensor.stride()), offset)
        offset += _padded(tensor.numel(), step)
    return made


def _stack(tensor: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    size = tensor.numel()
    strides = tensor.stride() if dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
    made = torch.empty_strided((count, *tensor.shape), (size, *strides), dtype=dtype, device=tensor.device)
    return made.zero_()
