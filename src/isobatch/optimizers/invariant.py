"""The one step that every invariant optimizer takes; the forms differ in how they move the weights."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from isobatch.errors import InputError
from isobatch.optimizers.chunks import Chunks
from isobatch.optimizers.ranks import sum_numbers, sum_tensors_
from isobatch.optimizers.second_moment import NoiseForm, noise_weight, reduced_square
from isobatch.optimizers.update import Batch, Form, gradients_of, update
from isobatch.optimizers.window import Clock, refuse_endless
from isobatch.units import finite, whole

_NOISE_FORMS = ("coordinate", "factored", "row", "tensor")
_KEPT = ("reference_batch", "noise")


class InvariantOptimizer(Optimizer):
    """Base of the optimizers whose second moment is the one that a reference batch would have; not built directly.

    Args:
        params: as for any torch optimizer.
        defaults: settings of the form, among them lr, eps and weight_decay.
        form: which optimizer it is.
        reference_batch: B_ref, in the samples (or tokens) that `chunk` counts.
        micro_batch: samples of a backward pass outside `chunk`; None means that every pass is declared.
        noise: how finely the noise is kept: "coordinate" (exact), "factored", "row", "tensor".
        variance_every: F; the variance is measured anew at every F-th step, more often early on. 1 keeps no variance.
        process_group: ranks over which gradients are averaged (DDP); None for one process.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        form: Form,
        *,
        reference_batch: int,
        micro_batch: int | None,
        noise: NoiseForm,
        variance_every: int,
        process_group: dist.ProcessGroup | None,
    ):
        for key in ("lr", "eps", "weight_decay"):
            finite(key, defaults[key], 0)
        if noise not in _NOISE_FORMS:
            raise InputError(f"noise={noise!r} must be one of {', '.join(_NOISE_FORMS)}")
        self.reference_batch = whole("reference_batch", reference_batch)
        self.chunks = Chunks(None if micro_batch is None else whole("micro_batch", micro_batch), noise)
        self._form = form
        self._noise: NoiseForm = noise
        self._every = whole("variance_every", variance_every)
        self._ranks = process_group
        kept = {"reference_batch": reference_batch, "noise": noise, "updates": 0, "since_variance": 1}
        super().__init__(params, {**defaults, **kept})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group and watch its gradients.

        Args:
            param_group: as for any torch optimizer.

        Raises:
            InputError: complex parameters.
        """
        super().add_param_group(param_group)
        parameters = self.param_groups[-1]["params"]
        if any(parameter.is_complex() for parameter in parameters):
            raise InputError("complex parameters have no second moment here; give torch.view_as_real of them")
        self.chunks.attach(parameters)

    def chunk(self, samples: float) -> AbstractContextManager[None]:
        """Declare the one backward pass inside `with` as a chunk of so many samples; see `Chunks.chunk`.

        Args:
            samples: samples (or tokens) of the pass.

        Returns:
            A context manager.
        """
        return self.chunks.chunk(samples)

    @property
    def needs_chunks(self) -> bool:
        """Whether the coming step wants at least two chunks; False between two measurements of the variance."""
        group = self.param_groups[0]
        return group["since_variance"] >= min(self._every, 1 + group["updates"] // self._every)

    def discard(self) -> None:
        """Drop the step that is being collected, gradients and squares; nothing else changes."""
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the squares that were collected with them.

        Args:
            set_to_none: as for any torch optimizer.
        """
        super().zero_grad(set_to_none)
        self._forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; it must belong to the same reference batch and form of noise.

        Args:
            state_dict: from `state_dict`.

        Raises:
            InputError: another reference batch or form of noise; nothing is loaded.
        """
        for saved in state_dict["param_groups"]:
            for key in _KEPT:
                ours = self.param_groups[0][key]
                if key in saved and saved[key] != ours:
                    raise InputError(
                        f"the state was kept for {key}={saved[key]!r}, this one has {key}={ours!r}; build it alike"
                    )
        super().load_state_dict(state_dict)
        self._forget()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(f"{type(self).__name__} watches its parameters and cannot be copied; copy its state_dict")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the collected gradients; every refusal comes before anything changes.

        Args:
            closure: computes the loss again and calls backward; as for any torch optimizer.

        Returns:
            What the closure returned, None without one.

        Raises:
            InputError: more than a reference batch in one chunk, gradients that were not watched, or a reference
                batch that these steps would never fill.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        parameters = [parameter for _, some in work for parameter in some]
        if parameters and self._unscaled(parameters):
            self._apply(work, parameters)
        self._forget()
        self.chunks.attach(parameter for group in self.param_groups for parameter in group["params"])
        return loss

    def _apply(self, work: list[tuple[dict[str, Any], list[Tensor]]], parameters: list[Tensor]) -> None:
        """Update every group, each in cohorts of parameters whose numbers are equal (mostly one)."""
        batch = self._batch(parameters)
        fresh = self._measures(batch, parameters)
        squares = self._squares(parameters) if fresh else {}
        for group, some in work:
            cohorts: dict[Clock, list[Tensor]] = {}
            for parameter in some:
                cohorts.setdefault(Clock.of(self.state[parameter]), []).append(parameter)
            for clock, cohort in cohorts.items():
                states = [self._state_of(parameter, group) for parameter in cohort]
                update(self._form, group, cohort, states, clock, batch, [squares[p] for p in cohort] if fresh else None)
        if self._every == 1:
            return
        if fresh:
            self.chunks.release()
        known = all("variance" in self.state[parameter] for parameter in parameters)
        for group in self.param_groups:
            group["updates"] += 1
            group["since_variance"] = 1 if fresh else group["since_variance"] + 1
            if not known:
                group["since_variance"] = self._every

    def _forget(self) -> None:
        """Make ready for the next step: nothing collected, squares wanted or not."""
        self.chunks.discard()
        self.chunks.enabled = self.needs_chunks

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return a parameter's state with every buffer that the form needs now."""
        state = self.state[parameter]
        for name in self._form.buffers(group):
            if name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _unscaled(self, parameters: list[Tensor]) -> bool:
        """Divide the gradients by a GradScaler's scale, which it hands over as attributes; False means overflow."""
        found = getattr(self, "found_inf", None)
        scale = getattr(self, "grad_scale", None)
        if found is None:
            return True
        if float(found) > 0:
            return False
        if scale is not None:
            factor = 1 / float(scale)
            torch._foreach_mul_(gradients_of(parameters), factor)
            self.chunks.scaled(factor)
        elif not self.chunks.rescaled:
            raise InputError(
                "scaler.unscale_ changed the gradients but not their squares; call "
                "optimizer.chunks.scaled(1 / scaler.get_scale()) beside it"
            )
        return True

    def _batch(self, parameters: list[Tensor]) -> Batch:
        """Return this step's batch, summed over the ranks. Gradients set by hand count as one micro-batch a rank."""
        default = self.chunks.default_samples
        if default is None and not self.chunks.declared:
            raise InputError(
                "the samples of this step are not known; call backward inside optimizer.chunk(samples), "
                "or build the optimizer with micro_batch=the samples of one backward pass"
            )
        samples, chunks, ranks = self.chunks.samples, self.chunks.count, 1
        if self._ranks is not None:
            totals = sum_numbers([samples, chunks], self._ranks, parameters[0].device)
            samples, chunks, ranks = totals[0], int(totals[1]), self._ranks.size()
        if chunks == 0 and default is not None and not self.chunks.declared:
            samples, chunks = float(default * ranks), ranks
        if samples == 0:
            raise InputError("every chunk of this step has 0 samples, so it has no gradient; drop it with discard()")
        return Batch(
            samples=samples,
            chunks=chunks,
            reference=self.reference_batch,
            scale=samples / ranks**2 * (self._local_scale() if ranks == 1 else 1.0),
            noise=self._noise,
            keep=self._every > 1,
        )

    def _local_scale(self) -> float:
        """Return what makes sum c^2/n of this process's squares."""
        return self.chunks.factor**2 / (self.chunks.unit or 1.0)

    def _measures(self, batch: Batch, parameters: list[Tensor]) -> bool:
        """Return whether this step measures the noise from its own chunks; refuse what cannot be honoured."""
        if batch.kappa < 1:
            if any(not self.state[parameter] for parameter in parameters):
                refuse_endless(batch.reference, batch.samples)
            return False
        known = any("variance" in self.state[parameter] for parameter in parameters)
        if batch.kappa == 1 or not self.chunks.enabled or (known and batch.chunks < 2):
            return False
        noise_weight(batch.kappa, batch.chunks)
        if self._ranks is None and any(self.chunks.squares(parameter) is None for parameter in parameters):
            raise InputError(
                "a parameter's gradient was not watched; build the optimizer after moving the model "
                "to its device, and let backward() make the gradients"
            )
        return True

    def _squares(self, parameters: list[Tensor]) -> dict[Tensor, Tensor]:
        """Return the summed squares of each parameter; over the ranks, a parameter unused here adds 0."""
        found: dict[Tensor, Tensor] = {}
        for parameter in parameters:
            squares = self.chunks.squares(parameter)
            found[parameter] = reduced_square(torch.zeros_like(parameter), self._noise) if squares is None else squares
        if self._ranks is not None and self._ranks.size() > 1:
            tensors = list(found.values())
            torch._foreach_mul_(tensors, self._local_scale())
            sum_tensors_(tensors, self._ranks)
        return found
