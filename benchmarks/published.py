"""What published runs say about the critical batch: writes docs/evidence.md and its picture.

    python -m benchmarks.published

`published.json` holds figures that others measured: for each benchmark and batch the learning rate and, for every seed,
what it took to the goal, as [value, seeds] pairs; `source` says repository, commit and path. No file is copied.
"""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from benchmarks import league, published_averages
from benchmarks.league import title
from benchmarks.prose import prose
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isobatch.critical.fitting import TableFit, fit_table
from isobatch.critical.pictures import SHADES
from isobatch.critical.tables import Table, TablePoint
from isobatch.critical.words import plain, ranged
from isobatch.report import png, write
from isobatch.report.pictures import RC, plain_ticks

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "evidence.md", ROOT / "docs" / "results" / "published" / "critical.png"
FIGURES = Path(__file__).with_name("published.json")


def tables() -> list[tuple[dict[str, Any], Table]]:
    """The published figures, each beside its table."""
    found = []
    for entry in json.loads(FIGURES.read_text("utf-8")):
        points = (
            TablePoint(float(p["batch"]), tuple(float(v) for v, count in p["seeds"] for _ in range(count)))
            for p in entry["points"]
        )
        found.append((entry, Table(title(entry), entry["unit"], tuple(points), entry.get("size"))))
    return found


def fits() -> list[tuple[dict[str, Any], TableFit]]:
    return [(entry, fit_table(table)) for entry, table in tables()]


def row(entry: dict[str, Any], found: TableFit) -> str:
    h, bent = found.hyperbola, found.bend
    seeds = "-" if found.seeds is None else ranged(found.seeds)
    away = "-" if found.left_out is None else f"{found.left_out:.1%}"
    power = "-" if bent is None else f"{bent.exponent:.2f}" + (" *" if bent.better else "")
    sizes = f"{found.points[0].batch:,.0f}-{found.points[-1].batch:,.0f}"
    value = plain(h.critical.value) if h.identified else f"({plain(h.critical.value)})"
    cells = [title(entry), entry["optimizer"], f"{h.batches}", sizes, value, ranged(h.critical), seeds,
             f"{h.residual:.1%}", away, power]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def page(found: list[tuple[dict[str, Any], TableFit]]) -> str:
    """The page, every figure from the fits."""
    sure = sum(f.hyperbola.identified for _, f in found)
    head = "| benchmark | optimizer | n | batches | B_crit | 95% interval | seeds alone | residuals | left out | a |"
    lines = [
        "# What published runs say",
        "",
        *prose(
            "Runs at full size that others measured, each batch tuned by its authors. Written by "
            "`python -m benchmarks.published` from the figures in [published.json](../benchmarks/published.json); the "
            "fit is that of [`isobatch noise fit`](critical-batch.md#fit-a-table)."
        ),
        "![Critical batch of every benchmark with its interval](results/published/critical.png)",
        "",
        "## The critical batch",
        *prose(
            f"{len(found)} tables, {sure} critical batches identified (at least 4 batches, an interval within a factor "
            "of 4; the others in brackets). The first interval counts everything "
            "that the batches do not agree on as noise, the second draws seeds again. `left out`: each batch as "
            "the others predict it, root mean square. `a`: the free exponent of E = E_min (1 + (B/B_crit)^a), with a "
            "star where an F test at 5% prefers it to 1."
        ),
        head,
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row(e, f) for e, f in found),
        "",
        *_outliers(found),
        *_left_out(found),
        *_held_out(found),
        *_bends(found),
        *league.section(found),
        *published_averages.section(found),
        *_expected(found),
        "## Sources",
        "Figures only, of these files:",
        "",
        *(f"- {title(e)}: `{e['source']}`" for e, _ in found),
        f"- Step Law: `{league.STEP_LAW_SOURCE}`",
        "",
    ]
    return "\n".join(lines)


def _outliers(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    named = [
        f"{title(e)}: {o.value:,.12g} at batch {o.batch:,.6g}, {o.ratio:.3g} times what is expected"
        for e, f in found
        for o in f.outliers
    ]
    power, error = _scaling(found)
    return prose(
        f"Left out as outliers: {'; '.join(named)}.",
        f"Over the five transformers B_crit goes as parameters^{power:.2f} (standard error {error:.2f}); their goals "
        "differ, so that size and loss move together.",
    )


def _left_out(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    every = [(e, p, i in (0, len(f.points) - 1)) for e, f in found for i, p in enumerate(f.points)]
    errors = [(math.expm1(p.left_out), e, p, end) for e, p, end in every if p.left_out is not None]
    inner = [one for one in errors if not one[3]]

    def near(of: list[Any]) -> str:
        count = sum(abs(one[0]) <= 0.1 for one in of)
        return f"{count} of {len(of)} ({count / len(of):.0%})"

    far = sorted(errors, key=lambda one: -abs(one[0]))[:5]
    return [
        "## Batches left out",
        *prose(
            f"{near(errors)} batches are predicted within 10% by the others of their table; of those between "
            f"smaller and larger ones, {near(inner)}. The farthest:"
        ),
        "| benchmark | batch | measured over predicted |",
        "|---|---|---|",
        *(f"| {title(e)} | {p.batch:,.0f} | {error:+.0%} |" for error, e, p, _ in far),
        "",
    ]


def held_out(found: list[tuple[dict[str, Any], TableFit]]) -> list[tuple[str, dict[str, Any], float]]:
    """Benchmark, submission, and measured over predicted less 1; batches that the table does not have.

    Half an evaluation is taken off what was measured, as it is in the table.
    """
    rows = []
    for entry, fit in found:
        h = fit.hyperbola
        for one in entry.get("held_out", ()):
            expected = h.samples.value * (1 + one["batch"] / h.critical.value)
            late = min(fit.points, key=lambda p: abs(math.log(p.batch / one["batch"]))).quantum / 2
            rows.append((title(entry), one, (one["value"] - late) / expected - 1))
    return rows


def _held_out(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    return [
        "## Held out",
        *prose(
            "Submissions at batches that a table does not have, by their own settings, and what the table's fit says, "
            "half an evaluation taken off. A run that is faster than the table's points by more than chance is "
            "rejected by the benchmark's rules, so that errors below zero are bounded by selection."
        ),
        "| benchmark | batch | measured | over predicted | source |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one['batch']:,} | {one['value']:g} epochs | {error:+.1%} | `{one['source']}` |"
            for name, one, error in held_out(found)
        ),
        "",
        *prose(
            "Further submissions, by a least-squares fit on trimmed means that was made before this page and is not "
            "repeated by it: RGAT 73,728 +0.8%; Llama 3.1 8B 36 -2.7 to -4%; Llama 2 70B LoRA 64 -2.6 and -5.1%; Llama "
            "3.1 405B 576 to 1,280 +2.7 to +8.1%."
        ),
    ]


def _bends(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    rows = [(e, f.hyperbola, f.bend) for e, f in found if f.bend is not None and f.bend.better]
    return [
        "## Where it bends away from the hyperbola",
        "| benchmark | optimizer | a | residuals, hyperbola | residuals, free exponent |",
        "|---|---|---|---|---|",
        *(
            f"| {title(e)} | {e['optimizer']} | {b.exponent:.2f} | {h.residual:.1%} | {b.residual:.1%} |"
            for e, h, b in rows
        ),
        "",
    ]


def _expected(found: list[tuple[dict[str, Any], TableFit]]) -> list[str]:
    seeded = [f for _, f in found if f.hyperbola.identified and f.seeds is not None]
    wide = [f for f in seeded if f.seeds is not None and _width(f.hyperbola.critical) > 2 * _width(f.seeds)]
    bends = [f.bend for _, f in found if f.bend is not None]
    missing = [title(e) for e, f in found if not f.hyperbola.identified]
    better = [b for b in bends if b.better]
    return [
        "## Expected, and not so",
        *prose(
            "That seeds explain how far batches lie off the curve: in "
            f"{len(wide)} of {len(seeded)} identified tables with seeds the interval is more than twice as wide (in "
            "logs) as seeds alone make it; misfit and tuning count for more.",
            f"That the hyperbola is the right bend everywhere: {len(better)} of {len(bends)} tables of five batches "
            f"and more prefer another exponent, {sum(b.exponent > 1 for b in better)} of them one above 1: flatter "
            "below B_crit, steeper above it.",
            *league.surprises(found),
            *published_averages.surprises(found),
            f"That every table identifies a critical batch. These do not: {'; '.join(missing)}.",
        ),
    ]


def _width(interval: Any) -> float:
    return math.log(interval.high / interval.low) if interval.low > 0 else math.inf


def _scaling(found: list[tuple[dict[str, Any], TableFit]]) -> tuple[float, float]:
    """Exponent of B_crit over parameters, and its standard error."""
    x = np.log([e["parameters"] for e, _ in found if "parameters" in e])
    y = np.log([f.hyperbola.critical.value for e, f in found if "parameters" in e])
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(covariance[0, 0] ** 0.5)


def figure(found: list[tuple[dict[str, Any], TableFit]]) -> Figure:
    """Every critical batch with its interval and the batches it rests on; the transformers over their size."""
    with matplotlib.rc_context(RC):
        drawn = Figure(figsize=(13, 8.2), layout="constrained")
        left, right = drawn.subplots(1, 2, width_ratios=(1.7, 1))
        shown = sorted(
            (item for item in found if item[1].hyperbola.identified), key=lambda i: i[1].hyperbola.critical.value
        )
        families = list(dict.fromkeys(e["optimizer"] for e, _ in shown))
        shades = {name: (*SHADES, "#000000", "#999999")[i] for i, name in enumerate(families)}
        for place, (e, f) in enumerate(shown):
            c = f.hyperbola.critical
            left.plot(
                [f.points[0].batch, f.points[-1].batch], [place] * 2, color="#DDDDDD", lw=7, solid_capstyle="butt"
            )
            left.plot([c.low, c.high], [place] * 2, color=shades[e["optimizer"]], lw=2.4)
            left.plot(c.value, place, "o", color=shades[e["optimizer"]], ms=7)
        left.set_yticks(range(len(shown)), [title(e) for e, _ in shown], fontsize=9)
        for name in families:
            left.plot([], [], "-o", color=shades[name], label=name)
        left.plot([], [], color="#DDDDDD", lw=7, label="batches measured")
        left.legend(loc="lower right", fontsize=9)
        left.set_xscale("log")
        plain_ticks(left.xaxis, (1.0,))
        left.set_xlabel("batch: samples or sequences of an update")
        left.set_title("critical batch of published runs, 95% intervals")
        _sizes(right, [(e["parameters"], f) for e, f in found if "parameters" in e], _scaling(found)[0])
    return drawn


def _sizes(axes: Axes, models: list[tuple[float, TableFit]], slope: float) -> None:
    size = np.array([n for n, _ in models])
    value = np.array([f.hyperbola.critical.value for _, f in models])
    ends = np.array([[f.hyperbola.critical.low, f.hyperbola.critical.high] for _, f in models]).T
    axes.errorbar(
        size, value, np.abs(ends - value), fmt="o", color=SHADES[0], capsize=3, label="AdamW, C4, each at its loss"
    )
    height = np.exp((np.log(value) - slope * np.log(size)).mean())
    axes.plot(size, height * size**slope, "--", color=SHADES[1], label=f"parameters^{slope:.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(size, [f"{n / 1e6:,.0f}M" if n < 1e9 else f"{n / 1e9:.1f}B" for n in size])
    axes.minorticks_off()
    plain_ticks(axes.yaxis)
    axes.set_xlabel("parameters")
    axes.set_ylabel("critical batch (sequences of 512)")
    axes.set_title("transformers over their size")
    axes.legend(loc="upper left", fontsize=9)


def main() -> None:
    found = fits()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    write(PICTURE, png(figure(found)))
    write(PAGE, page(found))


if __name__ == "__main__":
    main()
