"""Is a step of B tokens the same run in one pass and in four of B/4, on ragged text, and is the plan at 4 x B?

    python benchmarks/tokens.py --out docs/results

One comparison where the clock counts real tokens, one where it counts padding as well. Arms beside the plan at four
times the tokens: the reference in four passes a step, weighted by their tokens.
"""

import argparse
from pathlib import Path

from isobatch import Recipe, verify
from isobatch.verify.page import write_report

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "text-tokens.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for padded in (False, True):
        recipe = Recipe.load(RECIPE)
        size = recipe.batch.size
        recipe = recipe.model_copy(update={"options": recipe.options | {"padded": padded}})
        passes = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"micro": size // 4})})
        result = verify.run(
            recipe,
            4 * size,
            seeds=arguments.seeds,
            ablate=("unscaled",),
            extra={"4 x B/4": passes},
            workers=arguments.workers,
        )
        for name, models in result.table.items():
            print(f"padded={padded} {name}:", {m: (str(t.verdict), round(t.worst, 4)) for m, t in models.items()})
        if arguments.out is not None:
            folder = arguments.out / ("text-tokens-padded" if padded else "text-tokens")
            folder.mkdir(parents=True, exist_ok=True)
            write_report(folder, verify.to_dict(result))


if __name__ == "__main__":
    main()
