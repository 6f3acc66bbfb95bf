"""What does an adversarial update cost, and how much of it can another process hide?

    python benchmarks/adversary.py --json benchmarks/results/adversary.json

Two processes of one thread each (gloo). Interleaved blocks of updates of batch 400 by a small CNN: clean; on the same
800 rows with directions at hand; with directions made before the update; with directions made by the other process.
Figures are medians over rounds of ratios within a round; the load of the machine stands beside them.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch

import isobatch
from isobatch_studies.concurrent_adversarial import overlap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=400)
    chosen = parser.parse_args()
    job = overlap.Timing(chosen.rounds, chosen.steps, chosen.width, chosen.batch)
    found = overlap.summary(overlap.timed(job))
    versions = {"isobatch": isobatch.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = {"date": date, "machine": platform.processor() or platform.machine(), "versions": versions, **found}
    print({key: value for key, value in result.items() if key != "rounds_by_arm"}, flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
