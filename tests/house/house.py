"""The house as its tests see it: files, syntax trees, rooms, and who imports whom."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE, STUDIES = ROOT / "src" / "isobatch", ROOT / "studies" / "src" / "isobatch_studies"
FLOORS = (
    ("errors", "installed", "markup", "renamed", "results", "student"),
    ("units", "curves", "recipe", "rules", "plan", "published", "formats", "export", "control", "schedules"),
    ("gradients", "modules", "average", "noise", "augment", "optimizers"),
    ("data", "checkpoint", "decentralized", "topologies"),
    ("tasks", "logs", "train", "executors"),
    ("report", "split", "testing", "verify", "critical"),
    ("cli", "integrations"),
)
FLOOR_0 = FLOORS[0] + FLOORS[1]
PLACE = {name: (floor, index) for floor, names in enumerate(FLOORS) for index, name in enumerate(names)}
FILES, STUDY_FILES = sorted(SOURCE.rglob("*.py")), sorted(STUDIES.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES + STUDY_FILES}


def name_of(path):
    """Dotted name of a file's module."""
    source = SOURCE if path.is_relative_to(SOURCE) else STUDIES
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in TREES}


def room(module):
    """The part of the house that a dotted name of isobatch belongs to, None for the door."""
    parts = module.split(".")
    return parts[1] if parts[0] == "isobatch" and len(parts) > 1 else None


ROOMS = sorted({room(name) for name in MODULES} - {None, "__main__"})


def typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(tree, *, late=True, types=True):
    """Every node of a module; without those in functions, or under `if TYPE_CHECKING`."""
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        if typing_only(node) and not types:
            todo += node.orelse
            continue
        yield node
        if late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)


def imported(tree, *, late=True, types=True):
    """Dotted names that a piece of code imports; `from a import b` is a.b where that is a module."""
    for node in statements(tree, late=late, types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def circles(edges):
    """The groups of names that reach each other, by Tarjan's algorithm."""
    number, low, open_, found = {}, {}, [], []

    def visit(name):
        number[name] = low[name] = len(number)
        open_.append(name)
        for target in edges[name]:
            if target not in number:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in open_:
                low[name] = min(low[name], number[target])
        if low[name] == number[name]:
            place = open_.index(name)
            group = open_[place:]
            del open_[place:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in number:
            visit(name)
    return found
