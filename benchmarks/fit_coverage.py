"""How often do the 95% intervals of `isobatch noise fit` hold the critical batch?

    python benchmarks/fit_coverage.py --json benchmarks/results/fit-coverage.json

Synthetic hyperbolas: batches from B_crit/8 to 8 B_crit, five lognormal seeds of 10% at each; as they are, evaluated
every 5% of the fewest samples, with one seed ten times too large, and with both. `alone` is the share of the intervals
over the seeds alone. Of a mean of five seeds the noise is 4.5%.
"""

import argparse
from pathlib import Path

import numpy as np

from isobatch.critical.fitting import fit_table
from isobatch.critical.tables import Table, TablePoint
from isobatch.report import write_result

CRITICAL, FEWEST, SEEDS, SPREAD, EVALUATED = 1000.0, 1e6, 5, 0.1, 0.05
KINDS = {"seeds": (False, False), "quantised": (True, False), "outlier": (False, True), "both": (True, True)}


def table(rng: np.random.Generator, batches: int, *, quantised: bool, outlier: bool) -> Table:
    """A sweep of which the truth is known."""
    sizes = np.round(np.geomspace(CRITICAL / 8, 8 * CRITICAL, batches))
    values = FEWEST * (1 + sizes / CRITICAL)[:, None] * np.exp(SPREAD * rng.standard_normal((batches, SEEDS)))
    if quantised:
        values = np.ceil(values / (EVALUATED * FEWEST)) * EVALUATED * FEWEST
    if outlier:
        values[rng.integers(batches), rng.integers(SEEDS)] *= 10
    points = (TablePoint(float(b), tuple(map(float, v))) for b, v in zip(sizes, values, strict=True))
    return Table("synthetic", "samples", tuple(points))


def coverage(batches: int, kind: str, trials: int, seed: int = 0) -> dict[str, float | int | str]:
    """Shares of the intervals that hold the truth, of outliers found, and the median width as a factor."""
    quantised, outlier = KINDS[kind]
    rng = np.random.default_rng([seed, batches, list(KINDS).index(kind)])
    hits, alone, exact, widths = 0, 0, 0, []
    for _ in range(trials):
        found = fit_table(table(rng, batches, quantised=quantised, outlier=outlier), draws=200)
        inside = found.hyperbola.critical
        hits += inside.low <= CRITICAL <= inside.high
        alone += found.seeds.low <= CRITICAL <= found.seeds.high
        exact += len(found.outliers) == int(outlier)
        widths.append(inside.high / inside.low if inside.low > 0 else np.inf)
    return {"batches": batches, "kind": kind, "trials": trials, "covered": hits / trials, "alone": alone / trials,
            "outliers_right": exact / trials, "width": float(np.median(widths))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for batches in (4, 6, 10):
        for kind in KINDS:
            rows.append(coverage(batches, kind, chosen.trials))
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    if chosen.json is not None:
        write_result(chosen.json.parent, {"coverage": rows}, chosen.json.name)


if __name__ == "__main__":
    main()
