"""CartPole by A2C: a pole on a cart, at most 500 frames, one point a frame. The equations are gymnasium's CartPole-v1.

A recipe's batch is in frames: games x segment of five frames, as batch = environments x steps in arXiv 1812.06162.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.plan import Recipe
from isobatch.tasks.metric import LOSS, Metric
from isobatch.tasks.task import Run, device_of, seeded
from isobatch.units import whole
from isobatch_studies.tasks.games import Array, Rollouts, Transition, a2c_loss, choose, uniform

LIMIT = 500
DECLARED = {"loss": LOSS, "return": Metric("difference", better="higher", unit="frames", scale=float(LIMIT))}
_GRAVITY, _CART, _POLE, _HALF, _FORCE, _TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_FAR, _TILT = 2.4, 12 * 2 * np.pi / 360
_JUDGED = 32


def advance(state: Array, actions: Array) -> Array:
    """Return the state after one Euler step of 20 ms.

    Args:
        state: position, speed, angle, angular speed; float64 of shape (games, 4).
        actions: 0 pushes left, 1 right.

    Returns:
        Of the same shape.

    References:
        Barto, Sutton and Anderson 1983, with the corrected friction-free equations of Florian 2005.
    """
    x, speed, angle, turn = state.T
    force = np.where(actions == 1, _FORCE, -_FORCE)
    cos, sin, total = np.cos(angle), np.sin(angle), _CART + _POLE
    pushed = (force + _POLE * _HALF * turn**2 * sin) / total
    bend = (_GRAVITY * sin - cos * pushed) / (_HALF * (4.0 / 3.0 - _POLE * cos**2 / total))
    pull = pushed - _POLE * _HALF * bend * cos / total
    return np.stack([x + _TAU * speed, speed + _TAU * pull, angle + _TAU * turn, turn + _TAU * bend], axis=1)


def fallen(state: Array) -> Array:
    """Return whether the pole has tilted by more than 12 degrees, or the cart has left the track.

    Args:
        state: as in `advance`.

    Returns:
        One boolean a game.
    """
    return (np.abs(state[:, 0]) > _FAR) | (np.abs(state[:, 2]) > _TILT)


@final
class CartPoles:
    """A pool of carts. Game g starts its k-th time from numbers that depend on seed, g and k alone.

    Args:
        pool: games.
        seed: of their starts.
    """

    def __init__(self, pool: int, seed: int):
        self.pool, self.seed = pool, seed
        self.starts = np.zeros(pool, dtype=np.int64)
        self.ages = np.zeros(pool, dtype=np.int64)
        self.states = np.zeros((pool, 4))
        self._start(np.arange(pool))

    def observe(self, games: Array) -> Tensor:
        """Return the states of some games, float32 of shape (games, 4)."""
        return torch.as_tensor(self.states[games], dtype=torch.float32)

    def act(self, games: Array, actions: Array) -> Transition:
        """Take one action in each of some games, all different."""
        after = advance(self.states[games], actions)
        self.states[games] = after
        self.ages[games] += 1
        ended = fallen(after)
        cut = ~ended & (self.ages[games] >= LIMIT)
        self._start(games[ended | cut])
        return Transition(np.ones(len(games)), ended, cut, torch.as_tensor(after, dtype=torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors."""
        return {name: torch.as_tensor(getattr(self, name).copy()) for name in ("starts", "ages", "states")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in ("starts", "ages", "states"):
            setattr(self, name, state[name].numpy().copy())

    def _start(self, games: Array) -> None:
        if len(games):
            place = games + self.pool * self.starts[games]
            numbers = [uniform(self.seed, place, coordinate) for coordinate in range(4)]
            self.states[games] = 0.1 * np.stack(numbers, axis=1) - 0.05
            self.starts[games] += 1
            self.ages[games] = 0


class ActorCritic(nn.Module):
    """MLP with one hidden layer, logits of two actions and a value.

    Args:
        width: hidden units.
    """

    def __init__(self, width: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, width), nn.Linear(width, 3)
        nn.init.normal_(self.out.weight, std=0.01)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of shape (batch, 2) and values of shape (batch,) for states of shape (batch, 4)."""
        found = self.out(torch.tanh(self.hidden(seen)))
        return found[:, :2], found[:, 2]


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of A2C on CartPole.

    Args:
        settings: the recipe; options.width (64), options.pool (64 games), options.steps (5 frames a segment), data_size
            (50,000 frames in a nominal epoch).
        seed: of the initial weights, the games and the actions.

    Returns:
        The run; the metric "return" is the mean over 32 games from fixed starts, "loss" is 500 over it.
    """
    width, pool, steps = (
        whole(f"options.{n}", settings.options.get(n, d)) for n, d in (("width", 64), ("pool", 64), ("steps", 5))
    )
    with seeded(seed):
        model = ActorCritic(width)
    samples = Rollouts(CartPoles(pool, seed), model, frames=settings.data_size or 50_000, steps=steps, seed=seed)
    return Run(
        model,
        samples,
        a2c_loss,
        judge,
        {"data": f"CartPole-v1, {pool} games, segments of {steps} frames"},
        declared=DECLARED,
    )


def judge(net: nn.Module) -> dict[str, float]:
    """Return the mean return over 32 games from fixed starts, actions drawn by fixed numbers.

    Args:
        net: observations -> (logits, values).

    Returns:
        "return", and "loss" = 500/return.
    """
    games, everyone = CartPoles(_JUDGED, 2**31), np.arange(_JUDGED)
    total, alive = np.zeros(_JUDGED), np.ones(_JUDGED, dtype=bool)
    for frame in range(LIMIT):
        left = everyone[alive]
        logits, _ = net(games.observe(left).to(device_of(net)))
        found = games.act(left, choose(logits, uniform(2**31, left, frame)))
        total[left] += found.reward
        alive[left] = ~(found.ended | found.cut)
        if not alive.any():
            break
    score = float(total.mean())
    return {"loss": LIMIT / score, "return": score}
