"""A figure as SVG that belongs to its page: its text stays text, its colours follow light and dark."""

import io
import re
from html import escape

import matplotlib
from matplotlib.figure import Figure

_NAMED = re.compile(r"(?<![\w#])(fill: )?#([0-9a-f]{6})\b")
_USED = re.compile(r"var\(--([cf])([0-9a-f]{6})\)")
_PALE, _DEEP = 0.45, 0.30
_PIXELS = 96


def svg(figure: Figure, alt: str) -> str:
    """Return a figure as SVG to stand inside a page.

    Args:
        figure: the figure.
        alt: what it shows, for those who cannot see it.

    Returns:
        An svg element without width and height: as wide as its place, and never so narrow that its text cannot be read.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "isobatch"}):
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # inside a page they go without saying
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names of groups repeat from figure to figure
    text = _NAMED.sub(_variable, text)
    width = figure.get_size_inches()[0] * _PIXELS
    style = f"width:{width:.0f}px;min-width:{min(width, 0.62 * width if width > 640 else 300):.0f}px"
    head = f'<svg role="img" aria-label="{escape(alt)}" style="{style}"'
    return re.sub(r'^<svg(.*?) width="[^"]*"', rf"{head}\1", re.sub(r' height="[^"]*"', "", text, count=1), count=1)


def colours(page: str) -> str:
    """Return the style that gives the pictures of a page their colours, light and dark.

    Args:
        page: HTML with pictures of `svg` in it.

    Returns:
        CSS.
    """
    used = sorted(set(_USED.findall(page)))
    light = " ".join(f"--{kind}{colour}: #{colour};" for kind, colour in used)
    dark = " ".join(f"--{kind}{colour}: {on_dark(colour, area=kind == 'f')};" for kind, colour in used)
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def on_dark(colour: str, *, area: bool) -> str:
    """Return the colour that keeps its contrast on a dark page: pale areas become deep, deep lines become light.

    Args:
        colour: six hexadecimal digits.
        area: whether an area is filled with it, on which text may stand.

    Returns:
        A hex colour.

    Example:
        >>> on_dark("0072b2", area=False), on_dark("f4a582", area=True)
        ('#73b1d5', '#493227')
    """
    parts = [int(colour[at : at + 2], 16) for at in (0, 2, 4)]
    bright = sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
    if area and bright > _PALE:
        parts = [round(0.3 * part) for part in parts]
    elif bright < _DEEP:
        parts = [round(part + 0.45 * (255 - part)) for part in parts]
    return "#" + "".join(f"{part:02x}" for part in parts)


def _variable(match: re.Match[str]) -> str:
    fill, colour = match[1] or "", match[2]
    if colour == "000000":
        return f"{fill}currentColor"
    if colour == "ffffff":
        return f"{fill}var(--paper)"
    return f"{fill}var(--{'f' if fill else 'c'}{colour})"
