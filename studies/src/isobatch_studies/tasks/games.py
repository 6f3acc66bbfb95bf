"""Games as a stream of samples: frame by frame from a pool of games, under the policy that is being trained.

A sample is a frame, a segment is a few frames of one game in a row, and segment k belongs to game k mod pool. So a
batch is only where the stream is cut: with the weights held still, any sequence of batches sees the same frames.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.tasks.stream import Stream

_MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)

Array = np.ndarray


class Transition(NamedTuple):
    """What a step of some games gave.

    Args:
        reward: of each.
        ended: whether it is over: no reward can follow.
        cut: whether it was stopped by its time limit: rewards would have followed.
        last: what was seen after the step, before a game that is over or cut is started anew.
    """

    reward: Array
    ended: Array
    cut: Array
    last: Tensor


class Games(Protocol):
    """A pool of games of one kind; each one starts anew by itself."""

    pool: int

    def observe(self, games: Array) -> Tensor:
        """Return what is seen of some games, float32 of shape (games, ...)."""
        ...

    def act(self, games: Array, actions: Array) -> Transition:
        """Take one action in each of some games, all different."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...


def uniform(seed: int, segments: Array, turn: int) -> Array:
    """Return one number in [0, 1) for each segment and turn: a hash, so that no order of drawing matters.

    Args:
        seed: of the stream.
        segments: their numbers.
        turn: frame within the segment.

    Returns:
        float64.

    Example:
        >>> both = uniform(0, np.array([3, 4]), 1)
        >>> bool(both[1] == uniform(0, np.array([4]), 1)[0]), bool((0 <= both).all() and (both < 1).all())
        (True, True)
    """
    with np.errstate(over="ignore"):
        x = np.asarray(segments, dtype=np.uint64)
        for word in (np.uint64(seed), np.uint64(turn), np.uint64(0)):
            x = (x ^ word) + _MIX[0]
            x = (x ^ (x >> np.uint64(30))) * _MIX[1]
            x = (x ^ (x >> np.uint64(27))) * _MIX[2]
            x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)) * 2.0**-53


class Rollouts(Stream):
    """Frames of games as samples: (observation, action, return) under the present policy.

    The return of a frame is that of its segment, completed by the critic: R_t = r_t + gamma R_(t+1), R_end = V(s_end);
    nothing follows a game that is over, V of its last state follows one that was cut by its time limit.
    Drawing moves the games on, so a pass that is repeated (memory ran out) sees the frames after. One process only.

    Args:
        games: the pool.
        policy: observations -> (logits of actions, values); the model that is trained.
        frames: nominal length, one "epoch".
        steps: frames of a segment.
        discount: gamma.
        seed: of actions.
    """

    def __init__(
        self,
        games: Games,
        policy: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        frames: int,
        steps: int = 5,
        discount: float = 0.99,
        seed: int = 0,
    ):
        self.games, self.policy, self.frames = games, policy, frames
        self.steps, self.discount, self.seed = steps, discount, seed
        self.segment = 0
        self.scores: list[float] = []
        self._score = np.zeros(games.pool)

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Play as many frames as there are indices; which ones they are says nothing here.

        Args:
            indices: any.

        Returns:
            Observations, actions and returns, segment after segment.

        Raises:
            InputError: in a world of several processes.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise InputError("a stream of games is one process; accumulate micro-batches instead of adding ranks")
        whole, rest = divmod(len(indices), self.steps)
        parts = [self._play(n, self.steps) for n in _waves(whole, self.games.pool)]
        parts += [self._play(1, rest)] if rest else []
        seen, actions, returns = (torch.cat(field) for field in zip(*parts, strict=True))
        return seen, actions, returns

    @torch.no_grad()
    def _play(self, count: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        segments = np.arange(self.segment, self.segment + count)
        games = segments % self.games.pool
        self.segment += count
        seen, taken, rewards, stops, follows = [], [], [], [], []
        for turn in range(steps):
            now = self.games.observe(games)
            actions = choose(self.policy(now)[0], uniform(self.seed, segments, turn))
            found = self.games.act(games, actions)
            ended, limit = (np.asarray(flags, dtype=bool) for flags in (found.ended, found.cut))
            stopped, cut = ended | limit, limit & ~ended  # nothing follows a game that ends on the step of its limit
            after = np.zeros(count)
            if cut.any():
                after[cut] = self.policy(found.last[cut])[1].double().numpy()
            seen.append(now)
            taken.append(actions)
            rewards.append(found.reward)
            stops.append(stopped)
            follows.append(after)
            self._count(games, found.reward, stopped)
        value = self.policy(self.games.observe(games))[1].double().numpy()
        returns = discounted(np.array(rewards), np.array(stops), np.array(follows), value, self.discount)
        order = torch.stack(seen, dim=1).flatten(0, 1)
        return order, torch.as_tensor(np.array(taken).T.ravel()), torch.as_tensor(returns.T.ravel().copy()).float()

    def _count(self, games: Array, reward: Array, stopped: Array) -> None:
        """Add up the rewards of whole games, the last hundred of them."""
        self._score[games] += reward
        self.scores = [*self.scores, *self._score[games[stopped]].tolist()][-100:]
        self._score[games[stopped]] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the games."""
        own = {"segment": self.segment, "scores": list(self.scores), "running": torch.as_tensor(self._score.copy())}
        return {**own, "games": self.games.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Args:
            state: that.

        Raises:
            InputError: another number of games.
        """
        if len(state["running"]) != self.games.pool:
            raise InputError(f"the state holds {len(state['running'])} games, this pool {self.games.pool}")
        self.segment, self.scores = int(state["segment"]), [float(score) for score in state["scores"]]
        self._score = state["running"].double().numpy().copy()
        self.games.load_state_dict(state["games"])


def choose(logits: Tensor, numbers: Array) -> Array:
    """Return the action of each row by inverting its distribution at a number in [0, 1).

    Args:
        logits: of shape (rows, actions).
        numbers: one a row.

    Returns:
        Whole numbers.

    Example:
        >>> choose(torch.zeros(2, 2), np.array([0.3, 0.7])).tolist()
        [0, 1]
    """
    below = torch.softmax(logits.double(), dim=1).cumsum(1).cpu().numpy()
    return np.minimum((below <= numbers[:, None]).sum(1), logits.shape[1] - 1)


def discounted(rewards: Array, stops: Array, follows: Array, value: Array, discount: float) -> Array:
    """Return R_t = r_t + gamma * (what follows), where a stopped game is followed by `follows` instead of R_(t+1).

    Args:
        rewards: of shape (steps, games).
        stops: whether the game stopped at the step.
        follows: 0 after a game that is over, V(s) after one that was cut.
        value: V of what is seen after the last step, of shape (games,).
        discount: gamma.

    Returns:
        Returns of shape (steps, games).

    Example:
        >>> stops, follows = np.array([[False], [True]]), np.zeros((2, 1))
        >>> discounted(np.ones((2, 1)), stops, follows, np.array([9.0]), 0.5).ravel().tolist()
        [1.5, 1.0]
    """
    found, after = np.zeros_like(rewards, dtype=np.float64), value
    for t in range(len(rewards) - 1, -1, -1):
        found[t] = rewards[t] + discount * np.where(stops[t], follows[t], after)
        after = found[t]
    return found


def a2c_loss(
    net: nn.Module, batch: tuple[Tensor, Tensor, Tensor], value_weight: float = 0.5, entropy_weight: float = 0.01
) -> Tensor:
    """Return the advantage actor-critic loss: mean over frames of -log p(a) A + c_v (R-V)^2 - c_e entropy, A = R - V.

    Args:
        net: observations -> (logits, values).
        batch: observations, actions, returns.
        value_weight: c_v.
        entropy_weight: c_e.

    Returns:
        A scalar.

    References:
        arXiv 1602.01783.
    """
    seen, actions, returns = batch
    logits, values = net(seen)
    logp = torch.log_softmax(logits, dim=1)
    chosen = logp.gather(1, actions[:, None]).squeeze(1)
    entropy = -(logp.exp() * logp).sum(1)
    gain = returns - values
    return (-chosen * gain.detach() + value_weight * gain.square() - entropy_weight * entropy).mean()


def _waves(count: int, most: int) -> list[int]:
    """Return how many segments are played at once: each game at most once in a wave."""
    return [min(most, count - start) for start in range(0, count, most)]
