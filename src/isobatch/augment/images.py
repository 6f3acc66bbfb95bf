"""Random views of images: crop, flip, colour, grey, blur, solarize, each for a whole batch at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from isobatch.augment.draws import Draws
from isobatch.errors import InputError
from isobatch.units import finite, whole

_DRAWS, _BELOW_ONE = 14, 1 - 2.0**-24
_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class Views:
    """How a view is drawn; probabilities are per sample.

    Args:
        size: side of the view in pixels.
        crop: least and largest share of the area that is cropped.
        ratio: largest ratio of its sides, either way.
        flip: probability of a mirror image.
        jitter: probability of a change of colour.
        brightness: factor in 1 +- this.
        contrast: the same.
        saturation: the same.
        hue: turn in +- this share of the colour circle.
        grey: probability of losing the colour.
        blur: probability of a blur over three pixels.
        solarize: probability of inverting what is lighter than a half.

    Raises:
        InputError: a value outside its range.

    References:
        arXiv 2006.07733 (BYOL), appendix B; hue as a rotation in YIQ.
    """

    size: int = 32
    crop: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    solarize: float = 0.1

    def __post_init__(self) -> None:
        whole("size", self.size)
        low, high = (finite("crop", share, 0, 1, open_low=True) for share in self.crop)
        if low > high:
            raise InputError(f"crop={self.crop} must rise: least share of the area, then the largest")
        for name in ("flip", "jitter", "brightness", "contrast", "saturation", "grey", "blur", "solarize"):
            finite(name, getattr(self, name), 0, 1)
        finite("ratio", self.ratio, 1)
        finite("hue", self.hue, 0, 0.5)


@torch.no_grad()
def augment(images: Tensor, places: Tensor, seed: int, views: Views, copy: int = 0) -> Tensor:
    """Return one random view of each image.

    Args:
        images: of shape (n, channels, height, width), float in [0, 1] or uint8; one or three channels.
        places: int64 of shape (n,): place of each sample in the stream, on the CPU so that a GPU need not wait.
        seed: of the whole run.
        views: how they are drawn.
        copy: which view of the sample; another one is drawn independently.

    Returns:
        float32 in [0, 1], shape (n, channels, size, size), on the device of images.

    Example:
        >>> x = torch.rand(5, 3, 8, 8)
        >>> whole = augment(x, torch.arange(5), 0, Views(size=8))
        >>> torch.allclose(whole[3:], augment(x[3:], torch.arange(3, 5), 0, Views(size=8)))
        True
    """
    x = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
    drawn = Draws(seed, places, torch.full_like(places, copy)).uniform(_DRAWS)
    u = drawn.to(torch.float32).clamp_(max=_BELOW_ONE).to(x.device, non_blocking=True)
    with torch.autocast(x.device.type, enabled=False):
        x = _cropped(x, u[:, :5], views)
        if x.shape[1] == 3:
            x = _coloured(x, u[:, 5:11], views)
        x = _blurred(x, torch.where(u[:, 11] < views.blur, u[:, 12] / 3, 0.0))
        chosen = (u[:, 13] < views.solarize)[:, None, None, None]
        return torch.where(chosen & (x >= 0.5), 1 - x, x)


def _cropped(x: Tensor, u: Tensor, views: Views) -> Tensor:
    """Sample a rectangle of random area, ratio and place, mirrored or not, at the size of the view."""
    low, high = views.crop
    area = low + (high - low) * u[:, 0]
    bend = torch.exp((2 * u[:, 1] - 1) * (math.log(views.ratio) / 2))
    width, height = (area.sqrt() * bend).clamp(max=1.0), (area.sqrt() / bend).clamp(max=1.0)
    mirror = torch.where(u[:, 2] < views.flip, -1.0, 1.0)
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, (1 - width) * (2 * u[:, 3] - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * u[:, 4] - 1)
    grid = F.affine_grid(theta, [len(x), x.shape[1], views.size, views.size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _coloured(x: Tensor, u: Tensor, views: Views) -> Tensor:
    """Apply brightness, contrast, saturation, hue and grey as one 3x3 matrix and one offset per image."""
    on = (u[:, 0] < views.jitter).to(x.dtype)
    luma = x.new_tensor(_LUMA)

    def factor(k: int, most: float) -> Tensor:
        return 1 + on * most * (2 * u[:, k] - 1)

    bright, contrast, keep = factor(1, views.brightness), factor(2, views.contrast), factor(3, views.saturation)
    grey = luma.expand(3, 3)
    saturated = keep[:, None, None] * torch.eye(3, device=x.device) + (1 - keep)[:, None, None] * grey
    colour = _turned(on * views.hue * (2 * u[:, 4] - 1) * 2 * math.pi, x) @ saturated
    colour = torch.where((u[:, 5] < views.grey)[:, None, None], grey, colour)
    mean = (x.mean((2, 3)) @ luma) * bright * (1 - contrast)
    matrix = colour * (bright * contrast)[:, None, None]
    offset = colour.sum(2) * mean[:, None]
    mixed = torch.baddbmm(offset[:, :, None], matrix, x.flatten(2))
    return mixed.view_as(x).clamp(0, 1)


def _turned(angle: Tensor, like: Tensor) -> Tensor:
    """Return the matrices that turn the colour circle: YIQ, a rotation of I and Q, and back."""
    basis = like.new_tensor(_YIQ)
    turn = torch.zeros(len(angle), 3, 3, device=like.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.linalg.inv(basis) @ turn @ basis


def _blurred(x: Tensor, share: Tensor) -> Tensor:
    """Give each pixel's two neighbours the share on both axes; edges repeat."""
    a = share[:, None, None, None]
    for axis in (2, 3):
        size = x.shape[axis]
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
        before = torch.cat([first, x.narrow(axis, 0, size - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, size - 1), last], axis)
        x = (1 - 2 * a) * x + a * (before + after)
    return x
