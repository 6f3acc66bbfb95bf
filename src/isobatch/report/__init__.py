"""Reports: result.json, pictures, and one self-contained HTML page."""

from isobatch.installed import need

need("verify")

from isobatch.report.drawing import svg
from isobatch.report.page import Section, render
from isobatch.report.pictures import model_figure, overlay_figure, panel_figures, png
from isobatch.results import HELD, dump, prepare, read_result, versions, write, write_result

__all__ = [
    "HELD",
    "Section",
    "dump",
    "model_figure",
    "overlay_figure",
    "panel_figures",
    "png",
    "prepare",
    "read_result",
    "render",
    "svg",
    "versions",
    "write",
    "write_result",
]
