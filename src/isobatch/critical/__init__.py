"""The critical batch, measured directly: sweeps, branches, and the advice that follows."""

from isobatch.installed import need

need("torch", "verify")

from isobatch.critical.advising import Advice, Option, advise
from isobatch.critical.branching import Branching, branch
from isobatch.critical.fitting import FitPoint, Outlier, TableFit, fit_table
from isobatch.critical.hyperbola import Bend, Hyperbola, Interval, bend, fit
from isobatch.critical.machine import Network, StepTime, fit_steps
from isobatch.critical.measuring import Measured, Reading, calibrate, measure
from isobatch.critical.sweeping import Goal, Point, Sweep, sweep
from isobatch.critical.tables import Table, TablePoint, read_table

__all__ = [
    "Advice",
    "Bend",
    "Branching",
    "FitPoint",
    "Goal",
    "Hyperbola",
    "Interval",
    "Measured",
    "Network",
    "Option",
    "Outlier",
    "Point",
    "Reading",
    "StepTime",
    "Sweep",
    "Table",
    "TableFit",
    "TablePoint",
    "advise",
    "bend",
    "branch",
    "calibrate",
    "fit",
    "fit_steps",
    "fit_table",
    "measure",
    "read_table",
    "sweep",
]
