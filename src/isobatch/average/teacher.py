"""The averaged weights as a module of its own: a teacher that can be called while the student trains."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isobatch.errors import InputError

Mode = Literal["eval", "train"]
MODES = ("eval", "train")


@final
class Teacher:
    """A module that holds an average, without gradients and without a second copy of it.

    Its parameters are the average's own storage, so that an update of the average moves the teacher too; where a kind
    of average or another dtype does not allow that, refresh() copies. Buffers are the student's own. In mode "train"
    batch norm uses the statistics of the teacher's own batch and keeps none, so a call changes nothing.

    Args:
        root: the student, bare.
        live: its averaged tensors by name.
        values: the average by name.
        mode: "eval" or "train".

    Raises:
        InputError: an unknown mode, or a model that cannot be copied.
    """

    def __init__(self, root: nn.Module, live: Mapping[str, Tensor], values: Mapping[str, Tensor], mode: Mode):
        if mode not in MODES:
            raise InputError(f'mode={mode!r} must be "eval" or "train"')
        memo: dict[int, Tensor] = {id(t): nn.Parameter(t.data, requires_grad=False) for t in root.parameters()}
        memo |= {id(buffer): buffer for buffer in root.buffers()}
        self._held = {name: _like(live[name], value) for name, value in values.items()}
        memo |= {id(live[name]): tensor for name, tensor in self._held.items()}
        try:
            self.module: nn.Module = deepcopy(root, memo)
        except Exception as error:
            raise InputError(f"the model cannot be copied ({error}), so the average cannot teach") from error
        self.module.train(mode == "train")
        if mode == "train":
            for layer in self.module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    @torch.no_grad()
    def refresh(self, values: Mapping[str, Tensor]) -> None:
        """Copy the tensors that are not the average's own storage.

        Args:
            values: the average by name.
        """
        for name, tensor in self._held.items():
            if tensor.data_ptr() != values[name].data_ptr():
                tensor.copy_(values[name])


def _like(live: Tensor, value: Tensor) -> Tensor:
    same = value.detach().to(device=live.device, dtype=live.dtype)
    return nn.Parameter(same, requires_grad=False) if isinstance(live, nn.Parameter) else same
