"""Tensors in safetensors files: written in one pass with their hash, read through the safetensors library."""

import json
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from isobatch.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def describe(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict]:
    """Return {name: {"dtype", "shape"}} in the order of the file: widest type first, which keeps all data aligned.

    Args:
        tensors: {name: tensor}.

    Returns:
        The description, JSON throughout.

    Raises:
        InputError: a dtype that safetensors has not.

    Example:
        >>> describe({"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(())})
        {'b': {'dtype': 'F32', 'shape': []}, 'a': {'dtype': 'I8', 'shape': [2]}}
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise InputError(
                f"state {name!r} has dtype {tensor.dtype}; a checkpoint holds {', '.join(DTYPES)}: convert it"
            )
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    return {name: {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape)} for name in order}


def header(entries: Mapping[str, dict]) -> bytes:
    """Return the head of a safetensors file: its length in 8 bytes, then JSON padded to a multiple of 8.

    Args:
        entries: what `describe` gave.

    Returns:
        The bytes in front of the data.

    Example:
        >>> len(header({})) % 8
        0
    """
    table: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        size = int(np.prod(entry["shape"], dtype=np.int64)) * DTYPES[entry["dtype"]].itemsize
        table[name] = {**entry, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def chunks(tensors: Mapping[str, torch.Tensor], entries: Mapping[str, dict]) -> Iterator[memoryview]:
    r"""Yield the data of a safetensors file, one tensor at a time; holds one tensor's copy at most.

    Args:
        tensors: {name: tensor} on any device, with any strides.
        entries: what `describe` gave, for the order.

    Yields:
        memoryview: The bytes of each tensor in row-major order.

    Example:
        >>> t = {"a": torch.tensor([1, 2], dtype=torch.int8)}
        >>> b"".join(chunks(t, describe(t)))
        b'\x01\x02'
    """
    for name in entries:
        dense = tensors[name].detach().resolve_neg().cpu().contiguous()
        flat = dense.as_strided((dense.numel(),), (1,))  # one element counts as contiguous with any stride
        yield memoryview(flat.view(torch.uint8).numpy())


class Arena:
    """One block of memory for copies of a state, used again by the next copy; a warm block copies several times faster.

    What makes a fresh block slow is that the system hands out its pages one by one as they are first touched; `reserve`
    has a thread touch them beforehand.

    Example:
        >>> w = torch.zeros(3)
        >>> copy = Arena().copy({"w": w})
        >>> w += 1
        >>> copy["w"]
        tensor([0., 0., 0.])
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._warming: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._block)

    @torch.inference_mode(False)
    def reserve(self, size: int) -> None:
        """Take memory for copies of `size` bytes, and touch it in a thread.

        Args:
            size: bytes; a block that is large enough already stays.
        """
        if size > len(self._block):
            self.settle()
            self._block = torch.from_numpy(np.empty(size, dtype=np.uint8))  # numpy asks for huge pages, torch does not
            self._warming = threading.Thread(target=self._block.zero_, name="isobatch-warm", daemon=True)
            self._warming.start()

    def settle(self) -> None:
        """Wait for the thread of `reserve`."""
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    @torch.inference_mode(False)  # what is made in inference mode could not be written again outside
    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy tensors into the block; the copies hold until the next call.

        Args:
            tensors: {name: tensor} on any device.

        Returns:
            {name: contiguous copy on the CPU}.
        """
        order = list(describe(tensors))
        total = sum(tensors[name].nbytes for name in order)
        self.settle()
        if total > len(self._block):
            self._block = torch.from_numpy(np.empty(total, dtype=np.uint8))
        copies, offset = {}, 0
        for name in order:
            tensor = tensors[name]
            part = self._block[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            copies[name] = part.copy_(tensor.detach())
            offset += tensor.nbytes
        return copies


@torch.inference_mode(False)  # tensors that training may go on with
def read(path: Path, entries: Mapping[str, dict], besides: Collection[str | None] = ()) -> dict[str, torch.Tensor]:
    """Read a safetensors file and refuse one that does not hold exactly the tensors described.

    Args:
        path: the file.
        entries: {name: {"dtype", "shape"}} that it must hold.
        besides: names that are left in the file, to be read by blocks.

    Returns:
        {name: tensor on the CPU, in memory of its own}.

    Raises:
        InputError: not a safetensors file, or other names, shapes or types.
    """
    try:
        with safe_open(path, framework="pt") as file:
            held = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in held if name not in besides}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); take another checkpoint") from error
    found = describe(tensors) | {name: entries.get(name, {}) for name in held if name in besides}
    for name in sorted(set(found) | set(entries)):
        if found.get(name) != entries.get(name):
            raise InputError(
                f"{path}: tensor {name!r} is {found.get(name, 'absent')}, the manifest says "
                f"{entries.get(name, 'absent')}; take another checkpoint"
            )
    return tensors
