"""What is public: the rooms of the package, the names that each shows, and where each is written."""

import ast
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import isobatch

SOURCE = Path(isobatch.__file__).parent
ROOMS = sorted(
    {path.stem for path in SOURCE.glob("[!_]*.py")} | {path.parent.name for path in SOURCE.glob("*/__init__.py")}
)


@dataclass(frozen=True)
class Name:
    """A public name.

    Args:
        room: under which it is described.
        name: as it is written there.
        kind: class, function or data.
        doc: its own docstring; of data, the string below its assignment.
    """

    room: str
    name: str
    kind: str
    doc: str

    @property
    def example(self) -> bool:
        """Whether its own docstring, or that of a member, holds a doctest."""
        return ">>>" in self.doc


def shown(room: str) -> dict[str, object]:
    """Return what a room shows: `__all__`, or what it defines and imports `as` itself."""
    module = importlib.import_module(f"isobatch.{room}")
    names = getattr(module, "__all__", None)
    if names is None:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        names = []
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                names += [alias.name for alias in node.names if alias.asname == alias.name]
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                names += [one.id for one in _targets(node) if isinstance(one, ast.Name)]
    return {name: getattr(module, name) for name in names if not name.startswith("_")}


def public(room: str) -> list[Name]:
    """Return the names that are described under a room: what it shows and no room below it has written."""
    found = []
    for name, value in shown(room).items():
        if isinstance(value, ModuleType):
            part = f"{room}.{name}"
            found += [one for one in public(part) if one.name not in {other.name for other in found}]
        elif (_home(value, name, room) or "").startswith(f"isobatch.{room}"):
            found.append(_described(room, name, value))
    return sorted({one.name: one for one in found}.values(), key=lambda one: one.name.lower())


def _described(room: str, name: str, value: object) -> Name:
    if inspect.isclass(value):
        members = [getattr(member, "fget", member) for member in list(vars(value).values())]
        docs = [value.__doc__ or "", *(getattr(member, "__doc__", None) or "" for member in members)]
        return Name(room, name, "class", "\n".join(doc for doc in docs if doc) if value.__doc__ else "")
    if inspect.isroutine(value):
        return Name(room, name, "function", value.__doc__ or "")
    return Name(room, name, "data", assigned(room).get(name, ("", ""))[1])


def _home(value: object, name: str, room: str) -> str | None:
    """The module that a value was written in; data says nothing itself, so its assignment is looked for."""
    if isinstance(value, ModuleType):
        return value.__name__
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__module__
    return assigned(room).get(name, (None, ""))[0]


_ASSIGNED: dict[str, dict[str, tuple[str, str]]] = {}


def assigned(room: str) -> dict[str, tuple[str, str]]:
    """Return the module of each name that the files of a room assign at their top, and the string below it."""
    if room not in _ASSIGNED:
        place = SOURCE.joinpath(*room.split("."))
        found = {}
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            module = ".".join(["isobatch", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
            for node, below in zip(body, [*body[1:], None], strict=True):
                for target in _targets(node):
                    if isinstance(target, ast.Name):
                        found[target.id] = (module, _string(below))
        _ASSIGNED[room] = found
    return _ASSIGNED[room]


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""
