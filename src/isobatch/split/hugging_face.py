"""A Trainer of Hugging Face, or one of TRL that is built on it, as a subject."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn
from torch.utils.data import SequentialSampler, Subset

from isobatch.errors import InputError
from isobatch.gradients import world_size
from isobatch.installed import need
from isobatch.plan import Recipe
from isobatch.split.target import Metrics, Steps, Subject
from isobatch.split.wrappers import forget, nothing
from isobatch.tasks import LOSS, Metric

PLENTY = 1 << 30


class TrainerFit(Subject):
    """A Trainer of transformers or TRL, one epoch being one update.

    Args:
        build: (**arguments) -> the Trainer; the arguments belong into its TrainingArguments (SFTConfig, DPOConfig):
            batch size, accumulation, epochs, logging. Its train_dataset must hold a batch.
        metrics: (model) -> held-out metrics by name, for `verify run`; the Trainer's own `evaluate()` unless given.
        declared: what kind each metric is, for `verify run`; the loss unless given.
    """

    clips = True

    def __init__(
        self,
        build: Callable[..., Any],
        *,
        metrics: Metrics | None = None,
        declared: Mapping[str, Metric] | None = None,
    ):
        self.build = build
        self.trainer: Any = None
        self.held: Any = None
        super().__init__(nn.Identity(), nothing, (), metrics=metrics, declared=declared or {"loss": LOSS})

    def open(self, indices: Sequence[Tensor], parts: int) -> None:
        """Build the Trainer and leave the samples of one batch in its data.

        Args:
            indices: the samples of each update; the first are taken for all, in the Trainer's own order.
            parts: gradient_accumulation_steps.
        """
        size = -(-len(indices[0]) // (parts * world_size()))
        self._built(size, parts, num_train_epochs=len(indices), use_cpu=True)
        self._chosen(row % len(self.held) for row in indices[0].tolist())

    def _built(self, size: int, parts: int, **more: Any) -> None:
        need("transformers", "accelerate")
        forget()
        folder = tempfile.mkdtemp(prefix="isobatch-trainer-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.trainer = self.build(
            output_dir=folder, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
            logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, log_level="error", **more,
        )  # fmt: skip
        self.trainer.remove_callback(import_module("transformers").PrinterCallback)
        self.model, self.held = self.trainer.model, self.trainer.train_dataset

    def _chosen(self, rows: Iterable[int]) -> None:
        """Leave these samples in the Trainer's data."""
        chosen, select = list(rows), getattr(self.held, "select", None)
        self.trainer.train_dataset = select(chosen) if select is not None else Subset(self.held, chosen)

    @property
    def software(self) -> str:
        """What trains, with its version."""
        return f"{type(self.trainer).__name__} on transformers {version('transformers')}"

    def prepare(self, recipe: Recipe, parts: int, *, seed: int, device: str) -> None:
        """Build the Trainer and take the numbers that belong into its arguments.

        Args:
            recipe: its numbers.
            parts: gradient_accumulation_steps.
            seed: of the initial weights.
            device: "cpu" or "cuda".

        Raises:
            InputError: clipping by value, data without a length, or a model that it makes anew when training begins.
        """
        o = recipe.optimizer
        if o.clip is not None and o.clip_by != "norm":
            raise InputError(f"optimizer.clip_by={o.clip_by!r}: the Hugging Face Trainer clips by the norm")
        self._built(recipe.batch.size // parts, parts, use_cpu=device == "cpu", seed=seed)
        if self.trainer.model_init is not None:
            raise InputError("the Trainer has a model_init, which makes other weights when it trains; give it a model")
        if not isinstance(self.held, Sized):
            raise InputError("the Trainer's train_dataset has no length; give one with rows")
        numbers = {
            "learning_rate": o.lr, "weight_decay": o.weight_decay, "max_grad_norm": o.clip or 0.0,
            "adam_beta1": o.betas[0], "adam_beta2": o.betas[1], "lr_scheduler_type": "constant", "warmup_steps": 0,
            "logging_strategy": "no", "eval_strategy": "no", "num_train_epochs": 1,
        }  # fmt: skip
        for name, value in numbers.items():
            setattr(self.trainer.args, name, value)
        self.measure = self.measure or (self._evaluated if self.trainer.eval_dataset is not None else None)

    def _evaluated(self, model: nn.Module) -> dict[str, float]:
        found = self.trainer.evaluate()
        speed = ("runtime", "_per_second", "_preparation_time", "_num_tokens", "_total_flos")
        named = {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}
        return {name: float(value) for name, value in named.items() if not name.endswith(speed)}

    def fit(self, updates: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Train for one epoch that holds all updates, in their order.

        Args:
            updates: the samples of each.
            parts: gradient_accumulation_steps.
            steps: told where each begins and ends.
        """
        trainer = self.trainer
        self._chosen(row for rows in updates for row in rows.tolist())
        trainer._get_train_sampler = lambda *_, **__: SequentialSampler(trainer.train_dataset)
        trainer.args.max_steps = len(updates)
        self.run(updates, parts, steps)

    def roots(self) -> dict[str, Any]:
        """Return what is looked through.

        Returns:
            What the user's callbacks hold; optimizer and scheduler are added when training begins.
        """
        return {"callbacks": self.trainer.callback_handler.callbacks} if self.trainer is not None else {}

    def rows(self) -> int:
        """Return how many samples there are.

        Returns:
            Plenty before the Trainer is built, whose own data are looked at then.
        """
        return PLENTY if self.held is None else len(self.held)

    def batch(self, indices: Tensor) -> Any:
        """Return no batch: the Trainer's collator makes it.

        Args:
            indices: of samples.

        Returns:
            An empty tuple.
        """
        return ()

    def run(self, indices: Sequence[Tensor], parts: int, steps: Steps) -> None:
        """Train for as many epochs as updates.

        Args:
            indices: the samples of each update.
            parts: gradient_accumulation_steps.
            steps: told where each begins and ends.
        """
        self.trainer.add_callback(_trainer_watcher(steps))
        self.trainer.train()


def _trainer_watcher(steps: Any) -> Any:
    """Return a callback that tells where updates begin and end."""
    need("transformers")
    base: Any = import_module("transformers").TrainerCallback

    class Watch(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.watch(optimizer=given.get("optimizer"), scheduler=given.get("lr_scheduler"))

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if logs and "loss" in logs:
                steps.report(float(logs["loss"]))

    return Watch()
