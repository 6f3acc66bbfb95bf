"""The critical batch, measured directly: sweeps, branches, and the advice that follows."""

from isobatch.critical.hyperbola import Hyperbola, Interval, fit
from isobatch.critical.sweeping import Goal, Point, Sweep, sweep

__all__ = ["Goal", "Hyperbola", "Interval", "Point", "Sweep", "fit", "sweep"]
