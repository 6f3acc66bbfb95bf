"""Glyphs: letters and digits rendered from the fonts that matplotlib ships; no photographs, so a smoke test only."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isobatch_studies.tasks.pixels import Images, digest, resized

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SIDE, _SIZES, _FAMILIES = 32, (14, 18, 22), ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")


@cache
def glyphs(side: int = 32) -> Images:
    """Render 62 letters and digits in the upright and slanted cuts of four font families, white on black.

    Every third combination of font and size is held out.

    Args:
        side: of an image in pixels.

    Returns:
        The images, three equal channels.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(p for p in folder.glob("*.ttf") if p.stem.split("-")[0].removesuffix("BolIta") in _families())
    parts: list[list[np.ndarray]] = [[], []]
    labels: list[list[int]] = [[], []]
    for number, (path, size) in enumerate((path, size) for path in fonts for size in _SIZES):
        font = FT2Font(str(path))
        font.set_size(size, 72)
        part = int(number % 3 == 2)
        for label, letter in enumerate(LETTERS):
            parts[part].append(_drawn(font, letter))
            labels[part].append(label)
    made = []
    for found, classes in zip(parts, labels, strict=True):
        x = torch.from_numpy(np.stack(found))[:, None].expand(-1, 3, -1, -1).contiguous()
        made.append((resized(x, side), torch.tensor(classes)))
    facts = {"data": f"glyphs of {len(fonts)} fonts (rendered), matplotlib {matplotlib.__version__}"}
    return Images(made[0], made[1], len(LETTERS), {**facts, "sha256": digest(made[0][0], made[1][0])})


def _families() -> set[str]:
    return {*_FAMILIES, "STIXGeneralItalic", "STIXGeneralBol"}


def _drawn(font: Any, letter: str) -> np.ndarray:
    font.set_text(letter)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = np.asarray(font.get_image())[:_SIDE, :_SIDE]
    canvas = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    top, left = ((_SIDE - size) // 2 for size in ink.shape)
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas
