"""Wheel and sdist as people get them: built from a clean copy, installed into fresh environments, typed from outside.

Needs a package index.
"""

import email
import shutil
import subprocess
import tarfile
import tomllib
import venv
import zipfile

import pytest
from tests.install.environments import ROOT, call

from isobatch.installed import EXTRAS, VERSION

pytestmark = pytest.mark.slow
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
[TY] = [line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("ty==")]
CLASSIFIED = ("Typing :: Typed", "Programming Language :: Python :: 3.13", "Operating System :: MacOS")

USER = """
from typing import assert_type

import isobatch as ib
from isobatch.plan import Row

recipe = ib.Recipe.parse({"batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}})
assert_type(recipe, ib.Recipe)
plan = recipe.at(batch_size=32)
assert_type(plan, ib.Plan[ib.Recipe])
assert_type(plan.recipe.optimizer.lr, float)
assert_type(plan.row("optimizer.lr"), Row)
assert_type(ib.units.half_life(0.999, 8), float)
"""
WRONG = """
import isobatch as ib

recipe = ib.Recipe.load("recipe.toml")
recipe.at(batch_size="many")
recipe.optimiser
ib.Recip
"""


def environment(folder):
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def install(python, *words):
    options = ("-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"))
    done = subprocess.run(
        [python, "-m", "pip", "install", *options, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both distributions: sdists from a copy, wheels from the sdists."""
    folder = tmp_path_factory.mktemp("built")
    skip = shutil.ignore_patterns(".git", ".venv", "out", "dist", "__pycache__", "results", ".*_cache")
    copy = shutil.copytree(ROOT, folder / "copy", ignore=skip)
    python, dist = environment(folder / "env"), folder / "dist"
    install(python, "hatchling")
    for place in (copy, copy / "studies"):
        words = [python, "-m", "hatchling", "build", "-t", "sdist", "-d", str(dist)]
        subprocess.run(words, cwd=place, check=True, capture_output=True)
    for sdist in dist.glob("*.tar.gz"):
        words = [python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(dist), str(sdist)]
        subprocess.run(words, check=True, capture_output=True)
    return dist


def wheel(built, name):
    [found] = built.glob(f"{name}-*.whl")
    return found


def metadata(path):
    with zipfile.ZipFile(path) as file:
        [name] = [one for one in file.namelist() if one.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(file.read(name)), set(file.namelist())


def test_the_metadata_are_complete(built):
    found, names = metadata(wheel(built, "isobatch"))
    assert (found["Name"], found["Version"], found["Requires-Python"]) == ("isobatch", VERSION, ">=3.11")
    assert found["License-Expression"] == "Apache-2.0"
    assert all(found[key] for key in ("Summary", "Author", "Keywords"))
    assert found["Description-Content-Type"] == "text/markdown"
    assert set(CLASSIFIED) <= set(found.get_all("Classifier"))
    assert set(found.get_all("Provides-Extra")) == {name.replace("_", "-") for name in PROJECT["optional-dependencies"]}
    assert {name.split("/")[0] for name in names} == {"isobatch", f"isobatch-{VERSION}.dist-info"}
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "isobatch").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert sources == {name for name in names if name.startswith("isobatch/")}
    assert "isobatch/py.typed" in names


def test_the_studies_say_what_they_need(built):
    found, names = metadata(wheel(built, "isobatch_studies"))
    assert found["Version"] == VERSION
    assert any(
        line.startswith("isobatch[") and line.endswith(f"=={VERSION}") for line in found.get_all("Requires-Dist")
    )
    assert found["Description-Content-Type"] == "text/markdown"
    assert any(name.endswith("adam/criteria.json") for name in names)


def test_the_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built / f"isobatch-{VERSION}.tar.gz") as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "src/isobatch/py.typed"} <= names


def test_the_base_plans_and_is_typed_from_outside(built, tmp_path):
    python = environment(tmp_path / "env")
    install(python, str(wheel(built, "isobatch")), TY)
    assert call(python, "-m", "isobatch", "--version").stdout.startswith(f"isobatch {VERSION}")
    planned = call(python, "-m", "isobatch", "plan", "examples/digits.toml", "--batch-size", "64")
    assert planned.returncode == 0, planned.stderr
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    ty = [str(python.with_name("ty")), "check", "--python", str(tmp_path / "env"), "--output-format", "concise"]
    right = subprocess.run([*ty, "user.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stdout
    wrong = subprocess.run([*ty, "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [f"wrong.py:{line}:" in wrong.stdout for line in (5, 6, 7)] == [True] * 3, wrong.stdout
    ran = call(python, str(tmp_path / "user.py"))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_says(built, tmp_path, extra):
    python = environment(tmp_path / "env")
    install(python, f"{wheel(built, 'isobatch')}[{extra}]")
    code = f"from isobatch.installed import need; need({extra!r}); print('there')"
    found = call(python, "-c", code)
    assert found.stdout == "there\n", found.stderr
    assert call(python, "-m", "isobatch", "plan", "examples/digits.toml", "--batch-size", "64").returncode == 0


def test_the_studies_install_beside_it(built, tmp_path):
    python = environment(tmp_path / "env")
    install(python, str(wheel(built, "isobatch")), str(wheel(built, "isobatch_studies")))
    listed = call(python, "-m", "isobatch", "study")
    assert listed.returncode == 0, listed.stderr
    assert "decentlam" in listed.stdout
