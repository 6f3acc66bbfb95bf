"""Names of a Python module, from its syntax tree: the flags of a script, and what a function binds once."""

import ast
from collections import Counter
from typing import Any

from isobatch.formats.texts.source import Unknown

CALLED = "type"
"""The key under which the name of a call stands beside its arguments, as mmengine writes it."""
ENOUGH_FLAGS = 4
"""Flags from which a script is taken for one that says its settings by them."""
ONCE: Any = Unknown("bound once")
"""What stands for a name that a function binds exactly once, until its value is read."""


def arguments(module: ast.Module) -> dict[str, ast.expr]:
    """Return the defaults of the flags of a script that uses argparse.

    Args:
        module: the syntax tree.

    Returns:
        Name without its dashes -> the expression of its default; a flag without one is left out.
    """
    found: dict[str, ast.expr] = {}
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr != "add_argument":
            continue
        texts = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        flags = [text for text in texts if text.startswith("--")]
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        dest = named.get("dest")
        if not flags:
            continue
        name = dest.value if isinstance(dest, ast.Constant) else flags[0].lstrip("-").replace("-", "_")
        if "default" in named and isinstance(name, str):
            found[name] = named["default"]
    return found


def assigned(node: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Return the name and the value of a plain assignment, None for any other statement."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, node.value
    return None, None


def local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    """Return the names that a function binds: `ONCE` for a plain assignment that is the only one, unknown otherwise.

    Args:
        function: its syntax tree.

    Returns:
        Name -> `ONCE`, or `Unknown` for parameters and what branches, loops and updates bind.
    """
    bound = Counter(
        node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    plain = {assigned(statement)[0] for statement in function.body}
    names: dict[str, Any] = {
        name: ONCE if times == 1 and name in plain else Unknown(f"{name}, bound in a way that only running tells")
        for name, times in bound.items()
    }
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    names |= {item.arg: Unknown(f"{item.arg}, a parameter") for item in given}
    return names
