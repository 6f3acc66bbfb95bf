"""Fresh virtual environments that hold what the metadata ask for, and nothing else.

The files are linked from the environment that runs the tests, so that no network is needed.
"""

import os
import re
import subprocess
import tomllib
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(requirements, extras=("",)):
    """The distributions that requirements bring, those that they bring, and so on."""
    found, todo = set(), [(Requirement(line), extras) for line in requirements]
    while todo:
        requirement, asked = todo.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in asked):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        found.add(name)
        own = metadata.distribution(name).requires or []
        todo += [(Requirement(line), ("", *requirement.extras)) for line in own]
    return found


def environment(folder, *extras):
    """Make an environment with the package and some extras; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    more = [line for name in extras for line in PROJECT["optional-dependencies"][name]]
    for name in sorted(wanted(PROJECT["dependencies"] + more)):
        one = metadata.distribution(name)
        for top in {file.parts[0] for file in one.files or () if file.parts[0] != ".."}:
            source, target = Path(str(one.locate_file(top))), site / top
            if source.exists() and not target.exists() and top != "__pycache__":
                target.symlink_to(source, target_is_directory=source.is_dir())
    (site / "isobatch.pth").write_text(f"{ROOT / 'src'}\n")
    return folder / "bin" / "python"


def call(python, *words, **options):
    """Run the command line there; warnings are errors, nothing of this process's paths is handed on."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [python, "-W", "error", *words], capture_output=True, text=True, check=False, cwd=ROOT, env=clean, **options
    )
