"""The critical batch, measured directly: sweeps, branches, and the advice that follows."""

from isobatch.installed import need

need("torch", "verify")

from isobatch.critical.advising import Advice, Option, advise
from isobatch.critical.branching import Branching, branch
from isobatch.critical.hyperbola import Hyperbola, Interval, fit
from isobatch.critical.machine import Network, StepTime, fit_steps
from isobatch.critical.measuring import Measured, Reading, calibrate, measure
from isobatch.critical.sweeping import Goal, Point, Sweep, sweep

__all__ = [
    "Advice",
    "Branching",
    "Goal",
    "Hyperbola",
    "Interval",
    "Measured",
    "Network",
    "Option",
    "Point",
    "Reading",
    "StepTime",
    "Sweep",
    "advise",
    "branch",
    "calibrate",
    "fit",
    "fit_steps",
    "measure",
    "sweep",
]
