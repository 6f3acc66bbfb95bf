"""What a micro-batch of an HF Trainer holds: rows, and the tokens that its loss is a mean over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.training_args import TrainingArguments

from isobatch.errors import InputError

_ROWS = {"SFTConfig": 1, "DPOConfig": 2, "RewardConfig": 2, "ORPOConfig": 2, "CPOConfig": 2}
"""TRL's trainers whose rows are known: those of preferences pass a chosen and a rejected answer."""
_IGNORED = -100


@dataclass(frozen=True)
class Counted:
    """One micro-batch of this rank.

    Args:
        rows: samples.
        weight: tokens of each row that the loss counts; None where micro-batches weigh alike.
    """

    rows: float
    weight: list[float] | float | None


class Counting:
    """Sees each micro-batch of a Trainer by a hook before the model's forward pass, or is told of it by the mixin.

    Args:
        model: the Trainer's own, unwrapped.
        args: of the Trainer.
        trainer: the Trainer, None where it was not found.
        rows_per_sample: rows of a forward pass that are one sample.

    Raises:
        InputError: a trainer of TRL whose rows are not known.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, trainer: Trainer | None, rows_per_sample: int | None):
        self.model, self.args, self.trainer = model, args, trainer
        self.kind = next((kind.__name__ for kind in type(args).__mro__ if kind.__name__ in _ROWS), None)
        if rows_per_sample is None and self.kind is None and type(args).__module__.startswith("trl."):
            raise InputError(
                f"{type(args).__name__}: how many rows of a forward pass are one sample is not known here; give "
                "IsobatchCallback(rows_per_sample=...)"
            )
        self.rows_per_sample = rows_per_sample or (_ROWS[self.kind] if self.kind else 1)
        self.told = False
        self._open = False
        self._counted: Callable[[Counted], None] | None = None
        self._hook: Any = None
        self._tokens = False

    @property
    def weighted(self) -> bool:
        """Whether the loss of a step is the mean over its tokens, not the mean of its micro-batches' means."""
        trainer = self.trainer
        if trainer is None:
            return False
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        return bool(trainer.model_accepts_loss_kwargs) or trainer.compute_loss_func is not None

    @property
    def labels_vanish(self) -> bool:
        """Whether the Trainer takes the labels out of the batch before the model sees it."""
        trainer = self.trainer
        return trainer is not None and (trainer.label_smoother is not None or trainer.compute_loss_func is not None)

    def check(self, unit: str, *, measures: bool) -> None:
        """Refuse what cannot be counted.

        Args:
            unit: of the clock.
            measures: whether the noise scale is measured.

        Raises:
            InputError: labels that vanish, packed rows, or ranks that each divide by their own tokens.
        """
        self._tokens = unit == "tokens" or (measures and self.weighted)
        mixed = any(kind.__name__ == "IsobatchTrainerMixin" for kind in type(self.trainer).__mro__)
        if self._tokens and self.labels_vanish and not mixed:
            raise InputError(
                "the Trainer takes the labels out of each batch (label_smoothing_factor, compute_loss_func), so a "
                "callback cannot count tokens; write class MyTrainer(IsobatchTrainerMixin, Trainer), or leave out "
                "noise and count samples"
            )
        packed = getattr(self.args, "packing", False) or getattr(self.args, "padding_free", False)
        if unit == "samples" and packed:
            raise InputError(
                'packed batches (packing, padding_free) have no rows to count; count tokens: half_life="2e9 tokens"'
            )
        several = self.args.world_size > 1
        if measures and self.weighted and several and not self.args.average_tokens_across_devices:
            raise InputError(
                "average_tokens_across_devices=False: each rank divides by its own tokens, so ranks weigh alike and "
                "micro-batches do not; set it to True to measure the noise scale"
            )

    def attach(self, counted: Callable[[Counted], None]) -> None:
        """Begin to count.

        Args:
            counted: told of each micro-batch.
        """
        self._counted = counted
        self._hook = self.model.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        """Stop."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def closed(self) -> None:
        """Take note that the micro-batch is done: the next forward pass is another one."""
        self._open = False

    def batch(self, inputs: Mapping[str, Any]) -> None:
        """Count a batch as the Trainer got it.

        Args:
            inputs: of the Trainer's training step.
        """
        if not self._open and self._counted is not None:
            self._open = True
            self._counted(self._count(inputs))

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a second pass before the micro-batch is closed is of the same samples; one without gradients is an evaluation
        if model.training and torch.is_grad_enabled() and not self._open:
            self.batch({**{str(place): value for place, value in enumerate(args)}, **kwargs})

    def _count(self, inputs: Mapping[str, Any]) -> Counted:
        rows = _rows(inputs) / self.rows_per_sample
        if not self._tokens:
            return Counted(rows, None)
        labels, shifted = inputs.get("labels"), inputs.get("shift_labels")
        if isinstance(shifted, Tensor):
            labels = shifted
        elif isinstance(labels, Tensor) and labels.ndim > 1 and self._shifts():
            labels = labels[..., 1:]
        if not isinstance(labels, Tensor):
            if self._tokens and self.weighted and not inputs.get("num_items_in_batch"):
                return Counted(rows, None)  # without labels the Trainer counts nothing either
            raise InputError("this batch has no labels, so its tokens cannot be counted; count samples")
        counts = labels.ne(_IGNORED).reshape(len(labels), -1).sum(1)
        return Counted(rows, [float(n) for n in counts.tolist()])

    def _shifts(self) -> bool:
        """Whether position 0 of the labels predicts nothing: by the loss that the model uses, not by its name."""
        if self.kind is not None:
            return True
        get_base: Any = getattr(self.model, "get_base_model", None)
        model = get_base() if callable(get_base) else self.model
        two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return getattr(model, "loss_function", None) is ForCausalLMLoss and not two


def _rows(inputs: Mapping[str, Any]) -> int:
    """Return the rows of a batch: those of input_ids, or of the first tensor that has any."""
    preferred = [inputs.get(key) for key in ("input_ids", "inputs_embeds", "pixel_values", "input_features")]
    for value in [*preferred, *inputs.values()]:
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise InputError(f"the batch holds no tensor with rows, only {sorted(inputs)}; give the model a batch of tensors")
