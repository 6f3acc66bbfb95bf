"""The search for a learning rate (AutoWU) beside the loop: losses in, one decision for all ranks, and copies."""

from collections.abc import Callable
from typing import Any, final

import torch

from isobatch.checkpoint import load_model, load_optimizer, optimizer_state
from isobatch.curves import AutoWU, Growth, Look, interval_for
from isobatch.gradients import mapped
from isobatch.optimizers import bind, write_settings
from isobatch.optimizers.invariant import InvariantOptimizer
from isobatch.train.regression import LossRegression
from isobatch.train.world import World
from isobatch.units import whole

MOST_KEPT = 8
"""Copies of the run that a search with rollback holds at once."""


@final
class RateSearch:
    """AutoWU with its Gaussian process, and with copies of the run where it may have to go back.

    Args:
        rate: AutoWU.
        world: the processes of the job; the look of the first one counts.
        copy: returns a copy of the run as it is now; None keeps none.
        put_back: takes a copy and makes it the run again.
        published: the process as published, whose noise follows the losses slowly.
    """

    def __init__(
        self,
        rate: AutoWU,
        world: World,
        copy: Callable[[], Any] | None = None,
        put_back: Callable[[Any], None] | None = None,
        *,
        published: bool = False,
    ):
        self.rate, self.world, self.regression = rate, world, LossRegression(published=published)
        self._copy, self._put_back = copy, put_back
        self._kept: list[tuple[float, Any]] = []

    def observe(self, loss: float, start: float, stop: float) -> bool:
        """Take in an applied step, and turn where the tests say so.

        Args:
            loss: mean over the global batch, the same on every rank.
            start: samples seen before the step.
            stop: samples seen after it.

        Returns:
            Whether the rate turned at this step.
        """
        if not self.rate.searching:
            return False
        self.rate.observe(loss, start, stop)
        turned = False
        if self.rate.due:
            look = self.regression.look(*self.rate.points())
            if self.world.size > 1:
                look = self._agree(look)
            if self._copy is not None:
                self._keep(stop, stop * sum(look.places) / len(look.places))
            turned = self.rate.decide(look)
            if turned and self._put_back is not None and self.rate.place is not None:
                self._put_back(self._nearest(self.rate.place))
        if not self.rate.searching:
            self._kept = []
        return turned or not self.rate.searching

    def state_dict(self) -> dict[str, Any]:
        """Return the state of rate and process, and the copies that are held."""
        kept = [{"at": at, "copy": copy} for at, copy in self._kept]
        return {"rate": self.rate.state_dict(), "regression": self.regression.state_dict(), "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what `state_dict` gave.
        """
        self.rate.load_state_dict(state["rate"])
        self.regression.load_state_dict(state["regression"])
        self._kept = [(item["at"], item["copy"]) for item in state["kept"]]

    def _agree(self, look: Look) -> Look:
        mine = [*look.chances, *look.places] if self.world.rank == 0 else [0.0] * (2 * len(look.chances))
        agreed = self.world.total(mine)
        return Look(tuple(agreed[: len(look.chances)]), tuple(agreed[len(look.chances) :]))

    def _keep(self, now: float, lowest: float) -> None:
        """Copy the run, and forget copies from before the one nearest to where the loss is lowest."""
        assert self._copy is not None
        self._kept.append((now, self._copy()))
        nearest = min(range(len(self._kept)), key=lambda i: abs(self._kept[i][0] - lowest))
        self._kept = self._kept[nearest:]
        if len(self._kept) > MOST_KEPT:
            del self._kept[len(self._kept) // 2]

    def _nearest(self, place: float) -> Any:
        return min(self._kept, key=lambda item: abs(item[0] - place))[1]


def copy_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Any = None) -> dict[str, Any]:
    """Return a copy of a run's weights, optimizer and average.

    Args:
        model: the weights.
        optimizer: its state.
        average: anything with a state_dict, or None.

    Returns:
        Tensors and plain values.
    """
    found = {"model": dict(model.state_dict()), "optimizer": optimizer_state(optimizer, model)}
    if average is not None:
        found["average"] = average.state_dict()
    return _cloned(found)


def put_back(
    found: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Any = None
) -> None:
    """Make a copy the run again; the numbers in the optimizer's groups are written anew before the next step.

    Args:
        found: what `copy_of` gave.
        model: gets the weights.
        optimizer: gets its state.
        average: gets its state, where there is one.
    """
    load_model(model, found["model"])
    load_optimizer(optimizer, model, _cloned(found["optimizer"]))
    if isinstance(optimizer, InvariantOptimizer):
        optimizer.discard()
    if average is not None:
        average.load_state_dict(_cloned(found["average"]))


def _cloned(value: Any) -> Any:
    return mapped(value, lambda tensor: tensor.detach().clone())


@final
class AutoWarmup:
    """AutoWU for a user's own loop: it writes the learning rate, by each parameter group's ratio.

    Args:
        optimizer: a torch optimizer; its groups' rates are bound as ratios to the first one's.
        length: samples of the whole run.
        batch_size: samples of one step; batches may differ in mid-run.
        lr_min: where the rate starts.
        lr_max: the highest rate it tries.
        warmup: longest warm-up as a share of the run.
        overshoot: decades by which the rate may grow during the patience.
        every: samples between two tests, instead of overshoot.
        patience: tests in a row that must say that the loss has turned.
        confidence: of one vote.
        decay: "cosine" at once, or "hold" and cosine at the end.
        cooldown: share of the run, for "hold".
        model: whose weights go back to where the loss was lowest when the rate turns; None leaves them.
        average: goes back with the weights.

    Raises:
        InputError: lr_min that is not below lr_max, patience longer than the warm-up, or a share out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> warmup = AutoWarmup(optimizer, length=1000, batch_size=10)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> warmup.step(loss=1.0, samples=10)
        False
        >>> round(optimizer.param_groups[0]["lr"], 7)
        1.26e-05
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        length: float,
        batch_size: int,
        lr_min: float = 1e-5,
        lr_max: float = 1.0,
        warmup: float = 0.5,
        overshoot: float = 0.25,
        every: float | None = None,
        patience: int = 3,
        confidence: float = 0.95,
        decay: str = "cosine",
        cooldown: float = 0.2,
        model: torch.nn.Module | None = None,
        average: Any = None,
    ):
        size, low = whole("batch_size", batch_size), lr_min / lr_max
        growth = Growth(length, size, low, warmup, 0.0, 1, confidence, decay, cooldown)
        tests = interval_for(overshoot, low, patience, growth.end) if every is None else every
        growth = Growth(length, size, low, warmup, tests, patience, confidence, decay, cooldown)
        self.optimizer, self.lr_max, self.seen, self.samples = optimizer, lr_max, 0.0, float(size)
        self.world = World.current()
        bind(optimizer, lr=float(optimizer.param_groups[0]["lr"]))
        copies = (None, None)
        if model is not None:
            copies = (
                lambda: copy_of(model, optimizer, average),
                lambda found: put_back(found, model, optimizer, average),
            )
        self.search = RateSearch(AutoWU(growth), self.world, *copies)
        self.write()

    def step(self, *, loss: float, samples: float, next_samples: float | None = None) -> bool:
        """Take in an applied step and write the rate of the next one; call it after optimizer.step().

        Args:
            loss: mean over this rank's samples; ranks are averaged here.
            samples: global samples of the step.
            next_samples: of the next step; as many unless given.

        Returns:
            Whether the rate turned at this step.
        """
        agreed = self.world.total([float(loss)])[0] / self.world.size
        start, self.seen = self.seen, self.seen + samples
        turned = self.search.observe(agreed, start, self.seen)
        self.samples = samples if next_samples is None else next_samples
        self.write()
        return turned

    def write(self) -> None:
        """Write the rate of the next step into the groups, each by its ratio."""
        write_settings(self.optimizer, lr=self.lr_max * self.search.rate.mean(self.seen, self.seen + self.samples))

    def state_dict(self) -> dict[str, Any]:
        """Return clock and search."""
        return {"seen": self.seen, "samples": self.samples, "search": self.search.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; the next step gets the rate it would have had.

        Args:
            state: what `state_dict` gave.
        """
        self.seen, self.samples = state["seen"], state["samples"]
        self.search.load_state_dict(state["search"])
        self.write()
