"""The operating characteristic of `verify run` on real tasks: verdicts of fresh seeds when the truth is planted.

Reference and planted arms at one batch, so that no rule is in the way: the reference itself under another sample order
(A/A), the learning rate x 1.3, the half-life x 1.5. Every verdict has seeds of its own.

python -m benchmarks.characteristic --out out/characteristic
"""

import argparse
import json
from pathlib import Path

from isobatch import Recipe, verify
from isobatch.report import dump, write
from isobatch.units import decay_at
from isobatch.verify.equivalence import DEFAULT_SEEDS, LEVEL

RESULT = Path(__file__).parent / "results" / "characteristic.json"
COSINE = {"length": "10 epochs", "warmup": "1 epoch", "shape": "cosine"}
TASKS = {
    "digits": {"task": "digits", "data_size": 1437, "batch": {"size": 32}, "optimizer": {"name": "sgd", "lr": 0.08},
               "schedule": {"length": "6 epochs", "warmup": "1 epoch", "shape": "cosine"}, "ema": {"decay": 0.99}},
    "text": {"task": "text", "data_size": 8192, "batch": {"size": 16},
             "optimizer": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.99], "weight_decay": 0.1},
             "schedule": {"length": "2048 samples", "warmup": "256 samples", "shape": "cosine"},
             "ema": {"decay": 0.98}, "options": {"width": 16, "layers": 1}},
    "quadratic": {"task": "quadratic", "data_size": 256, "batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.01},
                  "schedule": {"length": "2048 samples"}, "ema": {"decay": 0.98},
                  "options": {"dimension": 4, "noise": 0.01}},
    "wine": {"task": "examples.tabular:wine", "data_size": 133, "batch": {"size": 8},
             "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}, "schedule": COSINE,
             "ema": {"decay": 0.98}},
    "cancer": {"task": "examples.tabular:cancer", "data_size": 456, "batch": {"size": 16},
               "optimizer": {"name": "sgd", "lr": 0.02}, "schedule": COSINE, "ema": {"decay": 0.98}},
    "diabetes": {"task": "examples.tabular:diabetes", "data_size": 353, "batch": {"size": 16},
                 "optimizer": {"name": "sgd", "lr": 0.004, "momentum": 0.9}, "schedule": COSINE,
                 "ema": {"decay": 0.98}},
}  # fmt: skip
SLOW = {"text": 5}
"""Verdicts at most, of tasks whose runs take seconds."""


def planted(recipe: Recipe) -> dict[str, Recipe]:
    """Arms whose truth is known."""
    faster = recipe.optimizer.model_copy(update={"lr": 1.3 * recipe.optimizer.lr})
    longer = decay_at(1.5 * recipe.half_life, recipe.batch.size)
    return {
        "A/A": recipe,
        "lr x1.3": recipe.model_copy(update={"optimizer": faster}),
        "half-life x1.5": recipe.model_copy(update={"ema": recipe.ema.model_copy(update={"decay": longer})}),
    }


def verdicts(name: str, count: int, seeds: int, workers: int | None, out: Path) -> dict:
    """Train all seeds of a task once, and judge them in groups that share none."""
    recipe = Recipe.parse(TASKS[name])
    result = verify.run(recipe, recipe.batch.size, seeds=count * seeds, ablate=(), extra=planted(recipe),
                        workers=workers, out=out / name)  # fmt: skip
    rows: dict = {}
    for group in range(count):
        chosen = slice(group * seeds, (group + 1) * seeds)
        curves = {arm: runs[chosen] for arm, runs in result.curves.items()}
        for arm, models in result.rule.judge(curves, LEVEL).items():
            for model, test in models.items():
                row = rows.setdefault(f"{arm} | {model}", {"verdicts": [], "worst": [], "deviation": [], "reasons": []})
                row["verdicts"].append(str(test.verdict))
                row["worst"].append(round(test.worst, 4))
                row["deviation"].append(round(float(test.gaps.gap.std(0, ddof=1).max()), 4))
                row["reasons"] += test.reasons
    return {"recipe": TASKS[name], "margins": result.margins, "rows": rows}


def table(data: dict) -> str:
    """Verdicts over all tasks as Markdown."""
    lines = ["| task | planted | model | SAME | UNDECIDED | DIFFERENT | mean worst gap | largest deviation |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for task, found in data["tasks"].items():
        for key, row in found["rows"].items():
            arm, model = key.split(" | ")
            counts = [row["verdicts"].count(v) for v in ("SAME", "UNDECIDED", "DIFFERENT")]
            worst = sum(row["worst"]) / len(row["worst"])
            numbers = " | ".join(map(str, counts))
            lines.append(f"| {task} | {arm} | {model} | {numbers} | {worst:+.3f} | {max(row['deviation']):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/characteristic"), help="where finished runs are kept")
    parser.add_argument("--verdicts", type=int, default=10, help="of every task and arm (10)")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help=f"of one verdict ({DEFAULT_SEEDS})")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--tasks", default=",".join(TASKS), help="by comma")
    parser.add_argument("--write", type=Path, help=f"where the result goes, such as {RESULT.name}")
    chosen = parser.parse_args()
    found = {}
    for name in chosen.tasks.split(","):
        found[name] = verdicts(
            name, min(chosen.verdicts, SLOW.get(name, chosen.verdicts)), chosen.seeds, chosen.workers, chosen.out
        )
        print(table({"tasks": {name: found[name]}}), flush=True)
    data = {"seeds": chosen.seeds, "tasks": found}
    if chosen.write:
        write(chosen.write, dump(data))
    print(json.dumps({"tasks": len(found)}))


if __name__ == "__main__":
    main()
