"""Average weights in, raw weights back: storages change hands, nothing is copied, whatever happens in between."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exchanged(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Generator[None]:
    """Let live tensors use other storages inside the block; put everything back on the way out.

    A tensor of the same dtype and device is shared, not copied; another dtype is cast once for the block. Buffers that
    are not exchanged are shielded: the block works on copies, so an evaluation cannot change the raw model.

    Args:
        model: the module whose buffers are shielded.
        pairs: (live tensor, tensor whose values it shall have).

    Yields:
        None, with the values in place.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with exchanged(layer, [(layer.weight, layer.weight.detach().abs() * 0)]):
        ...     layer.weight.item()
        0.0
    """
    undo: list[tuple[Tensor, Tensor]] = []
    try:
        given = set()
        for live, value in pairs:
            undo.append((live, live.data))
            given.add(id(live))
            live.data = value.to(device=live.device, dtype=live.dtype)
        for buffer in model.buffers():
            if id(buffer) not in given:
                undo.append((buffer, buffer.data))
                buffer.data = buffer.data.clone()
        yield
    finally:
        for live, raw in undo:
            live.data = raw
