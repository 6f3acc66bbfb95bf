"""isobatch doctor: what is installed, what is missing for which command, and where runs would compute."""

import argparse
import json
import os
import platform
import sys
from typing import Any

from isobatch.cli.options import say
from isobatch.installed import EXTRAS, VERSION, announced, extras, need

NEEDS: dict[str, tuple[str, ...]] = {
    "plan RECIPE.toml, plan --html": (),
    "plan FILE of another stack": ("formats",),
    "plan --plot": ("verify",),
    "verify run, verify characteristic": ("torch", "verify"),
    "verify split": ("torch",),
    "noise measure, sweep, branch, fit, advise": ("torch", "verify"),
    "train": ("torch",),
    "train --log tensorboard": ("torch", "tensorboard"),
    'task = "digits"': ("torch", "tasks"),
    "optimizers lars, lamb, adamp": ("torch", "optimizers"),
    "isobatch.integrations.hf": ("torch", "transformers"),
    "isobatch.integrations.lightning": ("torch", "lightning"),
    "isobatch.integrations.accelerate": ("torch", "accelerate"),
    "--on dask://HOST:PORT": ("torch", "dask"),
    "--on ray": ("torch", "ray"),
    "--on slurm:partition=NAME": ("torch", "slurm"),
    "completion SHELL": ("completion",),
}
"""What a user asks for -> the extras that it takes."""
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def add(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the sub-parsers.
    """
    text = "show versions, extras, threads and devices, and what is missing for which command"
    command = commands.add_parser("doctor", help=text, description=text)
    command.add_argument("--json", action="store_true", help="print JSON for programs")
    command.set_defaults(call=doctor)


def doctor(chosen: argparse.Namespace) -> int:
    """Print what this installation can do.

    Args:
        chosen: parsed arguments.

    Returns:
        0, whatever is missing.
    """
    found = examined()
    if chosen.json:
        say(json.dumps(found, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, value in {**found["versions"], **found["machine"]}.items():
        console.print(Text(f"{name}: {value}"))
    table = Table("for", "state", title="commands and their extras", title_justify="left", pad_edge=False)
    for command, missing in found["commands"].items():
        line = f'pip install "isobatch[{",".join(missing)}]"' if missing else "ready"
        table.add_row(Text(command), Text(line, style="yellow" if missing else "green"))
    console.print(table)
    for name in ("studies", "tasks"):
        line = ", ".join(found[name]) or "none; they come with: pip install isobatch-studies"
        console.print(Text(f"{name} of installed distributions: {line}"))
    return 0


def examined() -> dict[str, Any]:
    """Return versions, machine, missing extras by command, and what other distributions bring.

    Returns:
        Plain values.
    """
    missing = extras()
    return {
        "versions": {"isobatch": VERSION, "python": platform.python_version(), **_versions()},
        "machine": _machine(missing),
        "commands": {command: [one for one in needs if missing[one]] for command, needs in NEEDS.items()},
        "extras": missing,
        "studies": list(announced("isobatch.studies")),
        "tasks": list(announced("isobatch.tasks")),
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for module in dict.fromkeys(("pydantic", "rich", *(name for names in EXTRAS.values() for name in names))):
        try:
            found[module] = metadata.version(_DISTRIBUTIONS.get(module, module))
        except metadata.PackageNotFoundError:
            found[module] = "not installed"
    return found


def _machine(missing: dict[str, list[str]]) -> dict[str, str]:
    """Where runs compute: cores, threads, devices; torch is loaded to say it, and may fail to load."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none
    cores = os.cpu_count() if affinity is None else len(affinity(0))
    found = {"platform": platform.platform(terse=True), "executable": sys.executable, "cores": str(cores)}
    found["OMP_NUM_THREADS"] = os.environ.get(
        "OMP_NUM_THREADS", "not set: torch takes every core; workers take one each"
    )
    if missing["torch"]:
        return found
    try:
        need("torch")
        import torch
    except (ImportError, OSError) as error:
        return found | {"torch": f"installed, but does not load: {error}"}
    found["threads of torch"] = str(torch.get_num_threads())
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.cuda.is_available():
        found["cuda"] = f"{torch.version.cuda}: {', '.join(gpus)}"
    else:
        found["cuda"] = f"none (torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU'})"
    if not missing["verify"]:
        from isobatch.errors import InputError
        from isobatch.verify.store import cache

        try:
            found["finished runs without --out"] = str(cache())
        except InputError as error:
            found["finished runs without --out"] = str(error)
    return found
