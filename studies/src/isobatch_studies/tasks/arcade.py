"""Atari by A2C: a pool of one game of the Arcade Learning Environment, through gymnasium and ale-py (extra "atari").

Sticky actions, one decision every four frames, grey 42 x 40 pixels, the last four of them stacked, rewards clipped to
their sign. A checkpoint holds seeds and actions of every game in play; a resumed run plays them again, frame by frame.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.tasks.metric import Metric
from isobatch.tasks.task import Run, device_of, seeded
from isobatch.units import whole
from isobatch_studies.tasks.games import Array, Rollouts, Transition, a2c_loss, choose, uniform

HIGH, WIDE, STACK, SKIP = 42, 40, 4, 4
_JUDGED, _FRAMES = 4, 150
DECLARED = {
    "loss": Metric("difference", better="lower", unit="share of the frames", scale=1.0, headline=True),
    "return": Metric("difference", better="higher", unit="points", scale=float(_FRAMES)),
}


def emulator(game: str) -> Any:
    """Return one game, as gymnasium's ALE/Game-v5 with four frames a decision.

    Args:
        game: such as "Pong".

    Returns:
        A gymnasium environment.

    Raises:
        InputError: the extra is not installed, or no such game.
    """
    try:
        import ale_py
        import gymnasium
    except ImportError as error:
        raise InputError('Atari needs gymnasium and ale-py; pip install "isobatch-studies[atari]"') from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    try:
        return gymnasium.make(f"ALE/{game}-v5", obs_type="grayscale", frameskip=SKIP)
    except gymnasium.error.Error as error:
        raise InputError(f'options.game={game!r} is not among the games of ale-py, such as "Pong"') from error


def shrink(screen: Array) -> Array:
    """Return a screen of 210 x 160 grey pixels as means of 5 x 4 of them.

    Args:
        screen: uint8 of shape (210, 160).

    Returns:
        uint8 of shape (42, 40).

    Example:
        >>> shrink(np.full((210, 160), 7, dtype=np.uint8)).shape
        (42, 40)
    """
    return screen.reshape(HIGH, 5, WIDE, 4).mean((1, 3)).astype(np.uint8)


@final
class Arcade:
    """A pool of one game; game g starts its k-th time from a seed that depends on seed, g and k alone.

    Args:
        game: such as "Pong".
        pool: games.
        seed: of their starts.
    """

    def __init__(self, game: str, pool: int, seed: int):
        self.game, self.pool, self.seed = game, pool, seed
        self.envs = [emulator(game) for _ in range(pool)]
        self.actions = int(self.envs[0].action_space.n)
        self.starts = np.zeros(pool, dtype=np.int64)
        self.taken: list[list[int]] = [[] for _ in range(pool)]
        self.screens = np.zeros((pool, STACK, HIGH, WIDE), dtype=np.uint8)
        for g in range(pool):
            self._start(g)

    def observe(self, games: Array) -> Tensor:
        """Return the last four screens of some games, float32 of shape (games, 4, 42, 40) in [0, 1]."""
        return torch.as_tensor(self.screens[games]).float() / 255

    def act(self, games: Array, actions: Array) -> Transition:
        """Take one action in each of some games, all different."""
        reward, ended, cut = np.zeros(len(games)), np.zeros(len(games), bool), np.zeros(len(games), bool)
        for i, (g, action) in enumerate(zip(games, actions, strict=True)):
            self.taken[g].append(int(action))
            reward[i], ended[i], cut[i] = self._step(int(g), int(action))
        last = self.observe(games)
        for g in games[ended | cut]:
            self._start(int(g))
        return Transition(reward, ended, cut, last)

    def state_dict(self) -> dict[str, Any]:
        """Return the starts, and what was done in every game since."""
        return {
            "starts": torch.as_tensor(self.starts.copy()),
            "lengths": torch.tensor([len(taken) for taken in self.taken]),
            "taken": torch.tensor([action for taken in self.taken for action in taken], dtype=torch.uint8),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, by playing it again."""
        parts = state["taken"].split(state["lengths"].tolist())
        for g, (start, taken) in enumerate(zip(state["starts"].tolist(), parts, strict=True)):
            self.starts[g] = start - 1
            self._start(g)
            self.taken[g] = taken.tolist()
            for action in self.taken[g]:
                self._step(g, action)

    def _start(self, g: int) -> None:
        number = uniform(self.seed, np.array([g + self.pool * self.starts[g]]), 0)[0]
        screen, _ = self.envs[g].reset(seed=int(number * 2**31))
        self.screens[g] = shrink(screen)
        self.starts[g] += 1
        self.taken[g] = []

    def _step(self, g: int, action: int) -> tuple[float, bool, bool]:
        screen, reward, ended, cut, _ = self.envs[g].step(action)
        self.screens[g, :-1] = self.screens[g, 1:]
        self.screens[g, -1] = shrink(screen)
        return float(np.sign(reward)), bool(ended), bool(cut) and not ended


class ConvActorCritic(nn.Module):
    """Two convolutions and a hidden layer, logits of the actions and a value.

    Args:
        actions: of the game.
        width: channels of the first convolution; twice as many follow, and 16 times as many hidden units.
    """

    def __init__(self, actions: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(STACK, width, 6, stride=4),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 3, 16 * width),
            nn.ReLU(),
        )
        self.out = nn.Linear(16 * width, actions + 1)
        nn.init.normal_(self.out.weight, std=0.01)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of shape (batch, actions) and values of shape (batch,) for screens (batch, 4, 42, 40)."""
        found = self.out(self.body(seen))
        return found[:, :-1], found[:, -1]


def make(settings: Recipe, seed: int) -> Run:
    """Make a run of A2C on an Atari game.

    Args:
        settings: the recipe; options.game ("Pong"), options.width (16), options.pool (16 games), options.steps (5
            decisions a segment), data_size (100,000 decisions in a nominal epoch).
        seed: of the initial weights, the games and the actions.

    Returns:
        The run; the metric "return" is the mean reward of four games over 150 decisions from fixed starts, "loss" is
        one minus the reward a decision.

    Raises:
        InputError: the extra is not installed, or no such game.
    """
    width, pool, steps = (
        whole(f"options.{n}", settings.options.get(n, d)) for n, d in (("width", 16), ("pool", 16), ("steps", 5))
    )
    game = str(settings.options.get("game", "Pong"))
    games = Arcade(game, pool, seed)
    with seeded(seed):
        model = ConvActorCritic(games.actions, width)
    samples = Rollouts(games, model, frames=settings.data_size or 100_000, steps=steps, seed=seed)
    facts = {"data": f"ALE/{game}-v5, {pool} games, segments of {steps} decisions of {SKIP} frames"}
    return Run(model, samples, a2c_loss, lambda net: judge(net, game), facts, declared=DECLARED)


def judge(net: nn.Module, game: str) -> dict[str, float]:
    """Return the clipped reward of four games over 150 decisions, from fixed starts with fixed numbers.

    Args:
        net: screens -> (logits, values).
        game: its name.

    Returns:
        "return", and "loss" = 1 - return/150.
    """
    games, everyone, total = Arcade(game, _JUDGED, 2**31), np.arange(_JUDGED), 0.0
    for frame in range(_FRAMES):
        logits, _ = net(games.observe(everyone).to(device_of(net)))
        total += float(games.act(everyone, choose(logits, uniform(2**31, everyone, frame))).reward.sum())
    score = total / _JUDGED
    return {"loss": 1 - score / _FRAMES, "return": score}
