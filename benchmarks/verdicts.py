"""How often is a verdict wrong, how often does it decide, and what do more seeds, looks and advice do to that?

    python benchmarks/verdicts.py --json benchmarks/results/verdicts.json

Monte Carlo with the test that `isobatch verify run` uses. Gaps have deviation 1 and the stated distribution at every
mark; marks are independent or share 0.8 of their variance (before the exponential of a lognormal; t3 then shares its
chi-square). Errors are counted where the true gap is exactly the margin, which is 10 deviations unless stated: the
worst case for SAME. Each cell is kept as it ends; a second call with the same file counts the missing ones.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isobatch.report import write_result
from isobatch.verify.equivalence import failure_bound
from isobatch.verify.intervals import DIFFERENT, LEVEL, SAME, UNDECIDED, decide
from isobatch.verify.power import DEFAULT_SEEDS, MOST_SEEDS, seeds_for_power, seeds_to_decide
from isobatch.verify.sequential import Looks

SEEDS = (8, 10, 20, 40)
FAMILIES = {"1 mark": (1, 0.0), "10 marks, r 0": (10, 0.0), "10 marks, r 0.8": (10, 0.8)}
KINDS = {
    "normal": ("normal", 0.0, 1),
    "t3": ("t3", 0.0, 1),
    "lognormal 0.5 right": ("lognormal", 0.5, 1),
    "lognormal 0.5 left": ("lognormal", 0.5, -1),
    "lognormal 1 right": ("lognormal", 1.0, 1),
    "lognormal 1 left": ("lognormal", 1.0, -1),
    "lognormal 1.25 right": ("lognormal", 1.25, 1),
    "lognormal 1.25 left": ("lognormal", 1.25, -1),
}
WIDE = 10.0
DESIGNS = ((10, 20), (10, 40), (20, 60))
VALUES = 1_000_000


def draw(rng: np.random.Generator, kind: str, shape: tuple[int, int, int], correlation: float) -> np.ndarray:
    """Gaps of mean 0 and deviation 1, shape (repetitions, seeds, marks)."""
    law, sigma, sign = KINDS[kind]
    z = rng.standard_normal(shape)
    if correlation:
        z *= math.sqrt(1 - correlation)
        z += math.sqrt(correlation) * rng.standard_normal((*shape[:2], 1))
    if law == "normal":
        return z
    if law == "t3":
        chi = rng.chisquare(3, (*shape[:2], 1 if correlation else shape[2]))
        return z / np.sqrt(chi)
    square = math.exp(sigma**2)
    return sign * (np.exp(sigma * z) - math.sqrt(square)) / math.sqrt(square * (square - 1))


def chunks(repetitions: int, seeds: int, marks: int):
    """Sizes of parts that fit into the cache of a small machine."""
    size = max(1, VALUES // (seeds * marks))
    for start in range(0, repetitions, size):
        yield min(size, repetitions - start)


def rates(
    make: Callable[[np.random.Generator, int], np.ndarray], margin: np.ndarray, repetitions: int, seeds: int
) -> dict[str, float]:
    """Shares of the verdicts, and of those that the t intervals alone would give."""
    rng, counts = np.random.default_rng([seeds, len(margin)]), np.zeros(5)
    for size in chunks(repetitions, seeds, len(margin)):
        found = decide(make(rng, size), margin)
        said = (found.verdict, found.verdict, found.by_t, found.by_t)
        for i, (array, value) in enumerate(zip(said, (SAME, DIFFERENT) * 2, strict=True)):
            counts[i] += (array == value).sum()
        counts[4] += found.outliers.any(-1).sum()
    names = ("same", "different", "t_same", "t_different", "outlier")
    return {name: round(float(count) / repetitions, 5) for name, count in zip(names, counts, strict=True)}


def errors(kind: str, family: str, seeds: int, truth: str, repetitions: int) -> dict[str, float]:
    """Verdicts where the true gap is the margin at one mark (and 0 at the others) or at all."""
    marks, correlation = FAMILIES[family]
    mean = np.full(marks, WIDE) if truth == "all" else WIDE * (np.arange(marks) == marks // 2)
    return rates(
        lambda rng, size: mean + draw(rng, kind, (size, seeds, marks), correlation), np.full(marks, WIDE), repetitions,
        seeds,
    )  # fmt: skip


def mixed(shape: str, sign: int, seeds: int, repetitions: int) -> dict[str, float]:
    """Marks of several shapes, the true gap at the margin at the one that misleads (SAME) or at all (DIFFERENT)."""
    direction = np.array([1, -1] * 5) if shape == "alternating" else np.array([1] + [0] * 9)

    def make(mean: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray]:
        def gaps(rng: np.random.Generator, size: int) -> np.ndarray:
            skewed = draw(rng, "lognormal 1 right", (size, seeds, 10), 0.0)
            plain = rng.standard_normal((size, seeds, 10))
            return mean + np.where(direction == 0, plain, sign * direction * skewed)

        return gaps

    margin = np.full(10, WIDE)
    one = rates(make(WIDE * (np.arange(10) == 0)), margin, repetitions, seeds)
    every = rates(make(margin), margin, repetitions, seeds)
    return {"same": one["same"], "t_same": one["t_same"], "different": every["different"],
            "t_different": every["t_different"]}  # fmt: skip


def power(family: str, ratio: float, seeds: int, repetitions: int) -> dict[str, float]:
    """Normal gaps: SAME at a true gap of 0, DIFFERENT at two margins; the deviation is ratio margins."""
    marks, correlation = FAMILIES[family]
    margin = np.full(marks, 1 / ratio)
    found = {}
    for name, mean in (("same", 0.0), ("different", 2 / ratio)):
        got = rates(
            lambda rng, size, mean=mean: mean + draw(rng, "normal", (size, seeds, marks), correlation), margin,
            repetitions, seeds,
        )  # fmt: skip
        found |= {name: got[name], f"t_{name}": got[f"t_{name}"]}
    return found


def bad_seeds(chance: float, size: float, seeds: int, repetitions: int) -> dict[str, float]:
    """Deviation 0.3 margins; each seed goes astray by `size` margins with this chance, at all marks."""
    margin = np.full(10, 1 / 0.3)
    counts = np.zeros(4)
    rng = np.random.default_rng(seeds)
    for count in chunks(repetitions, seeds, 10):
        bad = rng.random((count, seeds, 1)) < chance
        gap = draw(rng, "normal", (count, seeds, 10), 0.0) + bad * size * margin
        found, seen = decide(gap, margin), bad.any((1, 2))
        wrong = found.outliers != bad[..., 0]
        counts += [(found.verdict == SAME).sum(), ((found.verdict == SAME) & seen).sum(), (found.by_t == SAME).sum(),
                   (wrong.any(-1) & seen).sum()]  # fmt: skip
    same, seen_same, by_t, misnamed = (round(float(c) / repetitions, 5) for c in counts)
    return {"same": same, "same_though_seen": seen_same, "t_same": by_t, "misnamed": misnamed,
            "unseen": round((1 - chance) ** seeds, 5), "bound": round(failure_bound(0, seeds), 4)}  # fmt: skip


def looks(
    least: int, most: int, kind: str, family: str, truth: str, ratio: float, repetitions: int
) -> dict[str, float]:
    """Verdicts of a sequential design, and how many seeds it took."""
    marks, correlation = FAMILIES[family]
    design, margin = Looks.between(least, most), np.full(marks, 1 / ratio)
    one = (np.arange(marks) == marks // 2) / ratio
    mean = {"zero": 0.0, "one": one, "all": 1 / ratio, "two margins": 2 / ratio}[truth]
    counts, rng = np.zeros(4), np.random.default_rng([least, most])
    for size in chunks(repetitions, most, marks):
        gap = mean + draw(rng, kind, (size, most, marks), correlation)
        verdict, used = np.zeros(size, np.int8), np.full(size, most)
        for index, seeds in enumerate(design.seeds):
            now = decide(gap[:, :seeds], margin, design.level(index)).verdict
            fresh = (verdict == UNDECIDED) & (now != UNDECIDED)
            verdict[fresh], used[fresh] = now[fresh], seeds
        fixed = decide(gap, margin).verdict
        counts += [(verdict == SAME).sum(), (verdict == DIFFERENT).sum(), used.sum(), (fixed != UNDECIDED).sum()]
    names = ("same", "different", "seeds", "fixed_decides")
    return {name: round(float(c) / repetitions, 5) for name, c in zip(names, counts, strict=True)}


def advice(kind: str, ratio: float, truth: float, family: str, first: int, repetitions: int) -> dict[str, float]:
    """Follow the advice of an undecided run with fresh seeds: is the second run decided?"""
    marks, correlation = FAMILIES[family]
    margin, rng = np.full(marks, 1 / ratio), np.random.default_rng(first)
    numbers, decided, asked = [], 0, 0
    while asked < repetitions:
        gap = truth / ratio + draw(rng, kind, (1, first, marks), correlation)
        if decide(gap, margin).verdict[0] != UNDECIDED:
            continue
        asked += 1
        number = seeds_to_decide(gap[0], margin)
        if number is not None:
            again = truth / ratio + draw(rng, kind, (20, number, marks), correlation)
            numbers.append(number)
            decided += float((decide(again, margin).verdict != UNDECIDED).mean())
    given = len(numbers)
    return {"advised": given / repetitions, "decided": round(decided / given, 3) if given else None,
            "median": float(np.median(numbers)) if given else None, "most": max(numbers, default=None)}  # fmt: skip


def cells(repetitions: int) -> dict[str, dict[str, tuple]]:
    """Table -> cell -> (function, arguments)."""
    made: dict[str, dict[str, tuple]] = {}
    made["errors"] = {
        f"{kind} | {family} | {truth} | {n}": (errors, kind, family, n, truth, repetitions)
        for kind in KINDS for family in FAMILIES for truth in ("one", "all") for n in SEEDS
        if not (truth == "one" and family == "1 mark")
    }  # fmt: skip
    made["mixed"] = {
        f"{shape} | {'right' if sign > 0 else 'left'} | {n}": (mixed, shape, sign, n, repetitions)
        for shape in ("one skewed mark", "alternating") for sign in (1, -1) for n in SEEDS
    }  # fmt: skip
    made["power"] = {
        f"{family} | {ratio:g} | {n}": (power, family, ratio, n, repetitions)
        for family in FAMILIES for ratio in (0.5, 1.0, 2.0) for n in (8, 10, 16, 20, 40)
    }  # fmt: skip
    made["bad"] = {
        f"{chance:g} | {size:g} | {n}": (bad_seeds, chance, size, n, repetitions)
        for chance in (0.05, 0.1) for size in (3.0, 10.0, 100.0) for n in SEEDS
    }  # fmt: skip
    wrong = [
        (kind, family, truth, 0.1)
        for kind in ("normal", "t3", "lognormal 1 right", "lognormal 1 left")
        for family, truth in (("1 mark", "all"), ("10 marks, r 0", "one"), ("10 marks, r 0", "all"))
    ]
    right = [
        ("normal", "10 marks, r 0.8", truth, ratio) for truth in ("zero", "two margins") for ratio in (0.5, 1.0, 2.0)
    ]
    made["looks"] = {
        f"{least}..{most} | {' | '.join(map(str, row))}": (looks, least, most, *row, repetitions)
        for least, most in DESIGNS
        for row in wrong + right
    }
    few = max(20, repetitions // 400)
    made["advice"] = {
        f"{kind} | {family} | {ratio:g} | {truth:g} | {first}": (advice, kind, ratio, truth, family, first, few)
        for kind, family, ratio, truth, first in [
            ("normal", "10 marks, r 0.8", 1.0, 0.0, 10), ("normal", "10 marks, r 0", 1.0, 0.0, 10),
            ("normal", "10 marks, r 0.8", 2.0, 0.0, 10), ("normal", "10 marks, r 0.8", 2.0, 0.0, 20),
            ("normal", "10 marks, r 0.8", 1.0, 0.5, 10), ("normal", "10 marks, r 0.8", 1.0, 2.0, 10),
            ("normal", "10 marks, r 0.8", 2.0, 2.0, 10), ("t3", "10 marks, r 0.8", 1.0, 0.0, 10),
            ("lognormal 1 right", "10 marks, r 0.8", 0.5, 0.0, 10), ("normal", "10 marks, r 0.8", 1.0, 1.0, 20),
        ]
    }  # fmt: skip
    return made


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def grid(done: dict[str, dict], cell: Callable[[dict], str], heads: list[str]) -> list[list[str]]:
    """Rows by everything but the last part of a cell's name, columns by that part."""
    rows: dict[str, dict[str, str]] = {}
    for name, found in done.items():
        row, _, column = name.rpartition(" | ")
        rows.setdefault(row, {})[column] = cell(found)
    columns = list(next(iter(rows.values())))
    head = [*heads, *(f"n = {column}" for column in columns)]
    return [head, *([*row.split(" | "), *(cells[c] for c in columns)] for row, cells in rows.items())]


def flat(done: dict[str, dict], heads: list[str]) -> list[list[str]]:
    """One row a cell."""
    names = list(next(iter(done.values())))
    rows = [
        [*name.split(" | "), *(f"{v:g}" if isinstance(v, int | float) else "" for v in found.values())]
        for name, found in done.items()
    ]
    return [[*heads, *(name.replace("_", " ") for name in names)], *rows]


def worst_truth(done: dict[str, dict]) -> dict[str, dict]:
    """The larger error of the two truths."""
    merged: dict[str, dict] = {}
    for name, found in done.items():
        kind, family, _, seeds = name.split(" | ")
        other = merged.setdefault(f"{kind} | {family} | {seeds}", found)
        merged[f"{kind} | {family} | {seeds}"] = {key: max(value, other[key]) for key, value in found.items()}
    return merged


def both(found: dict) -> str:
    """SAME / DIFFERENT in percent, the t interval's in brackets."""
    new, old = ("/".join(percent(found[f"{by}{name}"]) for name in ("same", "different")) for by in ("", "t_"))
    return f"{new} ({old})"


def markdown(tables: dict[str, dict]) -> str:
    """The tables as pages print them; the first three in percent, in brackets those of plain t intervals."""
    made = {
        "errors": ("False SAME / false DIFFERENT", lambda d: grid(worst_truth(d), both, ["gaps", "marks"])),
        "mixed": ("Marks of unlike shapes", lambda d: grid(d, both, ["shapes", "tail"])),
        "power": (
            "SAME at a gap of 0 / DIFFERENT at 2 margins",
            lambda d: grid(d, both, ["marks", "deviation/margin"]),
        ),
        "bad": ("Rare bad seeds", lambda d: flat(d, ["chance", "margins", "n"])),
        "looks": ("Sequential designs", lambda d: flat(d, ["design", "gaps", "marks", "true gap", "deviation/margin"])),
        "advice": (
            "Advice followed",
            lambda d: flat(d, ["gaps", "marks", "deviation/margin", "gap", "first n"]),
        ),
    }
    parts = []
    for table, done in tables.items():
        title, layout = made[table]
        head, *rows = layout(done)
        lines = [head, ["---"] * len(head), *rows]
        parts.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=20_000)
    parser.add_argument("--table", action="append", help="errors, mixed, power, bad, looks or advice; all unless given")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables: dict[str, dict] = {}
    if options.json and options.json.exists():
        old = json.loads(options.json.read_text())
        tables = old["tables"] if old["repetitions"] == options.repetitions else {}
    data = {
        "repetitions": options.repetitions,
        "level": {"same": LEVEL.same, "different": LEVEL.different},
        "seeds_for_power": {f"{ratio:g}": seeds_for_power(ratio) for ratio in (0.5, 1.0, 2.0)},
        "default_seeds": DEFAULT_SEEDS,
        "most_advised": MOST_SEEDS,
        "tables": tables,
    }
    for table, rows in cells(options.repetitions).items():
        if options.table and table not in options.table:
            continue
        done = tables.setdefault(table, {})
        for name, (count, *arguments) in rows.items():
            if name in done:
                continue
            done[name] = count(*arguments)
            if options.json:
                write_result(options.json.parent, data, options.json.name)
    print(markdown(tables))


if __name__ == "__main__":
    main()
