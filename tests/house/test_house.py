"""The house: imports run downward and right to left, no circles, rooms that can be entered, every room at the door."""

import ast
import importlib

import pytest
from tests.house.house import FLOOR_0, MODULES, PLACE, ROOMS, SOURCE, TREES, circles, imported, name_of, room

from isobatch.installed import MissingExtra

# Known and to be emptied: modules that import each other when late and type-only imports are counted.
CIRCLES: set[str] = set()
# Known and to be emptied: rooms with more files than they may have.
LARGE: dict[str, int] = {}
MOST = {"plan": 8, "average": 16, "noise": 16, "rules": 24, "formats": 54}  # one file a rule, a format, a kind of text
MOST_OTHERWISE = 18


def test_every_room_has_a_place():
    assert set(ROOMS) <= PLACE.keys()


def test_imports_run_downward_and_on_a_floor_from_right_to_left():
    wrong = []
    for name, path in MODULES.items():
        mine = room(name)
        if mine in (None, "__main__"):
            continue
        for target in imported(TREES[path]):
            other = room(target)
            if other not in (None, mine) and PLACE[other] >= PLACE[mine]:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_no_room_imports_the_door():
    wrong = [name for name, path in MODULES.items() if room(name) not in (None, "__main__")
             and "isobatch" in imported(TREES[path])]  # fmt: skip
    assert not wrong


def test_the_package_does_not_know_the_studies():
    wrong = [f"{name} imports {target}" for name, path in MODULES.items() if name.split(".")[0] == "isobatch"
             for target in imported(TREES[path]) if target.split(".")[0] == "isobatch_studies"]  # fmt: skip
    assert not wrong


def test_no_circles_between_modules_late_and_type_only_imports_counted():
    edges = {name: {t for t in imported(TREES[path]) if t in MODULES} - {name} for name, path in MODULES.items()}
    found = circles(edges)
    assert not [group for group in found if not CIRCLES.issuperset(group)]
    assert {name for group in found for name in group} == CIRCLES, "take what is mended out of the list"


@pytest.mark.parametrize(("edges", "wanted"), [
    ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
    ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
    ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
])  # fmt: skip
def test_circles_are_found(edges, wanted):
    assert sorted(circles(edges)) == wanted


def test_no_room_is_too_large_to_enter():
    counts = {name: len(list((SOURCE / name).rglob("*.py"))) for name in ROOMS}
    large = {name: count for name, count in counts.items() if count > MOST.get(name, MOST_OTHERWISE)}
    assert not {name: count for name, count in large.items() if count > LARGE.get(name, 0)}
    assert large.keys() == LARGE.keys(), "take what is small enough now out of the list"


def test_floor_zero_needs_the_standard_library_pydantic_and_rich_alone():
    import sys

    light = {"isobatch", "pydantic", "rich"} | set(sys.stdlib_module_names)
    edits = {"ruamel", "tomlkit"}  # the extra of formats: loaded late, and asked for where they are (test_packaging.py)
    heavy = [f"{name} imports {target}" for name, path in MODULES.items() if room(name) in FLOOR_0
             for target in imported(TREES[path])
             if target.split(".")[0] not in (light | edits if room(name) == "formats" else light)]  # fmt: skip
    assert not heavy


def test_every_room_is_reachable_at_the_door():
    import isobatch

    assert set(ROOMS) <= set(isobatch.__all__)
    for name in isobatch.__all__:
        assert getattr(isobatch, name) is not None
    assert set(isobatch.__all__) <= set(dir(isobatch))
    callables = {name for name in isobatch.__all__ if name not in ROOMS}
    assert not callables & {name.rsplit(".", 1)[-1] for name in MODULES if name.count(".") == 1}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        isobatch.nothing  # noqa: B018


def public(tree):
    """The names that a package lists: __all__, or imports written `X as X`; None where it lists nothing."""
    import ast

    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "isobatch.installed"]
    listed = [alias for node in found for alias in node.names]
    if listed and all(alias.asname == alias.name for alias in listed):
        return [alias.name for alias in listed]
    return None


PACKAGES = [path for path in TREES if path.name == "__init__.py" and room(name_of(path)) not in (None, "cli")]


@pytest.mark.parametrize("path", PACKAGES, ids=name_of)
def test_every_package_lists_its_public_names(path):
    names = public(TREES[path])
    assert names, "list the public names in __all__"
    assert len(names) == len(set(names))
    try:
        module = importlib.import_module(name_of(path))
    except MissingExtra as error:
        pytest.skip(str(error))
    missing = [name for name in names if getattr(module, name, None) is None]
    assert not missing


@pytest.mark.parametrize("name", ["Verdict", "Outcome", "Batch", "Step", "Interval"])
def test_one_name_means_one_thing(name):
    found = [home for home, path in MODULES.items() for node in TREES[path].body
             if isinstance(node, ast.ClassDef) and node.name == name]  # fmt: skip
    assert len(found) == 1, found


def test_no_error_that_says_cannot_lacks_a_way_out():
    said = []
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                words = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
                said.append("".join(word for word in words if isinstance(word, str)))
    assert len(said) > 400
    assert not [text for text in said if text.startswith("cannot ") and "; " not in text]


def test_every_warning_is_given_by_the_one_that_finds_the_users_line():
    found = [path.name for path, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and node.attr in ("warn", "warn_explicit")
             and getattr(node.value, "id", "") == "warnings"]  # fmt: skip
    assert found == ["errors.py"]
