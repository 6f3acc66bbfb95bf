"""What a callback of the HF Trainer cannot see, for those who can change the Trainer's class."""

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from isobatch.integrations.hf.callback import IsobatchCallback


class IsobatchTrainerMixin:
    """Counts samples and tokens where a Trainer's callbacks cannot: before labels are taken out of the batch.

    Needed with label_smoothing_factor or compute_loss_func, and to resume a recipe's batch schedule after the batch
    changed; put it before the Trainer: `class MyTrainer(IsobatchTrainerMixin, Trainer): ...`. Evaluations see the
    average also when the user calls evaluate(), and the raw weights come back after an exception too.
    """

    _passes: int | None = None

    def set_initial_training_values(self, args: Any, dataloader: Any, *more: Any, **named: Any) -> Any:
        """Note how many micro-batches an epoch has."""
        try:
            self._passes = len(dataloader)
        except TypeError:  # a stream
            self._passes = None
        return super().set_initial_training_values(args, dataloader, *more, **named)  # ty: ignore[missing-attribute]

    def _init_training_state(self, *args: Any, **named: Any) -> tuple[int, int]:
        """Go on where a run with a batch schedule stopped."""
        found = super()._init_training_state(*args, **named)  # ty: ignore[missing-attribute]
        state, ignored = self.state, self.args.ignore_data_skip  # ty: ignore[missing-attribute]
        for callback in self._isobatch():
            place = callback.place(state, self._passes)
            found = found if place is None else (place[0], 0 if ignored else place[1])
        return found

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Count the micro-batch, then train on it."""
        for callback in self._isobatch():
            if callback.counting is not None:
                callback.counting.batch(inputs)
        return super().training_step(model, inputs, *args, **kwargs)  # ty: ignore[missing-attribute]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate with the averaged weights."""
        with ExitStack() as stack:
            for callback in self._isobatch():
                stack.enter_context(callback.lend())
            return super().evaluate(*args, **kwargs)  # ty: ignore[missing-attribute]

    def _isobatch(self) -> list[IsobatchCallback]:
        handler: Any = getattr(self, "callback_handler", None)
        return [one for one in handler.callbacks if isinstance(one, IsobatchCallback)]
