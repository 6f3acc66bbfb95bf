"""Squares of chunk gradients, taken while the backward passes run: one buffer beside the gradients, no second pass."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import final

import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.gradients import (
    BatchRows,
    PassNorms,
    Reading,
    RescaleCheck,
    Tap,
    Watch,
    managing,
    refuse_sparse,
    refuse_unwatchable,
    sharded,
)
from isobatch.optimizers.leaf import Squares
from isobatch.optimizers.second_moment import NoiseForm
from isobatch.units import finite

_SPREAD = 4


@final
class Chunks:
    """The chunk gradients of one optimizer step: how many, how many samples, and the sum of their squares.

    A hook before each parameter's accumulation sees the gradient of one backward pass alone, adds its square, and lets
    `.grad` accumulate as ever. The loss is scaled as usual, so that `.grad` ends as the mean gradient: the gradient
    that a chunk of n of W samples adds is c = (n/W) g, and the buffer is the sum of c^2/n.

    Args:
        default_samples: samples of a full backward pass outside `chunk`, the shorter ones are seen; None where every
            pass that is stepped on must be declared.
        form: "coordinate" keeps a buffer of the parameter's shape, the other forms only sums.
    """

    def __init__(self, default_samples: int | None, form: NoiseForm):
        self.form: NoiseForm = form
        self.default_samples = default_samples
        self.norms = PassNorms()
        self._rows = None if default_samples is None else BatchRows(default_samples)
        self._present = 1.0
        self.enabled = True
        self.count = 0
        self.samples = 0.0
        self.factor = 1.0
        self.rescaled = False
        self.declared = False
        self._unit = 0.0
        self._weight = 1.0
        self._step = 0
        self._chunk = 0
        self._looked = False
        self._open: float | None = None
        self._pending = 0.0  # samples of passes that FSDP2 has not reduced yet
        self._reduced = 0
        self._weights: list[float] = []
        self._under_fsdp: bool | None = None
        self._spread = False
        self._doubt = ""
        self._by_hand = False
        self.opened_by: object | None = None
        self._tap: Tap | None = None
        self._watch: Watch | None = None
        self._leaves: dict[int, Squares] = {}
        self._checks: list[RescaleCheck] = []

    def attach(self, parameters: Iterable[Tensor]) -> None:
        """Watch parameters; those that are watched already are left alone. Frozen ones are seen once they thaw.

        Args:
            parameters: leaf tensors.

        Raises:
            InputError: one whose gradients cannot be seen or squared, shards of which more than their own coordinates
                would be needed, or parameters that FSDP2 does not manage beside some that it does.
        """
        numbers = (p for p in parameters if p.is_floating_point() or p.is_complex())  # whole ones have no gradient
        fresh = [p for p in numbers if id(p) not in self._leaves]
        if not fresh:
            return
        for parameter in fresh:
            refuse_unwatchable(_words(parameter), parameter)
        self._refuse_shards(fresh)
        if self._tap is None or self._watch is None:
            self._tap = Tap.of(fresh)
            self._tap.join(self)
            self._watch = Watch(self, self._tap)
        self._watch.add(fresh)
        self._leaves |= {id(parameter): Squares(parameter) for parameter in fresh}
        self.norms.parameters += fresh

    def check(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Choose the parameters of each group by which a factor on its gradients is read.

        Args:
            groups: parameters of each group.
        """
        if len(self._checks) == len(groups) and all(map(_alive, self._checks, groups)):
            return
        for leaf in self._leaves.values():
            leaf.check = None
        self._checks = [RescaleCheck([p for p in group if p.requires_grad], _SPREAD) for group in groups]
        for found in self._checks:
            for parameter in found.chosen:
                self._leaves[id(parameter)].check = found

    def look(self) -> None:
        """See the samples of passes outside `chunk` in what the modules of the parameters are given."""
        if self._rows is not None:
            self._rows.look(leaf.parameter for leaf in self._leaves.values())

    @property
    def doubt(self) -> str:
        """Why the samples of this step are not known, empty where they are."""
        return "" if self._rows is None or self.declared else self._rows.doubt or self._doubt

    @property
    def checks(self) -> list[RescaleCheck]:
        """What each group's gradients are compared with."""
        return self._checks

    def chunk(self, samples: float) -> AbstractContextManager[None]:
        """Declare that the one backward pass inside is a chunk of so many samples (or tokens).

        A noise scale that watches the same parameters is told, too.

        Args:
            samples: n, at least 0; a chunk of 0 (everything masked) is not counted.

        Returns:
            A context manager. Entering it raises InputError inside another chunk, or after backward passes that no
            chunk declared.
        """
        if self._tap is None:
            self._tap = Tap()
            self._tap.join(self)
        return self._tap.chunk(samples, self)

    def begin(self, samples: float, rows: Sequence[float] | None, *, own: bool) -> None:
        """Take note that a chunk is open.

        Args:
            samples: of the chunk.
            rows: not used.
            own: whether this optimizer declared it.

        Raises:
            InputError: after backward passes that no chunk declared.
        """
        if self.count and not self.declared:
            raise InputError(
                f"chunk(samples={samples}) after {self.count} backward passes outside any chunk; "
                "put every backward of the step inside one, or none"
            )
        self.declared = True
        self._begin(samples)
        self._open = samples
        self._pending += samples

    def end(self, samples: float) -> None:
        """Count the chunk whose backward pass is done.

        Args:
            samples: of the chunk.
        """
        if not self._under_fsdp:  # where it does, a chunk is what is reduced, and counted then
            self._close(samples)

    def add(self, parameter: Tensor, gradient: Tensor, samples: float) -> None:
        """Count one chunk's contribution to a parameter's gradient and, while `enabled`, add its square.

        Args:
            parameter: a watched parameter.
            gradient: c, what this chunk adds to `.grad`.
            samples: n, positive.
        """
        leaf = self._current(self._leaves[id(parameter)])
        leaf.calls += 1
        if self.enabled:
            self._unit = self._unit or samples
            leaf.add(gradient, self._unit / samples, self.form)

    def add_squares(self, parameter: Tensor, squares: Tensor, samples: float) -> None:
        """Add sum c^2 over chunks of equally many samples, per coordinate.

        Args:
            parameter: a watched parameter.
            squares: the sum, of the parameter's shape.
            samples: n of each chunk, positive.
        """
        leaf = self._current(self._leaves[id(parameter)])
        self._unit = self._unit or samples
        scaled = squares * (self._unit / samples)
        leaf.buffer = scaled if leaf.calls == 0 or leaf.buffer is None else leaf.buffer.add_(scaled)
        leaf.calls += 1

    @contextmanager
    def from_layers(self, sizes: Sequence[float]) -> Generator[None]:
        """Declare that the one backward pass inside holds several chunks, whose gradients are given to `add`.

        Args:
            sizes: samples of each chunk.

        Yields:
            Nothing.

        Raises:
            InputError: under FSDP2, whose reductions show the chunks of ranks.
        """
        if self._under_fsdp:
            raise InputError("layer_squares does not see shards; under fully_shard call backward inside chunk(samples)")
        with self.chunk(sum(sizes)):
            self._by_hand = True
            try:
                yield
            finally:
                self._by_hand = False
        self.count += len(sizes) - 1

    def squares(self, parameter: Tensor) -> Tensor | None:
        """Return the sum of c^2/n times `unit`, None where this step took none; its memory is used again.

        Args:
            parameter: any.

        Returns:
            The buffer itself, to be used up by the step.
        """
        leaf = self._leaves.get(id(parameter))
        return leaf.buffer if leaf is not None and leaf.step == self._step and leaf.calls and self.enabled else None

    @property
    def unit(self) -> float:
        """Samples of the first chunk: the common weight that was left out of the squares."""
        return self._unit

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers hold now."""
        return sum(leaf.buffer.nbytes for leaf in self._leaves.values() if leaf.buffer is not None)

    def scaled(self, factor: float) -> None:
        """Say that every `.grad` was multiplied by a factor outside (gradient clip, loss scale), so the squares follow.

        Args:
            factor: at least 0.
        """
        self.factor *= finite("factor", factor, 0)
        self.rescaled = True

    def discard(self) -> None:
        """Forget what this step collected; buffers are kept for the next one."""
        self.count = 0
        self.samples = 0.0
        self.factor = 1.0
        self.rescaled = False
        self._unit = self._pending = 0.0
        self._reduced, self._doubt = 0, ""
        self.declared = False
        self._step += 1
        for found in self._checks:
            found.forget()
        self.norms.forget()
        if self._rows is not None:
            self._rows.forget(leaf.parameter for leaf in self._leaves.values())

    def release(self) -> None:
        """Free the buffers (they come back when needed)."""
        for leaf in self._leaves.values():
            leaf.buffer = None

    def _begin(self, samples: float) -> None:
        """Open the books for one backward pass."""
        self._chunk += 1
        self._looked = False
        self._unit = self._unit or samples
        self._weight = self._unit / samples if samples > 0 else 0.0

    def _close(self, samples: float) -> None:
        if samples > 0:
            self.count += 1
            self.samples += samples

    @property
    def under_fsdp(self) -> bool:
        """Whether gradients are those of all ranks of a shard group, read as FSDP2 reduces them."""
        return bool(self._under_fsdp)

    def receive(self, parameter: Tensor, gradients: Sequence[Tensor], reading: Reading | None = None) -> None:
        """Take one backward pass's gradient of a parameter, before it is accumulated.

        Args:
            parameter: a watched one.
            gradients: what the pass adds to `.grad`; of each rank of a shard group where FSDP2 reduces.
            reading: where it reduces.

        Raises:
            InputError: a second pass in one chunk, a pass outside when others were declared, cleared or sparse
                gradients, or passes that were neither declared nor reduced one by one.
        """
        leaf = self._leaves[id(parameter)]
        if reading is not None:
            self._receive_ranks(leaf, gradients, reading)
            return
        (gradient,) = gradients
        if gradient.layout is not torch.strided:
            refuse_sparse(_words(parameter), gradient)
        if self.enabled:
            if not self._spread:
                self.norms.arrive()
            if leaf.check is not None:
                leaf.check.add(parameter, gradient)
        if self._by_hand:
            return
        samples = self._open if self.opened_by is not None else None
        if samples is None:
            samples = self._undeclared(leaf)
        elif leaf.chunk == self._chunk:
            raise InputError(
                "two backward passes in one chunk; add the losses and call backward once "
                "(with activation checkpointing: use_reentrant=False)"
            )
        leaf.chunk = self._chunk
        if self._current(leaf).calls and not self._looked:
            self._looked = True  # once a pass is enough, and this runs for every parameter
            if parameter.grad is None:
                raise InputError("gradients were cleared but their squares were not; use optimizer.zero_grad()")
        if samples == 0:
            return
        leaf.calls += 1
        if not self.enabled:
            return
        if torch.is_grad_enabled():
            with torch.no_grad():
                leaf.add(gradient, self._weight, self.form)
        else:
            leaf.add(gradient, self._weight, self.form)

    def _receive_ranks(self, leaf: Squares, gradients: Sequence[Tensor], reading: Reading) -> None:
        """Take what each rank of a shard group adds to this rank's part of a parameter's gradient."""
        if self._current(leaf).calls == self._reduced:
            self._reduction(reading, len(gradients))
        leaf.calls += len(gradients)
        if not self.enabled:
            return
        with torch.no_grad():
            for place, (gradient, weight) in enumerate(zip(gradients, self._weights, strict=True)):
                if leaf.check is not None:
                    leaf.check.add(leaf.parameter, gradient)
                leaf.add(gradient, weight, self.form, first=place == 0 and leaf.calls == len(gradients))

    def _reduction(self, reading: Reading, ranks: int) -> None:
        """Open the books for one reduction: each rank's passes since the last one are a chunk of its own."""
        if self.declared:
            counts, self._pending = reading.counts(self._pending), 0.0
        elif reading.passes > 1:
            raise InputError(
                f"FSDP2 reduces {reading.passes} passes at once (set_requires_gradient_sync) and none was declared; "
                "call every backward inside optimizer.chunk(samples)"
            )
        else:
            own = None if self._rows is None else self._rows.samples()
            counts = reading.counts(-1.0 if own is None else own)
            if min(counts) < 0:
                self._doubt, counts = "a rank could not tell what its backward pass holds", [1.0] * ranks
        self._unit = self._unit or next((n for n in counts if n > 0), 0.0)
        self._weights = [self._unit / n if n > 0 else 0.0 for n in counts]
        self._reduced += len(counts)
        for samples in counts:
            self._close(samples)

    def _refuse_shards(self, fresh: Sequence[Tensor]) -> None:
        spread = [p for p in fresh if sharded(p)]
        self._spread = self._spread or bool(spread)
        if spread and self.form != "coordinate":
            raise InputError(
                f'{_words(spread[0])} is sharded, and noise="{self.form}" adds over what other ranks hold; use '
                'noise="coordinate", whose buffer is a shard too'
            )
        held = managing(spread)
        under = {id(p) in held for p in fresh if p.requires_grad} | ({self._under_fsdp} - {None})
        if len(under) > 1:
            other = next(p for p in fresh if (id(p) in held) is False)
            raise InputError(
                f"{_words(other)} is not managed by fully_shard and others are, so its gradient is not averaged with "
                "them; call fully_shard on the whole model too"
            )
        self._under_fsdp = under.pop() if under else self._under_fsdp

    def _undeclared(self, leaf: Squares) -> float:
        """Return the samples of a pass outside `chunk`, counted where this parameter is the first to hear of it."""
        if self.declared:
            raise InputError("a backward pass outside optimizer.chunk() follows one inside; declare every pass")
        if self._current(leaf).calls == self.count:
            # Where nothing tells, the step refuses what this counts.
            self._present = (self._rows.samples() if self._rows is not None else None) or 1.0
            self._begin(self._present)
            self._close(self._present)
        return self._present

    def _current(self, leaf: Squares) -> Squares:
        """Return the leaf, with its count at 0 where it last heard of another step."""
        if leaf.step != self._step:
            leaf.step = self._step
            leaf.calls = 0
        return leaf


def _words(parameter: Tensor) -> str:
    lazy = isinstance(parameter, (nn.UninitializedParameter, nn.UninitializedBuffer))
    return "a parameter" if lazy else f"a parameter of shape {tuple(parameter.shape)}"


def _alive(check: RescaleCheck, group: Sequence[Tensor]) -> bool:
    """Whether what was chosen still gets gradients, as far as the group has any that does."""
    if check.chosen:
        return all(p.requires_grad for p in check.chosen)
    return not any(p.requires_grad for p in group)
