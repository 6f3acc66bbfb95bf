"""A user's own trainer in a comparison: trained as its framework does it, an arm's numbers in its optimizer."""

import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from isobatch.curves import AutoWU
from isobatch.data import SampleOrder
from isobatch.errors import InputError, NonFiniteError
from isobatch.optimizers import bind, write_prepared
from isobatch.plan import Recipe, coupling_of, row_of, scaled
from isobatch.rules.optimizers import row_of_class
from isobatch.tasks import Run
from isobatch.tasks.isolation import seed_all
from isobatch.tasks.metric import Metric
from isobatch.train.setup import Followed, check_trainable, make_average, prepare_groups
from isobatch.units import finite


class Trained(Protocol):
    """What a wrapper of `isobatch.split` gives: model, held-out metrics, and a whole run."""

    model: nn.Module
    measure: Callable[[nn.Module], Mapping[str, float]] | None
    declared: Mapping[str, Metric]

    @property
    def clips(self) -> bool:
        """Whether it clips gradients by the norm of the recipe."""
        ...

    @property
    def software(self) -> str:
        """What trains, with its version."""
        ...

    def prepare(self, recipe: Recipe, parts: int, *, seed: int, device: str) -> None:
        """Get ready for a whole run under a recipe."""
        ...

    def rows(self) -> int:
        """Return how many samples there are."""
        ...

    def fit(self, updates: Sequence[Tensor], parts: int, steps: Any) -> None:
        """Make all updates of a run, and tell `steps` where each begins and ends."""
        ...


class OwnTrainer:
    """A trainer of the user's own, trained as a whole run under a recipe.

    Before every optimizer step the recipe's learning rate, betas or momentum, eps and weight decay are written into the
    trainer's own optimizer, as the loop of this package writes them: the mean of the schedule over the samples of the
    step, times each group's ratio. The norm to clip by is the trainer's own setting where it has one, and applied at
    the step where it has none. The recipe's average follows every step that is made. Samples come in the order that a
    recipe's run of this package would see them in.

    Args:
        subject: model, samples, update and held-out metrics.
        recipe: of one arm.
        seed: of the initial weights.
        order_seed: of the sample order, and of all random numbers of the training.
        device: "cpu" or "cuda".
        timeout: seconds after which an update that has not ended is one that hangs; None waits for ever.

    Raises:
        InputError: something in the recipe that another trainer cannot be told, no metrics, or too few samples.
    """

    def __init__(
        self,
        subject: Trained,
        recipe: Recipe,
        *,
        seed: int = 0,
        order_seed: int = 0,
        device: str = "cpu",
        timeout: float | None = None,
    ):
        check_followed(recipe, device)
        self._patience = Patience(timeout)
        self.subject, self.recipe, self.batch = subject, recipe, recipe.batch.size
        self.parts = self.batch // recipe.batch.micro if recipe.batch.micro else 1
        subject.prepare(recipe, self.parts, seed=seed, device=device)
        if subject.measure is None:
            raise InputError(
                f"task={recipe.task!r}: its trainer has no held-out metrics; give it metrics=(model) -> "
                '{"loss": ...} and declared={"loss": isobatch.tasks.LOSS}'
            )
        rows = subject.rows()
        if recipe.data_size not in (None, rows):
            raise InputError(f"data_size={recipe.data_size} but task {recipe.task!r} has {rows} samples; correct it")
        self.model = subject.model
        facts = {"trainer": subject.software, "numbers": APPLIED}
        self.run = Run(self.model, _NoSamples(rows), _untrained, subject.measure, facts, declared=subject.declared)
        self.order, self.order_seed = SampleOrder(rows, order_seed), order_seed
        self.settings = scaled(recipe, self.batch, self.batch / self.parts)
        self.curve, self.followed = recipe.staircase(self.batch), Followed(recipe)
        self.average, self.spans = make_average(self.model, recipe), recipe.average_schedule()
        for norm in self.model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and self.settings.batch_norm is not None:
                norm.momentum = self.settings.batch_norm
        self.seen = self.drawn = self.steps = self._stepped = 0
        self._parameters = [one for one in self.model.parameters() if one.requires_grad]
        self._optimizer: Optimizer | None = None
        self._groups: list[dict[str, Any]] = []
        self._left: list[int] = []
        self._visit: Callable[[], None] = _nothing

    def train_through(self, stops: Sequence[int], visit: Callable[[], None]) -> None:
        """Train from the first sample to the last stop.

        Args:
            stops: samples, rising, each a whole number of updates.
            visit: called at each stop.

        Raises:
            InputError: a stop within an update, a trainer that makes another number of optimizer steps than one an
                update, one that ends early, or one that hangs.
            NonFiniteError: the loss that it reports, or a weight, is not finite.
        """
        for stop in stops:
            if stop % self.batch:
                raise InputError(
                    f"samples {stop} are no whole number of updates of {self.batch}, and a trainer of your own cannot "
                    "be stopped within one; choose a --batch-size that is a multiple of the recipe's, or a divisor"
                )
        self._left, self._visit = list(stops), visit
        self._arrive()
        seed_all(self.order_seed)
        with self._following(), self._patience:
            self.subject.fit(Updates(self.order, self.batch, stops[-1] // self.batch), self.parts, self)
        if self._left:
            raise InputError(f"the trainer ended after {self.drawn} of {stops[-1]} samples; let it run to the end")

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the held-out metrics of the raw weights, and of the averaged ones where there is an average."""
        result = {"raw": self.run.evaluate()}
        if self.average is not None:
            with self.average.applied(self.model):
                result["average"] = self.run.evaluate()
        return result

    def begin(self) -> None:
        """Note that an update begins."""
        self._stepped = 0
        self._patience.news()

    def end(self, reported: Any = None) -> None:
        """Note that an update is over, and stop at a stop.

        Args:
            reported: the loss that the trainer reports for it.
        """
        if self._stepped > 1 or (not self._stepped and not self.steps):
            raise InputError(
                f"one update of {self.batch} samples made {self._stepped} optimizer steps where one is wanted; "
                "`isobatch verify split` says more"
            )
        self.drawn += self.batch
        if reported is not None and not math.isfinite(float(reported)):
            self._stop(f"the reported loss is {float(reported)}")
        self._arrive()
        self._patience.news()

    def report(self, loss: Any) -> None:
        """Take a loss that is reported after its update.

        Args:
            loss: a number or a tensor.
        """

    def watch(self, **roots: Any) -> None:
        """Take what comes into being late; optimizers are heard by torch's own hooks.

        Args:
            **roots: name -> object.
        """

    def _arrive(self) -> None:
        if self._left and self.drawn >= self._left[0]:
            del self._left[0]
            if self.steps and not all(bool(one.isfinite().all()) for one in self._parameters):
                self._stop("a weight is not finite")
            self._visit()

    def _stop(self, why: str) -> NoReturn:
        raise NonFiniteError(f"stopped at step {self.steps} with {self.seen} samples seen: {why}", self.seen)

    @contextmanager
    def _following(self) -> Generator[None]:
        """Hear every optimizer step of this process."""
        handles = register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _ours(self, optimizer: Optimizer) -> bool:
        if optimizer is self._optimizer:
            return True
        mine = {id(one) for one in self._parameters}
        return any(id(one) in mine for group in optimizer.param_groups for one in group["params"])

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._ours(optimizer):
            return
        if self._optimizer is None:
            self._take(optimizer)
        elif optimizer is not self._optimizer:
            raise InputError("the trainer has several optimizers for its model; a recipe states the numbers of one")
        settings, seen = self.settings, self.seen
        lr = settings.lr * self.followed.factor(settings, seen, self.curve.mean(seen, seen + self.batch))
        write_prepared(optimizer, self.followed.rows(self._groups, settings, seen), lr)
        if settings.clip is not None and not self.subject.clips:
            clip = nn.utils.clip_grad_value_ if self.recipe.optimizer.clip_by == "value" else nn.utils.clip_grad_norm_
            clip(self._parameters, settings.clip)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self._optimizer:
            return
        span = self.spans.half_life(self.seen, self.seen + self.batch) if self.spans else self.settings.half_life
        self.seen, self.steps, self._stepped = self.seen + self.batch, self.steps + 1, self._stepped + 1
        if self.average is not None:
            self.average.update(samples=self.batch, half_life=span)

    def _take(self, optimizer: Optimizer) -> None:
        """Take a trainer's optimizer: the one that the recipe names, its groups' ratios noted."""
        o, row = self.recipe.optimizer, row_of_class(type(optimizer))
        wanted = row_of(self.recipe)
        if row is None or row is not wanted:
            raise InputError(
                f"the trainer's optimizer is {type(optimizer).__name__}, the recipe's {o.name!r}; make the trainer "
                "with that one, or correct optimizer.name"
            )
        if o.weight_decay and coupling_of(self.recipe) != wanted.decay:
            raise InputError(f"optimizer.decay={o.decay!r} is not what {type(optimizer).__name__} does; leave it out")
        for group in optimizer.param_groups:
            if bool(group.get("nesterov", False)) != o.nesterov:
                raise InputError(
                    f"the trainer's optimizer has nesterov={group.get('nesterov')}, the recipe {o.nesterov}"
                )
            # a scheduler of the trainer's own may have written its first factor already
            group.setdefault("lr_ratio", float(group.get("initial_lr", group["lr"])) / optimizer.defaults["lr"])
        decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
        bind(optimizer, weight_decay=max(decays))
        self._optimizer, self._groups = optimizer, prepare_groups(optimizer, self.recipe, self.settings)


APPLIED = "written into the trainer's optimizer before every step: learning rate, momentum or betas, eps, weight decay"


class Updates(Sequence[Tensor]):
    """The rows of every update of a run, made when they are asked for.

    Args:
        order: of the samples.
        batch: samples an update.
        count: updates.
    """

    def __init__(self, order: SampleOrder, batch: int, count: int):
        self.order, self.batch, self.updates = order, batch, count

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.updates:
            raise IndexError(index)
        return self.order.indices(index * self.batch, self.batch)


def check_followed(recipe: Recipe, device: str) -> None:
    """Refuse what a trainer of the user's own cannot be told.

    Args:
        recipe: of an arm.
        device: where it is trained.

    Raises:
        InputError: the first such key, and the way out.
    """
    check_trainable(recipe)
    for key, way in _refused(recipe, device):
        raise InputError(f"{key} is not followed by a trainer of your own; {way}")


def _refused(recipe: Recipe, device: str) -> Iterator[tuple[str, str]]:
    batch = recipe.batch
    own = "use a task that returns isobatch.tasks.Run"
    for part in ("augment", "adversary", "noise"):
        if getattr(recipe, part) is not None:
            yield f"[{part}]", f"remove it, or {own}"
    if batch.schedule is not None or batch.adaptive is not None:
        yield "a batch that changes during the run", own
    if batch.unit != "samples":
        yield f"batch.unit = {batch.unit!r}", "count samples"
    if recipe.groups:
        yield "[[groups]]", "make the groups in your optimizer; their ratios of learning rate and decay are kept"
    if isinstance(recipe.staircase(batch.size), AutoWU):
        yield "a learning rate that is searched for", own
    if recipe.batch_norm is not None and recipe.batch_norm.synchronised:
        yield "batch_norm.synchronised", "remove it: a run has one process"
    if device not in ("cpu", "cuda"):
        yield f"--device {device}", "give cpu or cuda; precision and compilation are its own settings"


@final
class Patience:
    """Ends what this thread does, by an error that says where it stands, once nothing was heard for too long.

    What waits inside a library that does not come back to Python is not ended.

    Args:
        seconds: how long; None, another thread than the main one, or a system without such a timer waits for ever.
    """

    def __init__(self, seconds: float | None):
        self.seconds = None if seconds is None else finite("timeout", seconds, 0, open_low=True)
        self._before: Any = None
        self._on = False

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        if self.seconds is not None and main and "setitimer" in vars(signal):
            self._before, self._on = signal.signal(signal.SIGALRM, self._hangs), True
            self.news()

    def __exit__(self, *_: object) -> None:
        if self._on:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
            self._on = False

    def news(self) -> None:
        """Say that something moved."""
        if self._on and self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)  # again where a trainer swallows the error

    def _hangs(self, number: int, frame: FrameType | None) -> NoReturn:
        stack = traceback.extract_stack(frame)
        own = [place for place in stack if not place.filename.startswith((sys.prefix, sys.base_prefix, "<"))]
        place = (own or stack)[-1]
        raise InputError(
            f"the trainer hangs: no update began or ended within {self.seconds:g} s; it stands in {place.filename}, "
            f"line {place.lineno}, in {place.name}. Give it longer with --timeout, or look for what it waits for there"
        )


class _NoSamples:
    """A count of samples that somebody else draws."""

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, indices: Tensor) -> NoReturn:
        raise InputError("a trainer of your own draws its samples itself")


def _untrained(model: nn.Module, batch: Any) -> torch.Tensor:
    raise InputError("a trainer of your own makes its updates itself")


def _nothing() -> None:
    """Visit nothing."""
