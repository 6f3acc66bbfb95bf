"""What is looked at beside the verdicts of noise-scale, and judges nothing: what the fits and the averages rest on."""

from typing import Any

from isobatch.critical import Point
from isobatch.critical.fitting import fit_table
from isobatch.critical.tables import Table, TablePoint
from isobatch_studies.noise_scale.judging import LEAST, average, calibrated, over_seeds, shown
from isobatch_studies.noise_scale.probing import NoiseCurve
from isobatch_studies.teachers.tables import table

_FITS = ("domain", "goal", "batches", "B_crit, 95%", "seeds alone", "residuals")
_STOPS = ("domain", "stops at least", "seeds with a value", "B_simple", "over B_crit", "calibrated")


def fits(data: dict[str, Any] | None) -> str:
    """Return for every goal the critical batch as it is judged, and what scatter of seeds alone would leave open.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown: the fit's interval, which counts what batches do not agree on, the bootstrap over seeds, and the root
        mean square of the residuals.
    """
    rows = [list(_FITS)]
    for row in data["rows"] if data else []:
        for goal in (goal for goal in row["goals"] if goal["fit"] is not None):
            points = tuple(TablePoint(point["batch"], tuple(point["seeds"])) for point in goal["points"])
            alone = fit_table(Table(row["domain"], "steps", points), outliers=False).seeds
            ends = shown(goal["fit"]["critical"]), "" if alone is None else shown(vars(alone))
            residual = f"{100 * goal['fit']['residual']:.0f}%"
            rows.append([row["domain"], f"{goal['goal']:g}", str(len(points)), *ends, residual])
    return table(rows) if rows[1:] else "No run is complete.\n"


def stops(data: dict[str, Any] | None) -> str:
    """Return what averages of the noise scale would be if a seed took fewer identified stops than is judged.

    Args:
        data: of result.json; None where there is none.

    Returns:
        Markdown: for the judged least, and for one below it where that adds a seed, B_simple with its interval, its
        ratio to the critical batch, and the calibrated ratio.
    """
    rows = [list(_STOPS)]
    for row in (row for row in (data["rows"] if data else []) if row["complete"]):
        readings = [NoiseCurve(**reading) for reading in row["readings"]]
        points = [Point(**point) for point in row["goals"][-1]["points"]]
        by = {least: [average(reading, least) for reading in readings] for least in (LEAST, LEAST - 1)}
        for least, averages in by.items():
            if least < LEAST and averages == by[LEAST]:
                continue
            found, ratio = over_seeds(averages), calibrated(points, averages)
            having = f"{sum(value is not None for value in averages)} of {len(averages)}"
            crit = row["critical_average"]
            over = "" if found is None or crit is None else f"{found['value'] / crit['value']:.2f}"
            last = "" if ratio is None else f"{ratio:.2f}"
            rows.append([row["domain"], str(least), having, shown(found), over, last])
    return table(rows) if rows[1:] else "No run is complete.\n"
