"""What is installed: the base needs what floor 0 uses, a room says which extras it needs, and so does the metadata."""

import ast
import re
import sys
import tomllib

import pytest
from tests.house.house import FLOOR_0, MODULES, ROOT, SOURCE, TREES, imported, room

from isobatch import installed
from isobatch.errors import InputError
from isobatch.installed import EXTRAS, MissingExtra, need

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STUDIES = tomllib.loads((ROOT / "studies" / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
BESIDE = {"markupsafe": "jinja2"}  # its text type, which it is never without
BASE = {"pydantic", "rich"}
KNOWN = {"isobatch", *BASE, *sys.stdlib_module_names}


def distribution(requirement):
    return re.split(r"[\[<>=!~ ]", requirement)[0]


def module_of(target):
    """The module in the table of extras that a dotted name belongs to; fails for what no extra brings."""
    target = BESIDE.get(target, target)
    for module in {module for modules in EXTRAS.values() for module in modules}:
        if target == module or target.startswith(f"{module}."):
            return module
    raise AssertionError(f"{target} is in no extra")


def brought(extras):
    return {module for extra in extras for module in EXTRAS[extra]}


def doors(name):
    """Extras that a module's room asks for at its door, and the packages inside it at theirs."""
    parts = name.split(".")
    packages = [".".join(parts[:depth]) for depth in range(2, len(parts) + 1)]
    trees = [TREES[MODULES[one]] for one in packages if one in MODULES and MODULES[one].name == "__init__.py"]
    return set().union(*(needed(tree) for tree in trees))


def needed(tree):
    """Extras that a piece of code asks for by need(...)."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "need"]
    return {word.value for call in calls for word in call.args}


def foreign(tree, **options):
    return {module_of(target) for target in imported(tree, **options) if target.split(".")[0] not in KNOWN}


def test_the_base_install_is_what_floor_zero_uses():
    used = {target.split(".")[0] for name, path in MODULES.items() if room(name) in FLOOR_0
            for target in imported(TREES[path])} - {"isobatch", *sys.stdlib_module_names}  # fmt: skip
    used -= {module.split(".")[0] for module in EXTRAS["formats"]}  # loaded late, and asked for where they are
    assert {distribution(line) for line in PROJECT["dependencies"]} == used == BASE


def test_the_extras_of_the_metadata_bring_the_modules_of_the_table():
    others = ("all", "dev", "docs", "peers")
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in others}
    assert extras.keys() == EXTRAS.keys()
    for name, lines in extras.items():
        assert [distribution(line) for line in lines] == [DISTRIBUTIONS.get(module, module) for module in EXTRAS[name]]
    everything = PROJECT["optional-dependencies"]["all"]
    assert everything == [f"isobatch[{','.join(EXTRAS)}]"]


def test_the_metadata_ask_for_ranges_and_the_pin_lies_in_the_constraints():
    lines = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])  # noqa: RUF017
    assert not [line for line in lines if "==" in line and not line.startswith("ty==")]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_versions_agree():
    assert PROJECT["version"] == STUDIES["version"] == installed.VERSION
    assert f"isobatch[torch,verify,tasks,optimizers]=={installed.VERSION}" in STUDIES["dependencies"]


PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py" and room(name) is not None
            and path.is_relative_to(SOURCE)]  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_a_room_says_at_its_door_what_its_modules_load(name):
    inner = tuple(f"{other}." for other in PACKAGES if other.startswith(f"{name}."))
    inside = {other: path for other, path in MODULES.items() if other == name or other.startswith(f"{name}.")}
    found = [foreign(TREES[path], late=False, types=False) for other, path in inside.items()
             if not f"{other}.".startswith(inner or "-")]  # fmt: skip
    door, loaded = needed(TREES[MODULES[name]]), set().union(*found)
    assert loaded <= brought(doors(name)), loaded - brought(doors(name))
    assert all(loaded & set(EXTRAS[extra]) for extra in door), "asks for more than it loads"


def test_what_is_loaded_late_is_asked_for_in_the_same_function():
    wrong = []
    for name, path in MODULES.items():
        if not name.startswith("isobatch."):
            continue
        for node in ast.walk(TREES[path]):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                wrong += [
                    f"{name}.{node.name}: {extra}" for extra in foreign(node) - brought(doors(name) | needed(node))
                ]
    assert not wrong


@pytest.mark.parametrize(("extras", "absent", "said"), [
    (("torch",), {"torch"}, 'not installed: torch; pip install "isobatch[torch]"'),
    (("torch", "verify"), {"scipy", "jinja2"}, 'not installed: scipy, jinja2; pip install "isobatch[verify]"'),
    (("torch", "verify"), {"numpy", "scipy"}, 'not installed: numpy, scipy; pip install "isobatch[torch,verify]"'),
    (("formats",), {"ruamel.yaml"}, 'not installed: ruamel.yaml; pip install "isobatch[formats]"'),
])  # fmt: skip
def test_a_missing_extra_answers_with_the_line_that_installs_it(extras, absent, said, monkeypatch):
    monkeypatch.setattr(installed, "_found", lambda module: module not in absent)
    with pytest.raises(MissingExtra) as error:
        need(*extras)
    assert str(error.value) == said
    assert isinstance(error.value, InputError)
    assert isinstance(error.value, ImportError)


def test_a_module_whose_parent_is_absent_is_absent():
    assert installed._found("json.decoder")
    assert not installed._found("no_such_parent.child")
