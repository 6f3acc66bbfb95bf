"""The averaged weights as files: one that other libraries load as a model, and one with the state of a run."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isobatch.average import ModelAverage
from isobatch.checkpoint.files import parse, reading
from isobatch.checkpoint.tree import join, split
from isobatch.errors import InputError, SaveError, unreadable
from isobatch.gradients import sharded, unwrap

_ONE_FILE = "1000GB"
_TREE = "isobatch"
_MARK = {"isobatch-weights": "average"}
STATE = "isobatch.safetensors"
"""File in a trainer's checkpoint folder that holds averages, noise scale and clock."""


def save_average(average: ModelAverage, model: nn.Module, path: str | Path, *, which: float | None = None) -> Path:
    """Write the averaged weights as one safetensors file that other libraries load as the model.

    A model with `save_pretrained` (transformers, diffusers, PEFT) gets a folder of its library's own form, which
    `from_pretrained` reads. Any other model (timm, plain torch) gets one file with every name of its state_dict, in
    the model's dtypes, buffers included. Tied weights stand under each of their names.

    With several ranks call it on one of them. What it wrote before is replaced; other weights are not.

    Args:
        average: of the model.
        model: wrapped or bare; its raw weights are back afterwards.
        path: a folder; for a model without `save_pretrained` also a file that ends in .safetensors.
        which: the horizon, where there are several.

    Returns:
        The safetensors file.

    Raises:
        InputError: a file name for a model that is saved as a folder, sharded weights, or a file there that holds no
            average.
        SaveError: the library wrote no single safetensors file.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_average(__import__("isobatch").ModelEMA(net, half_life=8), net, folder)
        ...     file.name, sorted(load_file(file))
        ('model.safetensors', ['bias', 'weight'])
    """
    target, inner = Path(path), unwrap(model)
    own_form = getattr(inner, "save_pretrained", None)
    if any(map(sharded, inner.parameters())):
        raise InputError("the model is sharded; gather it first, or load its checkpoint into an unsharded model")
    if not callable(own_form):
        file = target if target.suffix == ".safetensors" else target / "model.safetensors"
        _refuse_others(file)
        with average.applied(inner, which):
            return _written(file, _tensors(inner), {"format": "pt"} | _MARK)
    if target.suffix == ".safetensors":
        raise InputError(f"{target}: {type(inner).__name__} is saved as a folder with its configuration; give a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with average.applied(inner, which):
            own_form(partial, max_shard_size=_ONE_FILE) if not _is_peft(inner) else own_form(partial)
            found = sorted(partial.glob("*.safetensors"))
            if len(found) != 1:
                names = [file.name for file in found]
                raise SaveError(f"{target}: {type(inner).__name__}.save_pretrained wrote {names}, not one file")
            _refuse_others(target / found[0].name)
            _finish(found[0], inner)
        target.mkdir(exist_ok=True)
        for file in sorted(partial.iterdir()):
            file.replace(target / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target / found[0].name


def refuse_sharded(model: nn.Module, what: str, instead: str) -> None:
    """Refuse to write the state of a sharded model into a file that the first rank alone writes.

    Args:
        model: wrapped or bare.
        what: the file, and who writes it.
        instead: another way out beside that of torch.

    Raises:
        InputError: a sharded model, of which such a file would hold one rank's part.

    Example:
        >>> refuse_sharded(nn.Linear(1, 1), "the checkpoint", "train with DistributedDataParallel")
    """
    if any(map(sharded, model.parameters())):
        raise InputError(
            f"{what} holds what one rank has, and the model is sharded; keep clock.state_dict() by "
            f"torch.distributed.checkpoint, or {instead}"
        )


def save_state(folder: str | Path, state: Mapping[str, Any], name: str = STATE) -> Path:
    """Write the state of a run beside a trainer's own checkpoint, whole or not at all.

    Args:
        folder: the trainer's checkpoint.
        state: nested tensors and plain values.
        name: of the file, where several callbacks keep one each.

    Returns:
        The file.
    """
    tree, tensors = split(state)
    return _written(Path(folder) / name, tensors, {_TREE: json.dumps(tree)})


def load_state(folder: str | Path, name: str = STATE) -> Any:
    """Read what save_state() wrote; nothing of the file is executed.

    Args:
        folder: the trainer's checkpoint.
        name: of the file.

    Returns:
        The state.

    Raises:
        InputError: no such file, or not one of these.
    """
    file = Path(folder) / name
    try:
        with safe_open(file, framework="pt") as opened:
            tree = (opened.metadata() or {}).get(_TREE)
        tensors = load_file(file)
    except OSError as error:
        raise unreadable("", file, error) from None
    except SafetensorError as error:
        raise InputError(f"cannot read {file}: {error}; give the checkpoint folder of the trainer") from None
    if tree is None:
        raise InputError(f"{file} holds no state of isobatch; give the checkpoint folder of the trainer")
    with reading(file):
        return join(parse(file, tree.encode()), tensors)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of a model's state_dict by its own name."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _written(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file under another name first; tensors that share memory are stored each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if place in seen or plain.nbytes != plain.untyped_storage().nbytes() else plain
        seen.add(place)
    partial = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        save_file(apart, partial, metadata=metadata)
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(file)
    except OSError as error:
        raise SaveError(f"{file}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def _finish(file: Path, model: nn.Module) -> None:
    """Mark what a library wrote as an average, and put tied tensors under the names that it left out."""
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata() or {})
    held, own = load_file(file), model.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in own.items() if name in held}
    missing = {name: names[id(tensor)] for name, tensor in own.items() if name not in held and id(tensor) in names}
    _written(file, held | {name: held[first] for name, first in missing.items()}, metadata | _MARK)


def _refuse_others(file: Path) -> None:
    """Refuse to replace weights that are no average of ours, such as a trainer's own."""
    if not file.exists():
        return
    try:
        with safe_open(file, framework="pt") as opened:
            ours = _MARK.items() <= (opened.metadata() or {}).items()
    except (OSError, SafetensorError):
        ours = False
    if not ours:
        raise InputError(f"{file} exists and holds other weights than an average; give another folder, or remove it")


def _is_peft(model: nn.Module) -> bool:
    """Whether save_pretrained() stores adapters alone, which always are one file."""
    return getattr(model, "peft_config", None) is not None and getattr(model, "base_model", None) is not None
