"""The one step that every invariant optimizer takes; the forms differ in how they move the weights."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from isobatch.errors import InputError
from isobatch.gradients import ALONE, Ranks, RescaleCheck, Shards, local, process_group_of, sharded, world_size
from isobatch.optimizers.chunks import Chunks
from isobatch.optimizers.parts import Parts
from isobatch.optimizers.ranks import sum_numbers, sum_tensors_
from isobatch.optimizers.second_moment import NoiseForm, noise_weight, reduced_square
from isobatch.optimizers.settings import decay, decays
from isobatch.optimizers.update import Form, StepBatch, update
from isobatch.optimizers.window import Clock, refuse_endless
from isobatch.units import finite, whole

_NOISE_FORMS = ("coordinate", "factored", "row", "tensor")
_KEPT = ("reference_batch", "noise")
_FORMS = ("amsgrad", "centered", "maximize", "nesterov")
_ROUNDING = 1e-5
_CHANGED = (
    "gradients were changed between backward and step by more than one factor (element-wise or per-layer clipping, "
    "noise, gradients of an earlier step or of other ranks), so their squares cannot follow; clip by the norm of a "
    "whole parameter group, or clear with optimizer.zero_grad()"
)


class InvariantOptimizer(Optimizer):
    """Base of the optimizers whose second moment is the one that a reference batch would have; not built directly.

    Args:
        params: as for any torch optimizer.
        defaults: settings of the form, among them lr, eps and weight_decay.
        form: which optimizer it is.
        reference_batch: B_ref, in the samples (or tokens) that `chunk` counts.
        micro_batch: samples of a full backward pass outside `chunk`; those of a shorter one are seen in the input of
            the model. None means that every pass is declared.
        noise: how finely the noise is kept: "coordinate" (exact), "factored", "row", "tensor".
        variance_every: F; the variance is measured anew at every F-th step, more often early on. 1 keeps no variance.
        process_group: ranks over which gradients are averaged; None takes those of the DistributedDataParallel around
            the parameters, "alone" says that each rank trains for itself.
    """

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
        process_group: Ranks,
    ):
        plain = {key: finite(key, defaults[key], 0) for key in ("lr", "eps", "weight_decay")}
        if noise not in _NOISE_FORMS:
            raise InputError(f"noise={noise!r} must be one of {', '.join(_NOISE_FORMS)}")
        self.reference_batch = whole("reference_batch", reference_batch)
        self.chunks = Chunks(None if micro_batch is None else whole("micro_batch", micro_batch), noise)
        self._form = form
        self._noise: NoiseForm = noise
        self._every = whole("variance_every", variance_every)
        self._given: Ranks = process_group
        self._ranks: dist.ProcessGroup | None = None
        self._by_hand: bool | None = None  # whether ranks are averaged after the passes; looked for once, it is slow
        self._shards = Shards(())
        kept = {"reference_batch": self.reference_batch, "noise": noise, "updates": 0, "since_variance": 1}
        self._complete = self._narrow = False
        given = list(params) if isinstance(params, Iterable) and not isinstance(params, Tensor) else []
        if not given:
            raise InputError(
                f"params={type(params).__name__} holds no parameters to optimize; give model.parameters() of a model "
                "that has some, or groups of them"
            )
        super().__init__(given, {**defaults, **plain, **kept})
        self._complete = True
        self.chunks.look()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group and watch its gradients.

        Args:
            param_group: as for any torch optimizer.

        Raises:
            InputError: parameters whose gradients cannot be squared pass by pass, such as complex or sharded ones, a
                number out of range, or an option that this optimizer does not have; the group is not added.
        """
        try:
            super().add_param_group(param_group)
        except (TypeError, ValueError) as error:
            raise InputError(f"{error}; give leaf tensors, each once") from error
        try:
            _check(type(self).__name__, self.param_groups[-1], self.defaults)
            self.chunks.attach(self.param_groups[-1]["params"])
        except InputError:
            self.param_groups.pop()
            raise
        self._narrow = self._narrow or any(p.dtype == torch.float16 for p in self.param_groups[-1]["params"])
        self._watch()
        if self._complete:
            self.chunks.look()

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
        self._watch()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; it must belong to the same reference batch and form of noise.

        Args:
            state_dict: from `state_dict`.

        Raises:
            InputError: another reference batch or form of noise, another optimizer's state, or none; nothing is loaded.
        """
        self._refuse_state(state_dict)
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise InputError(
                f"the state does not fit ({error}); build the optimizer as the one that saved it"
            ) from error
        self._forget()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(f"{type(self).__name__} watches its parameters and cannot be copied; copy its state_dict")

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the collected gradients; every refusal comes before anything changes.

        Args:
            closure: computes the loss again and calls backward; as for any torch optimizer.

        Returns:
            What the closure returned, None without one.

        Raises:
            InputError: more than a reference batch in one chunk, passes of unknown samples, gradients that were not
                watched, or were changed since by more than one factor, ranks of which nothing is known, or a
                reference batch that these steps would never fill.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        parameters = [parameter for _, some in work for parameter in some]
        if parameters:
            self._ranks = self._group(parameters)
            self._shards = Shards(parameters, [] if self._ranks is None else [self._ranks])
        elif self._ranks is None and isinstance(self._given, dist.ProcessGroup):
            self._ranks = process_group_of([], self._given)
        if parameters or self._ranks is not None:  # a rank with nothing still answers the others
            self._apply(work, parameters)
        self._forget()
        self._watch()
        return loss

    def _refuse_state(self, saved: Any) -> None:
        """Refuse a state that another optimizer kept, before anything is loaded."""
        kept = saved if isinstance(saved, Mapping) else {}
        groups, states = kept.get("param_groups"), kept.get("state")
        if not isinstance(groups, list | tuple) or not isinstance(states, Mapping):
            raise InputError(
                'the state of an optimizer has "param_groups" and "state"; give what state_dict() returned'
            )
        for group in groups:
            absent = sorted(self.defaults.keys() - group.keys())
            if absent:
                raise InputError(
                    f"the state lacks {absent[:3]}, so another optimizer kept it; load it there, or go on with the "
                    f"weights alone: a new {type(self).__name__} gathers its moments within 1 / (1 - beta) steps"
                )
            for key in _KEPT:
                ours = self.defaults[key]
                if group[key] != ours:
                    raise InputError(
                        f"the state was kept for {key}={group[key]!r}, this one has {key}={ours!r}; build it alike"
                    )
        for state in states.values():
            absent = sorted({"exp_avg_sq", *Clock._fields} - state.keys()) if state else []
            if absent:
                raise InputError(
                    f"the state of a parameter lacks {absent[:3]}; another optimizer kept it, or it is damaged"
                )

    def _watch(self) -> None:
        """See what was added or thawed since."""
        self.chunks.attach(parameter for group in self.param_groups for parameter in group["params"])
        self.chunks.check([group["params"] for group in self.param_groups])

    def _group(self, parameters: list[Tensor]) -> dist.ProcessGroup | None:
        """Return the ranks that gradients are averaged over; refuse to guess where several run."""
        if self._ranks is not None or self._given == ALONE or world_size() == 1:
            return self._ranks
        found = process_group_of(parameters, self._given, guess=False)
        settled = self.chunks.under_fsdp or Shards(parameters).ranks == world_size()
        if found is None and self._given is None and not settled:
            raise InputError(
                f"{world_size()} ranks run and no DistributedDataParallel holds these parameters, so it is not known "
                "whose gradients are averaged; give process_group=torch.distributed.group.WORLD where all ranks "
                'train one model, process_group="alone" where each trains its own'
            )
        return found

    def _apply(self, work: list[tuple[dict[str, Any], list[Tensor]]], parameters: list[Tensor]) -> None:
        """Update every group, each in cohorts of parameters whose numbers are equal (mostly one)."""
        batch, sums = self._batch(parameters)
        if batch is None:
            return
        fresh = self._measures(batch, parameters)
        factors = self._factors(sums, work) if fresh else []
        squares = self._squares(parameters) if fresh else {}
        for number, (group, some) in enumerate(work):
            cohorts: dict[Clock, list[Tensor]] = {}
            for parameter in some:
                cohorts.setdefault(Clock.of(self.state[parameter]), []).append(parameter)
            here = replace(batch, scale=batch.scale * factors[number] ** 2) if fresh else batch
            for clock, cohort in cohorts.items():
                states: list[Any] = [self._state_of(parameter, group) for parameter in cohort]
                if self._shards:
                    states = [Parts(state, p) if sharded(p) else state for state, p in zip(states, cohort, strict=True)]
                    torch.autograd.graph.increment_version([p for p in cohort if sharded(p)])
                update(self._form, group, cohort, states, clock, here, [squares[p] for p in cohort] if fresh else None)
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

    def _batch(self, parameters: list[Tensor]) -> tuple[StepBatch | None, Tensor]:
        """Return this step's batch and the sums to read factors from, over the ranks; no batch without gradients."""
        samples, chunks, ranks = self.chunks.samples, self.chunks.count, 1
        doubt = self.chunks.doubt
        if not self.chunks.declared and self.chunks.default_samples is None and (chunks > 0 or self._ranks is None):
            doubt = "nothing says what its backward passes hold"
        doubts, empty = float(doubt != ""), float(not parameters)
        device = self.param_groups[0]["params"][0].device
        sums = torch.cat([check.sums(device) for check in self.chunks.checks]) if self.chunks.enabled else None
        if self._ranks is not None:
            ranks = self._ranks.size()
            numbers = torch.tensor([samples, chunks, doubts, empty], dtype=torch.float64, device=device)
            message = sum_numbers(numbers if sums is None else torch.cat([numbers, sums]), self._ranks)
            samples, chunks, sums = float(message[0]), int(message[1]), message[4:] / ranks
            doubts, empty = message[2:4].tolist()
        if empty == ranks:
            return None, torch.zeros(0)
        if empty:
            raise InputError(
                f"{empty:g} of {ranks} ranks have no gradients; let a rank without samples run backward inside "
                "optimizer.chunk(0), or give it zeros to average, so that all take the same step"
            )
        if doubts:
            raise InputError(
                f"the samples of this step are not known: {doubt or 'another rank could not tell'}; call backward "
                "inside optimizer.chunk(samples), or build the optimizer with micro_batch=the rows (or tokens) of one "
                "full pass"
            )
        if chunks == 0 and self.chunks.under_fsdp:
            raise InputError(
                "no backward pass was seen since the last step: under fully_shard gradients must come from backward()"
            )
        if chunks == 0 and not self.chunks.declared:
            raise InputError(
                "no backward pass was seen to bring these gradients (set by hand, or of a step before), so their "
                "samples are not known; compute them inside optimizer.chunk(samples), or clear them with zero_grad()"
            )
        if samples == 0:
            raise InputError("every chunk of this step has 0 samples, so it has no gradient; drop it with discard()")
        return StepBatch(
            samples=samples,
            chunks=chunks,
            reference=self.reference_batch,
            scale=samples / ranks**2 * (self._local_scale() if ranks == 1 else 1.0),
            noise=self._noise,
            keep=self._every > 1,
            narrow=self._narrow,
        ), sums if sums is not None else torch.zeros(0)

    def _factors(self, sums: Tensor, work: list[tuple[dict[str, Any], list[Tensor]]]) -> list[float]:
        """Return what each group's gradients were multiplied by since their passes; refuse what no factor explains."""
        checks, told = self.chunks.checks, self.chunks.factor
        parts = sums.split([len(check) for check in checks])
        seen = all(
            not some or any(p.grad is not None for p in c.chosen) for c, (_, some) in zip(checks, work, strict=True)
        )
        if seen and not self._shards and torch.equal(sums, torch.cat([check.now(sums.device) for check in checks])):
            return self._all([1.0] * len(work), work)  # untouched, as mostly
        table = torch.stack([_read(check, part, self._shards) for check, part in zip(checks, parts, strict=True)])
        factors: list[float | None] = []
        for factor, honest, size in table.tolist():
            if not honest and math.isfinite(size):
                raise InputError(_CHANGED)
            factors.append((1.0 if abs(factor - 1) < _ROUNDING else factor) if size > 0 else None)
        known = {factor for factor in factors if factor is not None}
        if any(f is None and some for f, (_, some) in zip(factors, work, strict=True)) and len(known) > 1:
            raise InputError(
                "parameter groups were rescaled by different factors, and one has no gradient to read its own from; "
                "clip all groups together"
            )
        usual = known.pop() if len(known) == 1 else told
        return self._all([usual if factor is None else factor for factor in factors], work)

    def _all(self, factors: list[float], work: list[tuple[dict[str, Any], list[Tensor]]]) -> list[float]:
        """Return the factors, where they are those of every parameter; ranks that average by hand cannot be asked."""
        found = [(p, factor) for factor, (_, some) in zip(factors, work, strict=True) for p in some]
        if self._shards:  # of a sharded gradient each rank has the norm of its part only
            return factors
        parameters = [p for p, _ in found]
        if self._by_hand is None and self._ranks is not None:
            self._by_hand = process_group_of(parameters, guess=False) is None
        if not self._by_hand:
            expected = torch.tensor([factor for _, factor in found], dtype=torch.float64, device=parameters[0].device)
            if not self.chunks.norms.explained(parameters, expected):
                raise InputError(_CHANGED)
        return factors

    def _local_scale(self) -> float:
        """Return what makes sum c^2/n of this process's squares."""
        return 1 / (self.chunks.unit or 1.0)

    def _measures(self, batch: StepBatch, parameters: list[Tensor]) -> bool:
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
            none = torch.zeros_like(local(parameter))
            found[parameter] = reduced_square(none, self._noise) if squares is None else squares
        if self._ranks is not None and self._ranks.size() > 1:
            tensors = list(found.values())
            torch._foreach_mul_(tensors, self._local_scale())
            sum_tensors_(tensors, self._ranks)
        return found


def _check(kind: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a parameter group whose own options are out of range, or mean nothing here and would be passed over."""
    for key in ("lr", "eps", "weight_decay"):
        finite(f"{key} of a parameter group", group[key], 0)
    for key in ("alpha", "momentum"):
        if key in group:
            decay(f"{key} of a parameter group", group[key])
    if "betas" in group:
        decays("betas of a parameter group", group["betas"])
    absent = sorted(key for key in _FORMS if group.get(key))
    if absent:
        way = "; negate the loss" if absent == ["maximize"] else "; leave it out"
        raise InputError(f"{absent[0]}={group[absent[0]]!r} of a parameter group: {kind} has no such form{way}")
    for key in _KEPT:
        if group[key] != defaults[key]:
            raise InputError(
                f"{key}={group[key]!r} of a parameter group, {defaults[key]!r} of the optimizer: there is one for all; "
                "give it to the optimizer, or build two"
            )


def _read(check: RescaleCheck, summed: Tensor, shards: Shards) -> Tensor:
    """Return the factor, whether it explains everything, and the size of what it was read from."""
    factor, honest = check.factor(summed, shards)
    return torch.stack([factor, honest.double(), shards.total(summed.abs().sum())])
