"""Momentum kept or by the sample clock, beta1 kept or a power: which is closer, by the two numbers a rule can know.

    python benchmarks/momentum_auto.py --json benchmarks/results/momentum-auto.json

- horizon: kappa*B/(1-mu) over the samples of the run, what the kept momentum remembers of it.
- stability: the rate of the sample clock over the largest that it tolerates, kappa*eta*(1-mu')/(1-mu) over
  l0*(1+mu'); l0 = 2/a is the largest stable rate of plain SGD, found here by doubling on each task.

Gaps are those of log loss (raw weights), the worst of ten marks. The quadratic is exact; digits and text are trained.
Finished cases are read from the file and not run again.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from isobatch import InputError, NonFiniteError, Recipe, verify
from isobatch.plan import Settings, base, scaled
from isobatch.report import write_result
from isobatch.tasks import make_run
from isobatch.tasks.quadratic import curvatures, moments
from isobatch.train import Trainer

KAPPAS = (4, 8, 16)
DEAD = 2.0
"""A gap in log loss beyond which a run is called dead."""
HORIZONS = (0.0, 0.001, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
STABLE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, math.inf)
TEXT = {"task": "text", "data_size": 8192, "batch": {"size": 4}, "options": {"width": 16, "layers": 1}}
DIGITS = {"task": "digits", "data_size": 1437, "batch": {"size": 16}}
TASKS = {"digits": DIGITS, "text": TEXT}
SGD = (
    ("digits", 0.9, (0.005, 0.02, 0.05), ("8 epochs", "30 epochs", "120 epochs")),
    ("digits", 0.98, (0.001, 0.004), ("30 epochs", "120 epochs")),
    ("text", 0.9, (0.02, 0.08, 0.3), ("2048 samples",)),
    ("text", 0.9, (0.02,), ("8192 samples",)),
)
ADAM = (
    ("digits", 0.9, (1e-3,), ("8 epochs", "30 epochs", "120 epochs")),
    ("digits", 0.98, (1e-3,), ("30 epochs", "120 epochs")),
    ("text", 0.9, (1e-3,), ("2048 samples",)),
    ("text", 0.98, (1e-3,), ("2048 samples",)),
)


def made(task: str, optimizer: dict, length: str) -> Recipe:
    schedule = {"length": length, "shape": "cosine"}
    return Recipe.parse({**TASKS[task], "optimizer": optimizer, "schedule": schedule})


def plain_limit(task: str) -> float:
    """Largest rate, to a factor of the fourth root of 2, at which plain SGD at a large batch still learns."""
    lr, length = 0.1, {"digits": "20 epochs", "text": "4096 samples"}[task]
    while True:
        recipe = made(task, {"name": "sgd", "lr": lr}, length).at(4 * TASKS[task]["batch"]["size"]).recipe
        trainer = Trainer(make_run(recipe, 0), fixed(recipe, lr * 2**0.25))
        first = trainer.evaluate()["raw"]["loss"]
        try:
            trainer.train_to(trainer.length)
        except NonFiniteError:
            return lr
        last = trainer.evaluate()["raw"]["loss"]
        if not last < first:
            return lr
        lr *= 2**0.25


def fixed(recipe: Recipe, lr: float) -> Recipe:
    schedule = recipe.schedule.model_copy(update={"shape": "constant"})
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": lr}), "schedule": schedule})


def known(recipe: Recipe, kappa: int, limit: float | None) -> dict:
    """The two numbers: horizon over run, and rate over stability limit of both forms."""
    o, length = recipe.optimizer, recipe.staircase().length
    mu = o.momentum or o.betas[0]
    found = {"horizon": kappa * recipe.batch.size / (1 - mu) / length}
    if limit is not None:
        new = mu**kappa
        found["stability"] = kappa * o.lr * (1 - new) / (1 - mu) / (limit * (1 + new))
        found["stability_kept"] = kappa * o.lr / (limit * (1 + mu))
    return found


def trained(name: str, recipe: Recipe, forms: dict, limit: float | None, seeds: int) -> list[dict]:
    """Both forms at every kappa that leaves enough steps, beside one reference."""
    length = math.floor(recipe.staircase().length)
    kappas = [kappa for kappa in KAPPAS if 20 * kappa * recipe.batch.size <= length]
    extra = {f"{form} x{kappa}": at(recipe, kappa) for kappa in kappas for form, at in forms.items()}
    largest, some = recipe.batch.size * kappas[-1], seeds // 2
    result = verify.run(recipe, largest, seeds=seeds, ablate=(), extra=extra, allow_failures=some, workers=1)
    found = []
    for kappa in kappas:
        tests = {form: result.table[f"{form} x{kappa}"]["raw"] for form in forms}
        gaps = {form: round(abs(test.worst), 4) if math.isfinite(test.worst) else None for form, test in tests.items()}
        verdicts = {form: str(test.verdict) for form, test in tests.items()}
        found.append({"case": name, "kappa": kappa, **known(recipe, kappa, limit), "gaps": gaps, "verdicts": verdicts})
        print(found[-1], flush=True)
    return found


def by_momentum(form: str):
    def at(recipe: Recipe, kappa: int) -> Recipe:
        rules = recipe.rules.model_copy(update={"momentum": form})
        return recipe.model_copy(update={"rules": rules}).at(recipe.batch.size * kappa).recipe

    return at


def beta1_kept(recipe: Recipe, kappa: int) -> Recipe:
    after = recipe.at(recipe.batch.size * kappa).recipe
    betas = (recipe.optimizer.betas[0], after.optimizer.betas[1])
    return after.model_copy(update={"optimizer": after.optimizer.model_copy(update={"betas": betas})})


def beta1_power(recipe: Recipe, kappa: int) -> Recipe:
    after = recipe.at(recipe.batch.size * kappa).recipe
    betas = (recipe.optimizer.betas[0] ** kappa, after.optimizer.betas[1])  # without its floor
    return after.model_copy(update={"optimizer": after.optimizer.model_copy(update={"betas": betas})})


def quadratic() -> list[dict]:
    """Exact gaps on the noisy quadratic: momenta, rates up to the limit, lengths, noise levels."""
    found = []
    for mu in (0.5, 0.9, 0.98):
        for share in (0.002, 0.01, 0.05, 0.2):  # of the limit, at the reference batch
            for steps in (160, 640, 2560):
                for noise in (0.1, 1.0, 10.0):
                    found += _quadratic(mu, share, steps, noise)
    return found


def _quadratic(mu: float, share: float, steps: int, noise: float) -> list[dict]:
    limit, length, batch = 2.0, steps * 4, 4  # the largest curvature is 1
    values = {"batch": {"size": batch}, "optimizer": {"name": "sgd", "lr": share * limit * (1 + mu), "momentum": mu}}
    recipe = Recipe.parse({**values, "schedule": {"length": f"{length} samples"}})
    truth = _curve(base(recipe), noise, length)
    found = []
    for kappa in KAPPAS:
        if 20 * kappa * batch > length:
            continue
        gaps = {}
        for form in ("sample-clock", "keep"):
            rules = recipe.rules.model_copy(update={"momentum": form})
            moved = scaled(recipe.model_copy(update={"rules": rules}), batch * kappa)
            gap = np.abs(_curve(moved, noise, length) - truth).max()
            gaps[form] = round(float(gap), 4) if np.isfinite(gap) and gap < 100 else None
        case = f"quadratic mu {mu:g} share {share:g} steps {steps} noise {noise:g}"
        found.append({"case": case, "kappa": kappa, **known(recipe, kappa, limit), "gaps": gaps})
    return found


def _curve(settings: Settings, noise: float, length: int) -> np.ndarray:
    """Log of the expected loss at ten marks, on whole steps of the largest batch."""
    a, found, grid = curvatures(), [], 64
    marks = [length * mark // 10 // grid * grid or grid for mark in range(1, 11)]
    with np.errstate(over="ignore", invalid="ignore"):
        for mark in marks:
            mean, cov = moments(settings, a, noise, mark)
            found.append(0.5 * (a * (mean[:, 0] ** 2 + cov[:, 0, 0])).sum())
        return np.log(np.array(found))


def regret(row: dict, horizon: float, stable: float) -> float:
    """What a choice by two thresholds loses against the better of both forms, in log loss."""
    clock, kept = (DEAD if gap is None else min(gap, DEAD) for gap in row["gaps"].values())
    keep = row["horizon"] <= horizon or row.get("stability", 0.0) > stable
    return (kept if keep else clock) - min(clock, kept)


def thresholds(rows: list[dict]) -> list[tuple[float, float, float]]:
    """Mean regret of a grid of thresholds, each task weighing alike: (horizon, stability, regret)."""
    tasks: dict[str, list[dict]] = {}
    for row in rows:
        if "gaps" in row:
            tasks.setdefault(row["case"].split()[0], []).append(row)
    found = []
    for horizon in HORIZONS:
        for stable in STABLE:
            each = [np.mean([regret(row, horizon, stable) for row in of]) for of in tasks.values()]
            found.append((horizon, stable, float(np.mean(each))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    file = arguments.json
    data = json.loads(file.read_text()) if file.exists() else {"limits": {}, "sgd": [], "adam": [], "quadratic": []}

    def keep(**more: object) -> None:
        data.update(more)
        write_result(file.parent, {key: data[key] for key in ("limits", "sgd", "adam", "quadratic")}, file.name)

    for task in TASKS:
        if task not in data["limits"]:
            keep(limits=data["limits"] | {task: plain_limit(task)})
            print(task, data["limits"][task], flush=True)
    if not data["quadratic"]:
        keep(quadratic=quadratic())
    momentum = {form: by_momentum(form) for form in ("sample-clock", "keep")}
    beta1 = {"power": beta1_power, "keep": beta1_kept}
    for kind, grid, forms in (("adam", ADAM, beta1), ("sgd", SGD, momentum)):
        for task, mu, rates, lengths in grid:
            for lr, length in ((lr, length) for length in lengths for lr in rates):
                name = f"{task} mu {mu:g} lr {lr:g} {length}"
                if any(row["case"] == name for row in data[kind]):
                    continue
                own = {"momentum": mu} if kind == "sgd" else {"betas": (mu, 0.999)}
                recipe = made(task, {"name": "sgd" if kind == "sgd" else "invariant-adamw", "lr": lr, **own}, length)
                limit = data["limits"][task] if kind == "sgd" else None
                try:
                    rows = trained(name, recipe, forms, limit, arguments.seeds)
                except InputError as error:  # a reference that fails is no reference
                    rows = [{"case": name, "refused": str(error)}]
                keep(**{kind: data[kind] + rows})
    print("horizon, stability, mean regret in log loss: the best ten pairs of SGD's momentum, then Adam's beta1")
    for rows in (data["sgd"] + data["quadratic"], data["adam"]):
        for horizon, stable, mean in sorted(thresholds(rows), key=lambda found: found[2])[:10]:
            print(f"{horizon:g} {stable:g} {mean:.4f}")


if __name__ == "__main__":
    main()
