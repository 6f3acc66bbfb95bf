"""The house: imports run downward and right to left, no circles, small files, an explicit public list, no shortcuts."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "isobatch"
FLOORS = (
    ("errors", "installed"),
    ("units", "rules", "schedules", "plan", "control", "formats"),
    ("gradients", "modules", "average", "noise", "augment", "optimizers"),
    ("data", "checkpoint", "decentralized", "topologies"),
    ("tasks", "train"),
    ("report", "verify", "critical"),
    ("cli", "integrations"),
)
PLACE = {name: (floor, index) for floor, names in enumerate(FLOORS) for index, name in enumerate(names)}
LIGHT = {"isobatch", "pydantic", "rich"}
STUDIES = ROOT / "studies" / "src" / "isobatch_studies"
FILES, STUDY_FILES = sorted(SOURCE.rglob("*.py")), sorted(STUDIES.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES + STUDY_FILES}
LONGEST_FILE, LONGEST_FUNCTION = 450, 60


def name_of(path):
    """Dotted name of a file's module."""
    source = SOURCE if path.is_relative_to(SOURCE) else STUDIES
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES + STUDY_FILES}


def typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(tree, *, inside_functions):
    """Every node outside `if TYPE_CHECKING`, in functions too or not."""
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        if typing_only(node):
            todo += node.orelse
            continue
        yield node
        if inside_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)


def imports(path, *, inside_functions=True):
    """Dotted names that a file imports; `from a import b` is a.b where that is a module."""
    for node in statements(TREES[path], inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def room(module):
    """The part of the house that a dotted name of isobatch belongs to, None for the door."""
    parts = module.split(".")
    return parts[1] if parts[0] == "isobatch" and len(parts) > 1 else None


def test_every_room_has_a_place():
    assert {room(name) for name in MODULES} - {None, "__main__"} <= PLACE.keys()


def test_the_package_does_not_know_the_studies():
    wrong = [f"{name_of(path)} imports {target}" for path in FILES for target in imports(path)
             if target.split(".")[0] == "isobatch_studies"]  # fmt: skip
    assert not wrong


def test_imports_run_downward_and_on_a_floor_from_right_to_left():
    wrong = []
    for path in FILES:
        mine = room(name_of(path))
        if mine in (None, "__main__"):
            continue
        for target in imports(path):
            other = room(target)
            if other not in (None, mine) and PLACE[other] >= PLACE[mine]:
                wrong.append(f"{name_of(path)} imports {target}")
    assert not wrong


def test_no_circles_between_modules():
    edges = {}
    for name, path in MODULES.items():
        edges[name] = {target for target in imports(path, inside_functions=False) if target in MODULES} - {name}
    done, open_, circles = set(), [], []

    def visit(name):
        if name in open_:
            circles.append([*open_[open_.index(name) :], name])
        if name in done or name in open_:
            return
        open_.append(name)
        for target in sorted(edges[name]):
            visit(target)
        done.add(open_.pop())

    for name in edges:
        visit(name)
    assert not circles


def test_floor_zero_needs_the_standard_library_pydantic_and_rich_alone():
    import sys

    heavy = []
    for path in FILES:
        if room(name_of(path)) in FLOORS[0] + FLOORS[1]:
            roots = {target.split(".")[0] for target in imports(path)}
            heavy += [f"{name_of(path)} imports {root}" for root in roots - LIGHT - set(sys.stdlib_module_names)]
    assert not heavy


def test_no_file_is_long():
    long = {name_of(path): len(path.read_text().splitlines()) for path in TREES}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FILE}


def test_no_function_is_long():
    """Lines of a function without its docstring."""
    long = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[0]
                text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                doc = first.end_lineno - first.lineno + 1 if text else 0
                if node.end_lineno - node.lineno + 1 - doc > LONGEST_FUNCTION:
                    long.append(f"{name_of(path)}.{node.name}")
    assert not long


FORBIDDEN = {"hasattr", "print", "exit", "quit", "breakpoint", "eval", "exec", "input", "torch.load", "torch.save",
             "os._exit", "os.system", "sys.exit"}  # fmt: skip
ALLOWED = {("isobatch.cli", "sys.exit")}
UNTRUSTED = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def test_no_probing_printing_leaving_or_pickling():
    found = []
    for path, tree in TREES.items():
        name = name_of(path)
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found += [f"{name} calls {call}" for call in calls & FORBIDDEN if (name, call) not in ALLOWED]
        roots = {target.split(".")[0] for target in imports(path)}
        found += [f"{name} imports {root}" for root in roots & UNTRUSTED]
    assert not found


def test_nothing_is_left_for_later():
    words = ("TODO", "FIXME", "XXX", "NotImplementedError")
    found = [f"{name_of(path)}: {word}" for path in TREES for word in words if word in path.read_text()]
    assert not found


def public(tree):
    """The names that a package lists: __all__, or imports written `X as X`; None where it lists nothing."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    listed = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    if listed and all(alias.asname == alias.name for alias in listed):
        return [alias.name for alias in listed]
    return None


PACKAGES = [path for path in FILES if path.name == "__init__.py" and room(name_of(path)) != "cli"]


@pytest.mark.parametrize("path", PACKAGES, ids=name_of)
def test_every_package_lists_its_public_names(path):
    names = public(TREES[path])
    assert names, "list the public names in __all__"
    assert len(names) == len(set(names))
    module = importlib.import_module(name_of(path))
    missing = [name for name in names if getattr(module, name, None) is None]
    assert not missing


def test_no_package_has_the_name_of_a_public_callable():
    import isobatch

    packages = {name.split(".")[1] for name in MODULES if name.count(".") == 1}
    assert not packages & set(isobatch.__all__)
    assert set(isobatch.__all__) <= set(dir(isobatch))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        isobatch.nothing  # noqa: B018


def test_this_process_may_fork():
    """A forked child waits for ever for threads of its parent; tests/conftest.py starts none."""
    import torch

    assert torch.get_num_threads() == 1
