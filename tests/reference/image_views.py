"""Random views of images in float64, image by image and pixel by pixel, from fourteen uniform numbers."""

import math

import numpy as np


def bilinear(image, y, x):
    """Value of an image [channels, H, W] at pixel coordinates, edges repeated."""
    _, height, width = image.shape
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    a, b = y - top, x - left
    rows = image[:, top, :] * (1 - a) + image[:, top + 1, :] * a
    return rows[:, left] * (1 - b) + rows[:, left + 1] * b


def view(image, u, p):
    channels, height, width = image.shape
    area = p["crop"][0] + (p["crop"][1] - p["crop"][0]) * u[0]
    bend = p["ratio"] ** ((2 * u[1] - 1) / 2)
    w, h = min(1, math.sqrt(area) * bend), min(1, math.sqrt(area) / bend)
    sign = -1 if u[2] < p["flip"] else 1
    cx, cy, size = (1 - w) * (2 * u[3] - 1), (1 - h) * (2 * u[4] - 1), p["size"]
    out = np.zeros((channels, size, size))
    for i in range(size):
        for j in range(size):
            x = sign * w * ((2 * j + 1) / size - 1) + cx
            y = h * ((2 * i + 1) / size - 1) + cy
            out[:, i, j] = bilinear(image, ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2)
    if channels == 3:
        out = colour(out, u[5:11], p)
    a = u[12] / 3 if u[11] < p["blur"] else 0.0
    for axis in (1, 2):
        padded = np.pad(out, [(0, 0) if k != axis else (1, 1) for k in range(3)], mode="edge")
        before, after = (np.take(padded, range(s, s + size), axis) for s in (0, 2))
        out = (1 - 2 * a) * out + a * (before + after)
    return np.where(out >= 0.5, 1 - out, out) if u[13] < p["solarize"] else out


def colour(x, u, p):
    """Brightness, contrast against the mean grey, saturation, hue, grey, in this order."""
    on = 1 if u[0] < p["jitter"] else 0
    luma = np.array([0.299, 0.587, 0.114])
    grey = lambda image: np.tensordot(luma, image, 1)  # noqa: E731
    x = x * (1 + on * p["brightness"] * (2 * u[1] - 1))
    contrast = 1 + on * p["contrast"] * (2 * u[2] - 1)
    x = contrast * x + (1 - contrast) * grey(x).mean()
    keep = 1 + on * p["saturation"] * (2 * u[3] - 1)
    x = keep * x + (1 - keep) * grey(x)
    angle = on * p["hue"] * (2 * u[4] - 1) * 2 * math.pi
    basis = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    y, i, q = np.tensordot(basis, x, 1)
    turned = [y, math.cos(angle) * i - math.sin(angle) * q, math.sin(angle) * i + math.cos(angle) * q]
    x = np.tensordot(np.linalg.inv(basis), np.stack(turned), 1)
    if u[5] < p["grey"]:
        # grey is taken of the picture before saturation and hue, which leave the luma as it is
        x = np.repeat(grey(x)[None], 3, 0)
    return np.clip(x, 0, 1)
