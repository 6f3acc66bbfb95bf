"""Looking ahead: an iterator that shows the batches to come, and a queue of what has been made for them."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from isobatch.augment.concurrent_adversarial import Loss, directions, perturbed
from isobatch.augment.concurrently import Pending
from isobatch.augment.views import inputs_of
from isobatch.errors import InputError
from isobatch.units import finite, whole


class LookAhead:
    """Iterate over batches, and see up to `ahead` of those that come after the present one.

    Args:
        batches: any iterable.
        ahead: batches to hold.

    Raises:
        InputError: a negative number.

    Example:
        >>> look = LookAhead("abc", ahead=1)
        >>> [(batch, look.peek(1)) for batch in look]
        [('a', 'b'), ('b', 'c'), ('c', None)]
    """

    def __init__(self, batches: Iterable[Any], ahead: int):
        self.batches, self.ahead = batches, whole("ahead", ahead, 0)
        self._held: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        source = iter(self.batches)
        self._held = deque()
        for batch in source:
            self._held.append(batch)
            if len(self._held) > self.ahead:
                yield self._held[0]
                self._held.popleft()
        while self._held:
            yield self._held[0]
            self._held.popleft()

    def peek(self, place: int) -> Any:
        """Return the batch that comes `place` after the present one.

        Args:
            place: 0 for the present one, at most `ahead`.

        Returns:
            The batch, None beyond the end.

        Raises:
            InputError: further than the loader looks.
        """
        if whole("place", place, 0) > self.ahead:
            raise InputError(f"place={place} is beyond the look-ahead of {self.ahead}; give a larger one")
        return self._held[place] if place < len(self._held) else None


class Prepared:
    """What was made for the next tau batches, in their order; a queue that no longer fits is made anew.

    At each step the present weights make what is missing: tau+1 batches at first, then the one that comes tau steps
    later. When the batches to come have changed, so that the first one held is not the next one needed, all of it is
    dropped, and made again by the present weights.

    Args:
        make: key -> a function that waits for the tensor and returns it.
        tau: steps between making and use.

    Raises:
        InputError: a negative tau.
    """

    def __init__(self, make: Callable[[Any], Pending], tau: int):
        self.make, self.tau = make, whole("tau", tau, 0)
        self._held: deque[tuple[Hashable, Pending]] = deque()

    def take(self, keys: Sequence[Hashable]) -> Tensor:
        """Return what belongs to the present batch.

        Args:
            keys: of the present batch and of the next tau ones, fewer near the end.

        Returns:
            The tensor.
        """
        if [key for key, _ in self._held] != list(keys[: len(self._held)]):
            self._held.clear()
        for key in keys[len(self._held) : self.tau + 1]:
            self._held.append((key, self.make(key)))
        return self._held.popleft()[1]()

    def state_dict(self) -> dict[str, Any]:
        """Return keys and tensors of the batches to come, waiting for those that are still being made."""
        held = [(key, wait()) for key, wait in self._held]
        self._held = deque((key, lambda made=made: made) for key, made in held)
        return {
            "tau": self.tau,
            "keys": [list(key) if isinstance(key, tuple) else key for key, _ in held],
            "made": {str(place): made for place, (_, made) in enumerate(held)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: from `state_dict`.

        Raises:
            InputError: a state of another tau.
        """
        if state["tau"] != self.tau:
            raise InputError(f"tau={self.tau} cannot take up a state of tau={state['tau']}")
        keys = [tuple(key) if isinstance(key, list) else key for key in state["keys"]]
        made = [state["made"][str(place)] for place in range(len(keys))]
        self._held = deque((key, lambda one=one: one) for key, one in zip(keys, made, strict=True))

    def clear(self) -> None:
        """Forget everything held."""
        self._held.clear()


class StaleAdversary:
    """Adversarial batches for a loop of your own, made by weights that are tau steps old.

    Args:
        loss: (model, batch) -> mean loss.
        model: whose present weights make the directions; no copies of weights are kept.
        tau: steps between making and use; 0 makes them by the weights of the step itself.
        form: "sign" or "l2".
        bounds: smallest and largest input, None for no bounds.

    Raises:
        InputError: a negative tau.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> adversary = StaleAdversary(lambda net, x: net(x).square().mean(), model, tau=1)
        >>> batches = LookAhead([torch.rand(4, 2) for _ in range(3)], ahead=1)
        >>> [float((moved - batch).abs().max()) <= 0.11 for batch, moved in adversary.over(batches, eps=0.1)]
        [True, True, True]

    References:
        arXiv 2106.00221, Algorithm 1.
    """

    def __init__(
        self,
        loss: Loss,
        model: nn.Module,
        *,
        tau: int = 1,
        form: Literal["sign", "l2"] = "sign",
        bounds: tuple[float, float] | None = None,
    ):
        self.loss, self.model, self.tau, self.form, self.bounds = loss, model, whole("tau", tau, 0), form, bounds

    def over(self, batches: LookAhead, eps: float | Callable[[int], float]) -> Iterator[tuple[Any, Any]]:
        """Yield each batch beside its adversarial twin; update the model between two of them.

        Args:
            batches: a loader that looks at least tau ahead.
            eps: size of the change, or a function of the samples seen before the batch.

        Yields:
            (batch, adversarial batch).

        Raises:
            InputError: tau larger than the loader's look-ahead, or a negative eps.
        """
        if self.tau > batches.ahead:
            raise InputError(
                f"tau={self.tau} is more than the loader's look-ahead of {batches.ahead}; give LookAhead(..., "
                f"ahead={self.tau}), or a smaller tau"
            )
        size_at = _constant(finite("eps", eps, 0)) if isinstance(eps, (int, float)) else eps
        number = seen = 0

        def make(key: int) -> Pending:
            made = directions(self.loss, self.model, batches.peek(key - number), self.form)
            return lambda: made

        prepared = Prepared(make, self.tau)
        for number, batch in enumerate(batches):
            keys = [number + place for place in range(self.tau + 1) if batches.peek(place) is not None]
            moves = prepared.take(keys)
            yield batch, perturbed(batch, moves, size_at(seen), self.bounds)
            seen += len(inputs_of(batch))


def _constant(value: float) -> Callable[[int], float]:
    return lambda _: value
