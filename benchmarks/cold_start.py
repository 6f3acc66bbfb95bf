"""How long `isobatch plan` takes from a cold start, and over `from pydantic import BaseModel; import rich.table`.

python benchmarks/cold_start.py [PYTHON]: of an environment with the base install and [formats]; interleaved, best of
ten.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = ["-c", "from pydantic import BaseModel; import rich.table"]
OWN = ("--batch-size", "64")
OTHERS = {
    ROOT / "tests/formats/files/hf/qwen_full_sft.yaml": ("--devices", "8->1", "--set", "data_size=1091"),
    ROOT / "tests/formats/files/dinov2/vitl16_short.yaml": ("--devices", "32->8"),
}
"""Files of other stacks, in YAML, which take ruamel.yaml as well."""


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


def ratio(python: str, example: Path, words: tuple[str, ...] = OWN, rounds: int = 10) -> dict[str, float]:
    plan = ["-m", "isobatch", "plan", str(example), *words]
    pairs = [(seconds([python, *BASE]), seconds([python, *plan])) for _ in range(rounds)]
    base, whole = (min(values) for values in zip(*pairs, strict=True))
    return {"base": round(base, 3), "plan": round(whole, 3), "ratio": round(whole / base, 2)}


def main() -> None:
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    found = {path.name: ratio(python, path) for path in sorted((ROOT / "examples").glob("*.toml"))}
    found |= {path.name: ratio(python, path, words) for path, words in OTHERS.items()}
    for name, row in found.items():
        print(f"{name:24} {row['plan']:.3f} s, {row['ratio']:.2f} times the base imports ({row['base']:.3f} s)")
    (ROOT / "benchmarks" / "results" / "cold_start.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
