"""Which form of the momentum and beta rules stays closest to the reference at kappa 4 and 16?

    python benchmarks/forms.py --only digits --json benchmarks/results/forms.json
    python benchmarks/forms.py --only text-muon --only text-lion --seeds 20 --out docs/results

Rows: case, contender, worst gap in log loss (averaged and raw model), verdicts. The defaults of `[rules]` follow it.
"""

import argparse
import math
from pathlib import Path

from isobatch import Recipe, verify
from isobatch.report import write_result
from isobatch.verify.page import write_report

FORMS = {"momentum": ("sample-clock", "keep"), "betas": ("power", "linear", "keep")}
CASES = (
    ("examples/digits-momentum.toml", "momentum", 4),
    ("examples/digits-momentum.toml", "momentum", 16),
    ("examples/digits-adamw.toml", "betas", 4),
    ("examples/digits-adamw.toml", "betas", 16),
    ("examples/text.toml", "betas", 4),
    ("examples/text.toml", "betas", 16),
    ("examples/text-muon.toml", "momentum", 4),
    ("examples/text-lion.toml", "betas", 4),
)


def rows(path: str, setting: str, kappa: int, seeds: int, workers: int | None, out: Path | None) -> list[dict]:
    recipe = Recipe.load(path)
    batch = recipe.batch.size * kappa
    extra, refused = {}, []
    for form in FORMS[setting]:
        chosen = recipe.model_copy(update={"rules": recipe.rules.model_copy(update={setting: form})})
        try:
            extra[f"{setting} = {form}"] = chosen.at(batch).recipe
        except ValueError as error:
            refused.append({"case": f"{path} x{kappa}", "contender": f"{setting} = {form}", "refused": str(error)})
    result = verify.run(recipe, batch, seeds=seeds, ablate=("unscaled",), extra=extra, workers=workers)
    if out is not None:
        folder = out / f"{Path(path).stem}-{kappa}x"
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder, verify.to_dict(result))
    found = []
    for name in (*extra, "unscaled"):
        tests = result.table[name]
        worst = {model: round(test.worst, 4) for model, test in tests.items()}
        found.append(
            {
                "case": f"{path} x{kappa}",
                "contender": name,
                "ratio": round(math.exp(abs(worst["average"])), 4),
                "worst": worst,
                "verdicts": {model: str(test.verdict) for model, test in tests.items()},
                "seeds": seeds,
            }
        )
        print(found[-1], flush=True)
    return found + refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the result and the picture of each case")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--only", action="append", help="cases whose name holds this, such as digits")
    arguments = parser.parse_args()
    table: list[dict] = []
    for case in CASES:
        if any(part in f"{case[0]} x{case[2]}" for part in arguments.only or [""]):
            table += rows(*case, arguments.seeds, arguments.workers, arguments.out)
        if arguments.json:
            write_result(arguments.json.parent, {"rows": table}, arguments.json.name)


if __name__ == "__main__":
    main()
