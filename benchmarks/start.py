"""How long `isobatch --help` and `isobatch plan` take in fresh environments, and which packages they load.

Run from the repository's root: python benchmarks/start.py base=PYTHON torch=PYTHON all=PYTHON --json FILE [--rounds 10]
One interpreter a set of extras. All commands of all environments take turns in random order; beside them an empty
program (`pass`) and `from pydantic import BaseModel; import rich.table`, the base install's own imports. What is loaded
is read from `python -X importtime`: packages outside the standard library, and the slowest of them.
"""

import argparse
import datetime
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = ["-c", "from pydantic import BaseModel; import rich.table"]
YAML = "tests/formats/files/hf/qwen_full_sft.yaml"
COMMANDS = {
    "pass": ["-c", "pass"],
    "base imports": BASE,
    "--help": ["-m", "isobatch", "--help"],
    "plan --help": ["-m", "isobatch", "plan", "--help"],
    "plan of TOML": ["-m", "isobatch", "plan", "examples/digits.toml", "--batch-size", "64"],
    "plan of YAML": ["-m", "isobatch", "plan", YAML, "--devices", "8->1", "--set", "data_size=1091"],
}
NEEDS = {"plan of YAML": "ruamel"}
TIMED = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|\s*(\S+)")


def run(words: list[str]) -> subprocess.CompletedProcess:
    # a checkout beside the environment must not stand in for what is installed there
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT, env=known)


def seconds(words: list[str]) -> float:
    return both(words)[0]


def both(words: list[str]) -> tuple[float, float]:
    """Wall time of a program and its processor time, on which other programs have less of an influence."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, spent


def ratio(python: str, example: Path, rounds: int = 10) -> dict[str, float]:
    """Best wall time of a plan and of the base install's imports, in turns, and the one over the other."""
    plan = ["-m", "isobatch", "plan", str(example), "--batch-size", "64"]
    pairs = [(seconds([python, *BASE]), seconds([python, *plan])) for _ in range(rounds)]
    base, whole = (min(values) for values in zip(*pairs, strict=True))
    return {"base": round(base, 3), "plan": round(whole, 3), "ratio": round(whole / base, 2)}


def loaded(python: str, words: list[str]) -> dict[str, float]:
    """Milliseconds of the import of each package outside the standard library, what it pulls in included."""
    found: dict[str, float] = {}
    for line in run([python, "-X", "importtime", *words]).stderr.splitlines():
        match = TIMED.match(line)
        name = match[3].split(".")[0] if match else ""
        if name and name not in sys.stdlib_module_names and not name.startswith("__"):
            found[name] = max(found.get(name, 0.0), int(match[2]) / 1000)
    return {name: round(took, 1) for name, took in sorted(found.items(), key=lambda pair: -pair[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    pythons = dict(word.split("=", 1) for word in given.environments)
    has = {name: {m for m in set(NEEDS.values()) if _there(python, m)} for name, python in pythons.items()}
    cases = [(name, what) for name in pythons for what in COMMANDS if NEEDS.get(what) in {None, *has[name]}]
    times: dict[tuple[str, str], list[tuple[float, float]]] = {case: [] for case in cases}
    order = random.Random(0)
    for turn in range(given.rounds + 1):
        for name, what in order.sample(cases, len(cases)):
            took = both([pythons[name], *COMMANDS[what]])
            if turn:  # the first turn brings the files into memory
                times[name, what].append(took)
    rows = []
    for (name, what), values in times.items():
        wall, spent = zip(*values, strict=True)
        row = {"environment": name, "command": what, "best": round(min(wall), 3)}
        row |= {"median": round(statistics.median(wall), 3), "processor": round(min(spent), 3)}
        rows.append(row | {"packages": loaded(pythons[name], COMMANDS[what])})
        print(
            f"{name:6} {what:14} best {row['best']:.3f} s, median {row['median']:.3f} s, processor {row['processor']} s"
        )
    if given.json:
        about = {"date": datetime.date.today().isoformat(), "python": sys.version.split()[0], "rounds": given.rounds}
        load = [round(value, 1) for value in os.getloadavg()]
        given.json.write_text(json.dumps({**about, "load": load, "rows": rows}, indent=1) + "\n")


def _there(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


if __name__ == "__main__":
    main()
