"""One step of an average: clock and tensors together, whether calls match steps, and what it says about itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from isobatch.average.buffers import AverageBuffers
from isobatch.average.clock import Cadence, Clock, Hold, hold, plain
from isobatch.average.intake import Application
from isobatch.average.layout import Stacks
from isobatch.average.lending import MODES, Mode, Teacher
from isobatch.errors import InputError, warn
from isobatch.gradients import bare_optimizer, first_not_finite, local

# Unchanged weights are reported once they are this share of the calls, and this many.
SUSPICIOUS = 0.45
ENOUGH = 16
PROBES = 8
# An update that replaces more than this share of the average leaves the range where kappa * (1 - rho) << 1.
COARSE = 0.1
FROZEN = 0.5


def overflowed(optimizer: Optimizer) -> bool:
    """Whether the step that an optimizer just made was none, because a gradient scaler told it of an overflow.

    A scaler does not call a plain optimizer then; one that it hands its scale to, such as a fused one, it does.

    Args:
        optimizer: inside one of its step hooks.

    Returns:
        True where nothing was applied.

    Example:
        >>> import torch
        >>> overflowed(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        False
    """
    found = vars(optimizer).get("found_inf")
    return isinstance(found, Tensor) and bool(found.item())


@final
class Watch:
    """Do the calls of update() match the optimizer's steps? The cheap evidence, collected as training goes.

    An optimizer that writes in place moves the version of what it writes. Where the versions of a few weights say that
    most updates found nothing new, the values of all weights are compared for a few calls before anything is said: an
    optimizer may write past the versions, and what trained at first may be frozen since.
    """

    def __init__(self) -> None:
        self.calls = self.changed = self.unchanged = self.confirmed = 0
        self.steps = self.mismatched = 0
        self._watched = self._told = self._blind = False
        self._since = 0
        self._probes: list[Tensor] | None = None
        self._versions: list[int] = []
        self._seen: tuple[list[Tensor], list[int], list[Tensor]] | None = None

    def optimizer(self, optimizer: Optimizer) -> RemovableHandle:
        """Count the steps of an optimizer.

        Args:
            optimizer: the one whose steps the average follows, wrapped or bare.

        Returns:
            The hook's handle; remove() ends the count.
        """
        inner = bare_optimizer(optimizer)
        self._watched = True

        def count(*_: Any) -> None:
            if not overflowed(inner):
                self.steps += 1
                self._since += 1

        return inner.register_step_post_hook(count)

    def rebound(self) -> None:
        """Choose the probes anew, because the model's tensors are others."""
        self._probes, self._versions, self._seen = None, [], None

    def note(self, trained: Callable[[], list[Tensor]]) -> None:
        """Take note of one update.

        Args:
            trained: returns the tensors that train now; called now and then.
        """
        self.calls += 1
        if self._watched:
            self.mismatched += self._since != 1
            self._since = 0
        elif not self._blind:
            self._look(trained)
        if not self._told and self.suspicious():
            self._told = True
            warn(self.messages()[0])

    def suspicious(self) -> bool:
        """Whether calls and steps clearly do not match."""
        if self._watched:
            return self.mismatched >= ENOUGH and self.mismatched >= SUSPICIOUS * self.calls
        return self.confirmed > 0 and self._doubted()

    def messages(self) -> list[str]:
        """Return what is wrong, if anything."""
        found = []
        if self._watched and self.mismatched:
            found.append(
                f"{self.mismatched} of {self.calls} updates did not follow exactly one optimizer step "
                f"({self.steps} steps); call update() once after each optimizer.step(), not after each micro-batch"
            )
        elif not self._watched and self.suspicious():
            found.append(
                f"{self.unchanged} of {self.calls} updates found the weights unchanged since the update before; call "
                "update() once after each optimizer.step(), not after each micro-batch or skipped step"
            )
        return found

    def _doubted(self) -> bool:
        return self.changed > 0 and self.unchanged >= ENOUGH and self.unchanged >= SUSPICIOUS * self.calls

    def _look(self, trained: Callable[[], list[Tensor]]) -> None:
        if self._probes is None:
            found = [t for t in trained() if not t.is_inference()]
            self._probes = found[:: max(1, len(found) // PROBES)][:PROBES]
        versions = [p._version for p in self._probes]
        if self._versions:
            same = versions == self._versions
            self.unchanged += same
            self.changed += not same
        self._versions = versions
        if self._doubted() and not self.confirmed:
            self._compare(trained())
        else:
            self._seen = None

    def _compare(self, now: list[Tensor]) -> None:
        """Judge the versions by the values of all weights, against those of the call before."""
        sums = [local(t).detach().to(torch.promote_types(t.dtype, torch.float64)).sum() for t in now]
        versions = [t._version for t in now]
        before, self._seen = self._seen, (now, versions, sums)
        if before is None or [id(t) for t in before[0]] != [id(t) for t in now]:
            return
        moved = [not bool(a == b) for a, b in zip(sums, before[2], strict=True)]
        written = [a != b for a, b in zip(versions, before[1], strict=True)]
        if not any(moved) and not any(written):
            self.confirmed += 1
        elif any(m and not w for m, w in zip(moved, written, strict=True)):
            self._blind = True  # the optimizer writes past the versions
        elif any(written) and not self._probed(now, written):  # what the probes watch no longer trains
            self._probes = [t for t, w in zip(now, written, strict=True) if w][:PROBES]
            self._versions, self._seen = [], None
            self.changed = self.unchanged = 0

    def _probed(self, now: list[Tensor], written: list[bool]) -> bool:
        """Whether one of the probes was among what was written."""
        probes = {id(p) for p in self._probes or ()}
        return any(w and id(t) in probes for t, w in zip(now, written, strict=True))


@final
class Engine:
    """Advances K averages of one model on one clock.

    Args:
        buffers: the averages.
        count: K.
        cadence: when pending samples are applied.
        holds: whether the update is a first-order hold.
        batch_size: reference batch of the hold; None for the continuous limit.
    """

    def __init__(
        self,
        buffers: AverageBuffers,
        count: int,
        cadence: Cadence,
        *,
        holds: bool = False,
        batch_size: float | None = None,
    ):
        self.buffers, self.cadence = buffers, cadence
        self.holds, self.batch_size = holds, batch_size
        self.watch = Watch()
        self.clock = Clock(spans=(0.0,) * count, ages=(0.0,) * count)
        self.last: tuple[Hold, ...] = ()
        self.half_lives: tuple[float, ...] = ()
        self._teachers: dict[tuple[str, float | None], tuple[dict[str, Stacks], Teacher]] = {}
        self._bound = buffers.roles

    def restart(self) -> None:
        """Start the averages again at the present weights; the count of samples goes on."""
        self.buffers.reset()
        zeros = (0.0,) * len(self.clock.spans)
        self.clock = self.clock._replace(pending=0, spans=zeros, ages=zeros, waiting=0, applied=0)
        self.last, self.half_lives = (), ()
        self.teach(moved=True)

    def resume(self, clock: Clock) -> None:
        """Go on from averages that were loaded; of the update before them nothing is known.

        Args:
            clock: of these averages.
        """
        self.clock, self.last, self.half_lives = clock, (), ()
        self.teach(moved=True)

    def advance(self, samples: float, spans: Sequence[float]) -> bool:
        """Take in one optimizer step.

        Args:
            samples: of the step, positive.
            spans: half-lives that it spans, one per average.

        Returns:
            Whether the averages moved; otherwise the step is pending.
        """
        self.buffers.refuse_lent()
        self.buffers.refresh(quick=True)
        clock = self.clock.plus(samples, spans)
        due = clock.due(self.cadence)
        if not due:
            self.buffers.intake.finish()
        self.clock = self._applied(clock) if due else clock
        if self._bound is not self.buffers.roles:
            self._bound = self.buffers.roles
            self.watch.rebound()
        self.watch.note(self.buffers.trained)
        if self._teachers:
            self.teach(moved=due)
        return due

    def flush(self) -> None:
        """Apply what is pending now."""
        if self.clock.waiting:
            self.buffers.refuse_lent()
            self.buffers.refresh()
            self.clock = self._applied(self.clock)
            self.teach(moved=True)

    def teacher(self, mode: Mode, which: float | None, values: Callable[[], Mapping[str, Tensor]]) -> Teacher:
        """Return the teacher of a mode and an average, the same one until the model is moved or cast.

        Args:
            mode: "eval" or "train".
            which: the average.
            values: returns it by name.

        Returns:
            The teacher, up to date.

        Raises:
            InputError: an unknown mode, or a model that cannot be copied truly.
        """
        if mode not in MODES:
            raise InputError(f'mode={mode!r} must be "eval" or "train"')
        buffers = self.buffers
        roles, teacher = self._teachers.get((mode, which), (None, None))
        if teacher is None or roles is not buffers.roles:
            teacher = Teacher(buffers.root, buffers.live(), buffers.others(), values, mode)
            self._teachers[mode, which] = buffers.roles, teacher
        teacher.refresh()
        return teacher

    def teach(self, *, moved: bool) -> None:
        """Bring the teachers that were asked for up to date.

        Args:
            moved: whether the averages moved.
        """
        self._teachers = {key: pair for key, pair in self._teachers.items() if pair[0] is self.buffers.roles}
        for _, teacher in self._teachers.values():
            teacher.refresh(moved=moved)

    def _applied(self, clock: Clock) -> Clock:
        if not clock.applied:
            self.buffers.reconsider()
        shares = [self._share(span, clock.pending) for span in clock.spans]
        before = self.clock, self.last, self.half_lives

        def undo() -> None:
            self.clock, self.last, self.half_lives = before

        self.buffers.apply(Application(shares, clock.seen, bool(self._teachers), undo))
        self.last = tuple(shares)
        self.half_lives = tuple(clock.pending / span if span else math.inf for span in clock.spans)
        return clock.settled(shares)

    def _share(self, span: float, samples: float) -> Hold:
        if self.holds:
            return hold(span, None if self.batch_size is None else samples / self.batch_size)
        share = plain(span)
        return Hold(1 - share, 0.0, share)


@final
@dataclass(frozen=True)
class Report:
    """State of one average; lengths are norms over all averaged tensors.

    Args:
        half_life: effective half-life in samples of the last application; None before the first, and after a load.
        mean_age: mean age in samples of the weights in the average, what is pending included.
        seen: samples that update() was told of.
        pending: of these, samples not applied yet.
        share: weight that the last application gave to new weights; None before the first, and after a load.
        lost_below: relative gap between average and weights under which such an application may be lost; 0 where the
            rounding loses nothing.
        frozen_share: share of elements that differ from the weights and yet would not move.
        distance: norm of average - weights.
        relative_distance: the same over the norm of the weights.
        warnings: what looks wrong, as sentences.
    """

    half_life: float | None
    mean_age: float
    seen: float
    pending: float
    share: float | None
    lost_below: float
    frozen_share: float
    distance: float
    relative_distance: float
    warnings: tuple[str, ...]


def measured(
    engine: Engine, values: Mapping[str, Tensor], indices: Sequence[int], meant: float | None = None
) -> Report:
    """Measure one average; of a sharded model every rank calls it, and all get the same.

    Args:
        engine: clock and tensors.
        values: the average by name.
        indices: which of the K it is the mean of.
        meant: its half-life in samples once a warm-up is over; None for a kind without one.

    Returns:
        The report.
    """
    clock, shards, live = engine.clock, engine.buffers.shards, engine.buffers.live()
    share = fmean(1 - engine.last[k].keep for k in indices) if engine.last else None
    exact = engine.buffers.rounding != "nearest"
    sums = [0.0, 0.0, 0.0, 0.0]
    for name, value in ((name, local(value)) for name, value in values.items()):
        if name in engine.buffers.still:
            continue
        weights, part = local(live[name]).detach().to(value.device), shards.share(live[name])
        wide = torch.promote_types(value.dtype, torch.float32)
        away = (value.to(wide) - weights.to(wide)).abs()
        stuck = 0 if exact or not share else _frozen(value, weights, share)
        found = float(away.square().sum()), float(weights.to(wide).abs().square().sum()), stuck, value.numel()
        sums = [known + number * part for known, number in zip(sums, found, strict=True)]
    if shards:
        sums = shards.total(
            torch.tensor(sums, dtype=torch.float64).to(local(next(iter(live.values()))).device)
        ).tolist()
    gap, size, frozen, total = sums
    eps = max((torch.finfo(v.dtype).eps for v in values.values()), default=0.0)
    lost = eps / 2 / share if share and not exact else 0.0
    frozen_share = frozen / total if total else 0.0
    span = fmean(engine.half_lives[k] for k in indices) if engine.half_lives else None
    # a warm-up replaces much on purpose, and a mean of the tail or of a window has no half-life to be coarse against
    steady = meant is not None and span is not None and span >= meant * (1 - 1e-9)
    found = [
        *_not_finite(engine.buffers, values, live),
        *engine.watch.messages(),
        *_judged(share, frozen_share, lost, coarse=steady and not engine.holds),
    ]
    return Report(
        half_life=span,
        mean_age=fmean(clock.ages[k] for k in indices) + clock.pending,
        seen=clock.seen,
        pending=clock.pending,
        share=share,
        lost_below=lost,
        frozen_share=frozen_share,
        distance=math.sqrt(gap),
        relative_distance=math.sqrt(gap / size) if size else 0.0,
        warnings=tuple(found),
    )


def _not_finite(buffers: AverageBuffers, values: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> list[str]:
    average, weights = (buffers.shards.first(first_not_finite(t, buffers.still), t) for t in (values, live))
    found = []
    if average is not None:
        found.append(
            f"the average of {average!r} is not finite and will not recover; load a good state, or reset() at good "
            "weights"
        )
    if weights is not None:
        found.append(f"the weights of {weights!r} are not finite; restore them, or no update can be applied")
    buffer = buffers.bad_buffer()
    if buffer is not None:
        found.append(
            f"the buffer {buffer!r} is not finite, and the averaged model computes with it; restore or recalibrate() it"
        )
    return found


def _frozen(value: Tensor, weights: Tensor, share: float) -> int:
    target = weights.to(value.dtype)
    stuck = (torch.lerp(value, target, share) == value) & (value != target)
    return int(stuck.sum())


def _judged(share: float | None, frozen: float, lost: float, *, coarse: bool) -> list[str]:
    found = []
    if frozen > FROZEN:
        found.append(
            f"{frozen:.0%} of the elements no longer move: an update of weight {share:.2g} is lost where average and "
            f'weights differ by less than {lost:.1%}; cadence="auto" applies fewer and larger updates'
        )
    if coarse and share is not None and COARSE < share < 1:
        found.append(
            f"one update replaces {share:.0%} of the average, so the half-life spans only a few updates and the plain "
            'rule is coarse; a smaller batch, a longer half-life or kind="hold" is closer'
        )
    return found
