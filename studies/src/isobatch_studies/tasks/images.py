"""Images for the tasks: Atari frames, glyphs, or the user's own folder, as uint8 tensors of one size."""

from pathlib import Path

import torch

from isobatch.errors import InputError
from isobatch.plan import Recipe
from isobatch.units import whole
from isobatch_studies.tasks.atari import frames, load
from isobatch_studies.tasks.folders import folder
from isobatch_studies.tasks.glyphs import glyphs
from isobatch_studies.tasks.pixels import Images, resized


def images(settings: Recipe) -> Images:
    """Return the images that a recipe asks for.

    options.data is "atari" (frames, from the cache or ale-py), a file of such frames (.npz), "glyphs" (rendered, for
    smoke tests), or a folder: MNIST, SVHN or CIFAR-10 (binary version) as published, or ImageNet's layout
    (train/CLASS/*.png, val/CLASS/*.png). options.side is the size in pixels (32), options.frames a limit on the
    training images, the same share of every class being kept.

    Args:
        settings: the recipe.

    Returns:
        The images.

    Raises:
        InputError: an unknown source, or a limit larger than the data.
    """
    name = str(settings.options.get("data", "atari"))
    side = whole("options.side", settings.options.get("side", 32), 4)
    found = _source(name, side)
    limit = settings.options.get("frames")
    if limit is None:
        return found
    count, there = whole("options.frames", limit), len(found.train[0])
    if count > there:
        raise InputError(f"options.frames={count} must be at most {there}, the training images of {name}")
    picked = _spread(found.train[1], count)
    held = _spread(found.held[1], min(len(found.held[0]), max(256, count // 2)))
    parts = [(x[index], y[index]) for (x, y), index in ((found.train, picked), (found.held, held))]
    return Images(parts[0], parts[1], found.classes, {**found.facts, "frames": str(count)})


def _source(name: str, side: int) -> Images:
    if name == "atari" or name.endswith(".npz"):
        return _atari(side, None if name == "atari" else Path(name))
    if name == "glyphs":
        return glyphs(side)
    if not Path(name).is_dir():
        raise InputError(f'options.data={name!r} must be "atari", "glyphs", a folder of images or a .npz of frames')
    return folder(Path(name), side)


def _atari(side: int, path: Path | None) -> Images:
    made = frames() if path is None else load(path)
    parts = []
    for pixels, labels in ((made.train, made.train_games), (made.held, made.held_games)):
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        parts.append((resized(x, side), torch.from_numpy(labels)))
    facts = {"data": f"Atari frames, {len(made.games)} games, ale-py {made.version}", "sha256": made.digest}
    return Images(parts[0], parts[1], len(made.games), facts)


def _spread(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return indices of `count` samples, spread evenly over the samples sorted by class."""
    order = labels.argsort(stable=True)
    return order[torch.arange(count) * len(labels) // count].sort().values
