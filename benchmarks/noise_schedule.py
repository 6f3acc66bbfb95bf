"""Which measurements identify the noise scale within a tenth of a run? Recorded once, replayed under many schedules.

    python benchmarks/noise_schedule.py --json benchmarks/results/noise_schedule.json

The text transformer and the digits CNN, batch 64, AdamW; a tenth of a run of about 510 steps is 51 steps. Every step is
measured and its |G|^2 and tr(Sigma) are kept; a schedule then takes some of them, and the library's history and
verdict say what would have been known after steps 45, 48 and 51. `drift` is the noise scale of steps 41 to 51 over
that of steps 11 to 21, from means over all of them; negative where |G|^2 cannot be told from 0.

`stream` rows: 15 steps in a row of a synthetic stream whose noise scale rises by a known factor meanwhile; how often
the 95% interval covers the scale at the last step, of all repetitions and of those that are identified.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from isobatch.noise import NoiseScale
from isobatch.noise.estimate import NoiseEstimate, judge
from isobatch.noise.history import History
from isobatch.noise.record import Found
from isobatch.noise.statistic import Moments
from isobatch.plan import Recipe
from isobatch.report import write_result
from isobatch.tasks import Run, make_run

BATCH, TENTH = 64, 51
CAPTURES = {
    "norm layers, 8 rows": {"capture": "norms", "rows": 8},
    "norm layers, all rows": {"capture": "norms", "rows": BATCH},
    "all layers, 8 rows": {"rows": 8},
    "all layers, all rows": {"rows": BATCH},
}
SCHEDULES = {
    "every step": range(1, TENTH + 1),
    "every second step": range(1, TENTH + 1, 2),
    "every third step": range(1, TENTH + 1, 3),
    "every fourth step": range(3, TENTH + 1, 4),
    "24 steps in a row, window begun with them": range(TENTH - 23, TENTH + 1),
    "15 steps in a row, window begun with them": range(TENTH - 14, TENTH + 1),
}
IN_A_ROW = 15
Series = list[tuple[float, float]]
ENDS = (TENTH - 6, TENTH - 3, TENTH)


def recorded(run: Run, seed: int, options: dict) -> list[tuple[float, float]]:
    """Return (tr(Sigma), |G|^2) of the first steps."""
    optimizer = torch.optim.AdamW(run.model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    noise = NoiseScale(run.model, optimizer, every=1, **options)
    draw = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(run.samples), generator=draw) for _ in range(1 + TENTH * BATCH // len(run.samples))]
    )
    for step in range(1, TENTH + 2):
        optimizer.zero_grad()
        run.step(run.samples[order[(step - 1) * BATCH : step * BATCH]]).backward()
        noise.update(samples=BATCH)
        optimizer.step()
    found = [(cell.sums[0] / cell.weight).tolist() for cell in noise.history.cells]
    return [(trace, signal) for trace, signal in found][-TENTH:]


def replayed(series: Series, steps: Sequence[int], end: int, *, begun: bool = False) -> NoiseEstimate:
    """Return what is known after step `end` from the measurements of some steps; `begun`: the window begins there."""
    history, last = History(None), steps[0] - 1 if begun else 0
    history.clear(last * BATCH)
    one = torch.ones((), dtype=torch.float64)
    for step in steps:
        found = Found(values=torch.tensor([series[step - 1]], dtype=torch.float64), counts=one)
        history.add(found, seen=step * BATCH, span=(step - last) * BATCH, batch=BATCH)
        last = step
    read = history.read(end * BATCH, 1)
    trace, signal = read.means[0]
    return judge(Moments(float(signal), float(trace)), read.spreads[0], span=read.span, measurements=read.measurements)


def ratio(series: Series, start: int, stop: int) -> float:
    part = series[start - 1 : stop]
    return sum(trace for trace, _ in part) / sum(signal for _, signal in part)


def rows(task: str, seeds: range) -> list[dict]:
    recipe = {"text": Recipe.load("examples/text.toml")}.get(task)
    if recipe is None:
        recipe = Recipe.parse(
            {"task": task, "data_size": 1437, "batch": {"size": BATCH}, "optimizer": {"name": "adamw", "lr": 1e-3}}
        )
    found = []
    for capture, options in CAPTURES.items():
        series = [recorded(make_run(recipe, seed), seed, options) for seed in seeds]
        if any(len(one) < TENTH for one in series):  # no such layers
            continue
        drift = [round(ratio(one, 41, 51) / ratio(one, 11, 21), 2) for one in series]
        for name, steps in SCHEDULES.items():
            moved = {end: [step + end - TENTH for step in steps if step + end > TENTH] for end in ENDS}
            row = "in a row" in name
            verdicts = [[replayed(one, moved[end], end, begun=row) for end in ENDS] for one in series]
            known = sum(str(v.verdict) == "identified" for each in verdicts for v in each)
            found.append({
                "case": task, "capture": capture, "schedule": name, "measurements": len(steps), "seeds": len(series),
                "looks": len(ENDS) * len(series), "identified": known, "drift": drift,
                "at_the_tenth": [each[-1].sentence for each in verdicts],
            })  # fmt: skip
            print(task, capture, name, f"{known} of {found[-1]['looks']}", drift, flush=True)
    return found


def stream(rises: float, repetitions: int = 1000) -> dict:
    """Return how often the interval of 15 steps in a row covers the scale at the last of them."""
    draw = torch.Generator().manual_seed(0)
    times = torch.arange(1, IN_A_ROW + 1) / IN_A_ROW
    covered = identified = wrong = 0
    for _ in range(repetitions):
        scatter = torch.randn(2, IN_A_ROW, generator=draw)
        series = torch.stack([1 + 0.2 * scatter[0], rises**-times * (1 + 0.15 * scatter[1])], 1).tolist()
        found = replayed(series, range(1, IN_A_ROW + 1), IN_A_ROW)
        holds, known = found.low <= rises <= found.high, str(found.verdict) == "identified"
        covered, identified, wrong = covered + holds, identified + known, wrong + (known and not holds)
    return {"case": "stream", "rises": rises, "repetitions": repetitions, "covered": covered, "identified": identified,
            "identified_and_not_covered": wrong}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=["text", "digits-cnn"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = [stream(rises) for rises in (1.0, 1.5, 2.0)]
    print(*table, sep="\n", flush=True)
    table += [row for task in arguments.tasks for row in rows(task, range(arguments.seeds))]
    if arguments.json:
        write_result(arguments.json.parent, {"date": time.strftime("%Y-%m-%d"), "rows": table}, arguments.json.name)


if __name__ == "__main__":
    main()
