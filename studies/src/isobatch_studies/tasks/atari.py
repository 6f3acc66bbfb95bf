"""Frames of Atari games that ale-py carries: real pixels, one class a game, split by episode.

Each episode has a seed of its own and random actions; training and held-out frames come from different episodes, and a
held-out frame that equals a training frame pixel by pixel is left out. The frames are made once and kept in a cache.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from isobatch.errors import InputError

SIDE = 32
_TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
_STICKY, _HOLD, _WAIT, _STRIDE, _EPISODE, _MOST = 0.25, 4, 120, 6, 50, 24

Array = np.ndarray


@dataclass(frozen=True)
class Frames:
    """Frames by part: uint8 of shape (n, 32, 32, 3) and the game of each.

    Args:
        train: training frames.
        train_games: their classes.
        held: held-out frames, from other episodes.
        held_games: their classes.
        games: names of the classes.
        version: of ale-py.
    """

    train: Array
    train_games: Array
    held: Array
    held_games: Array
    games: tuple[str, ...]
    version: str

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and classes."""
        made = hashlib.sha256()
        for part in (self.train, self.train_games, self.held, self.held_games):
            made.update(np.ascontiguousarray(part).tobytes())
        return made.hexdigest()


def cache_folder() -> Path:
    """Return where made data is kept: $ISOBATCH_DATA, or isobatch in the user's cache folder.

    Returns:
        The folder; it need not exist.
    """
    given = os.environ.get("ISOBATCH_DATA")
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(home) if home else Path.home() / ".cache") / "isobatch"


def games() -> tuple[str, ...]:
    """Return the games of ale-py for one player, in order.

    Returns:
        Names.

    Raises:
        InputError: ale-py is not installed.
    """
    return tuple(name for name in sorted(_ale().roms.get_all_rom_ids()) if name not in _TWO_PLAYERS)


def record(names: Sequence[str], per_game: tuple[int, int] = (480, 60), seed: int = 0) -> Frames:
    """Play games at random and keep frames; the same arguments give the same pixels.

    Args:
        names: games.
        per_game: training and held-out frames wanted of each; a game that hardly moves gives fewer.
        seed: of episodes and actions.

    Returns:
        The frames.

    Raises:
        InputError: ale-py is not installed.
    """
    parts: list[list[Array]] = [[], []]
    labels: list[list[int]] = [[], []]
    for label, name in enumerate(names):
        known: set[bytes] = set()
        for part, wanted in enumerate(per_game):
            fresh = _distinct(name, part, wanted, seed, known)
            parts[part] += fresh
            labels[part] += [label] * len(fresh)
    train, held = (np.stack(found) for found in parts)
    classes = [np.array(found, dtype=np.int64) for found in labels]
    return Frames(train, classes[0], held, classes[1], tuple(names), _ale().__version__)


@cache
def frames() -> Frames:
    """Return the frames of all games from the cache, made first where there are none (a few minutes).

    Returns:
        About 48,000 training and 6,000 held-out frames.

    Raises:
        InputError: neither a cache nor ale-py, or a damaged cache.
    """
    path = cache_folder() / "atari32.npz"
    if path.exists():
        return load(path)
    made = record(games())
    save(path, made)
    return made


def save(path: Path, made: Frames) -> None:
    """Write frames to a file, whole or not at all.

    Args:
        path: the .npz file.
        made: the frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    words = np.array([*made.games, made.version])
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        try:
            np.savez_compressed(
                file, train=made.train, train_games=made.train_games, held=made.held, held_games=made.held_games,
                words=words, digest=np.array(made.digest),
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).replace(path)


def load(path: Path) -> Frames:
    """Read frames from a file.

    Args:
        path: what `save` wrote.

    Returns:
        The frames.

    Raises:
        InputError: no such file, or one that is damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            words = tuple(str(word) for word in file["words"])
            made = Frames(
                *(file[name] for name in ("train", "train_games", "held", "held_games")), words[:-1], words[-1]
            )
            digest = str(file["digest"])
    except Exception as error:  # zip, zlib and numpy each have their own
        raise InputError(f"{path} cannot be read as frames ({error}); delete it, and it is made again") from error
    if made.digest != digest:
        raise InputError(f"{path} is damaged: its pixels do not match its hash; delete it, and it is made again")
    return made


def _distinct(name: str, part: int, wanted: int, seed: int, known: set[bytes]) -> list[Array]:
    found: list[Array] = []
    for episode in range(_MOST):
        for frame in _episode(name, seed, part, episode):
            word = frame.tobytes()
            if word not in known:
                known.add(word)
                found.append(frame)
            if len(found) == wanted:
                return found
    return found


def _episode(name: str, seed: int, part: int, episode: int) -> Iterator[Array]:
    ale = _ale()
    words = hashlib.sha256(f"{name}/{seed}/{part}/{episode}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(words[:8], "big"))
    ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    game = ale.ALEInterface()
    game.setFloat("repeat_action_probability", _STICKY)
    game.setInt("random_seed", int.from_bytes(words[8:11], "big"))
    game.loadROM(ale.roms.get_rom_path(name))
    actions = game.getMinimalActionSet()
    wait = int(rng.integers(_WAIT))
    for step in range(wait + _EPISODE * _STRIDE):
        if step % _HOLD == 0:
            action = actions[int(rng.integers(len(actions)))]
        game.act(action)
        if game.game_over():
            return
        if step >= wait and (step - wait) % _STRIDE == 0:
            yield shrunk(game.getScreenRGB())


def shrunk(screen: Array) -> Array:
    """Return a screen of any size as 32x32 pixels, each the mean of what it covers.

    Args:
        screen: uint8 of shape (height, width, 3).

    Returns:
        uint8 of shape (32, 32, 3).

    Example:
        >>> shrunk(np.full((210, 160, 3), 7, dtype=np.uint8)).mean()
        np.float64(7.0)
    """
    rows, columns = (_cover(size) for size in screen.shape[:2])
    # sums of whole numbers below 2**24 are exact in float32, whatever their order
    sums = np.tensordot(np.tensordot(rows, screen.astype(np.float32), 1), columns, (1, 1)).transpose(0, 2, 1)
    return np.rint(sums / np.outer(rows.sum(1), columns.sum(1))[:, :, None]).astype(np.uint8)


@cache
def _cover(size: int) -> Array:
    """Return which of `size` pixels each of the 32 covers, as 0 and 1."""
    edges = np.arange(SIDE + 1) * size / SIDE
    low, high = np.floor(edges[:-1]), np.ceil(edges[1:])
    pixels = np.arange(size)
    return ((pixels >= low[:, None]) & (pixels < high[:, None])).astype(np.float32)


def _ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise InputError(
            "Atari frames need ale-py: pip install 'isobatch-studies[atari]', or copy a made atari32.npz into "
            f'{cache_folder()}; options.data = "glyphs" needs neither'
        ) from error
    return ale_py
