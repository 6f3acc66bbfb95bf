"""Python configs: assignments of constants and of calls that build settings, read from the syntax tree, never run."""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.python_edits import rewrite
from isobatch.formats.texts.python_names import CALLED, ENOUGH_FLAGS, ONCE, arguments, assigned, local_names
from isobatch.formats.texts.source import DEEPEST, Key, Source, Spot, Unknown, spelled

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_ROUNDED: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "round": round}
_ARGUMENTS = {
    "TrainingArguments", "Seq2SeqTrainingArguments", "SFTConfig", "GRPOConfig", "DPOConfig", "KTOConfig", "ORPOConfig",
    "RewardConfig", "PPOConfig", "RLOOConfig",
}  # fmt: skip
"""Classes of Transformers and TRL whose call holds a script's settings."""
_BRANCHES = (ast.If, ast.For, ast.While, ast.Try, ast.With)
_CHANGING = {
    "update", "append", "extend", "insert", "pop", "popitem", "remove", "clear", "setdefault", "sort", "reverse",
    "merge_from_dict", "merge_from_list",
}  # fmt: skip
"""Methods by which a config changes a table or a list that it has."""


def read_python(text: str, name: str) -> Source:
    """Read a Python config from its syntax tree.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source: names assigned at the top level, and under the name of a function what it returns.

    Raises:
        InputError: no Python.
    """
    bare = text.removeprefix("\ufeff")
    shift = len(text) - len(bare)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(bare)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" line {error.lineno}:" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"{name} is not Python:{where} {getattr(error, 'msg', error)}; mend the file") from None
    reader = _Reader(bare)
    try:
        for statement in module.body:
            reader.statement(statement)
        reader.call_of_training(module)
        flags = {} if reader.call else arguments(module)
        if len(flags) >= ENOUGH_FLAGS:
            reader.flags(flags)
    except RecursionError:
        raise InputError(f"{name}: nested deeper than {DEEPEST} levels; flatten it") from None
    end = {} if reader.call is None else {"call": reader.end_of(reader.call) + shift, "called": _called(reader.call)}
    spots = {key: Spot(spot.start + shift, spot.end + shift, spot.quote) for key, spot in reader.spots.items()}
    return Source(name, "python", text, reader.tree, spots, rewrite, end)


class _Reader:
    """Values of one module.

    Args:
        text: of the module.
    """

    def __init__(self, text: str):
        self.tree: dict[str, Any] = {}
        self.spots: dict[Key, Spot] = {}
        self._bytes = text.encode("utf-8")
        self._text = text
        starts, at = [0], 0
        for line in self._bytes.splitlines(keepends=True):
            at += len(line)
            starts.append(at)
        self._starts = starts
        self._ascii = text.isascii()
        self.call: ast.Call | None = None
        self._scope: dict[str, Any] = {}
        self._functions: set[str] = set()

    def statement(self, node: ast.stmt) -> None:
        """Take in one statement of the top level."""
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._assign(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, node.value)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            fields = [n for n in node.body if isinstance(n, (ast.Assign, ast.AnnAssign)) and n.value is not None]
            if fields:
                self.tree[node.name] = {}
            for item in fields:
                target = item.targets[0] if isinstance(item, ast.Assign) else item.target
                if isinstance(target, ast.Name) and item.value is not None:
                    self.tree[node.name][target.id] = self.value(item.value, (node.name, target.id))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._changing(node.value) is not None:
            self._changed(node.value)
        elif isinstance(node, ast.AugAssign) and self._lengthens(node):
            self._add(self._place(node.target) or (), getattr(node.value, "elts", []))
        elif isinstance(node, (*_BRANCHES, ast.AugAssign, ast.Delete, ast.Expr)):
            self._uncertain(node)
            self._started(node)

    def call_of_training(self, module: ast.Module) -> None:
        """Take in the one call `TrainingArguments(...)`, or `something.train(...)`, of a script as its settings."""
        found = [node for node in ast.walk(module) if isinstance(node, ast.Call) and node.keywords]
        calls = [node for node in found if _called(node) in _ARGUMENTS]
        calls = calls or [n for n in found if isinstance(n.func, ast.Attribute) and n.func.attr == "train"]
        if len(calls) != 1 or any(keyword.arg is None for keyword in calls[0].keywords):  # **more: nobody knows what
            return
        if _called(calls[0]) in _ARGUMENTS:
            self.call, self.spots = calls[0], {}
            self.tree = {str(k.arg): self.value(k.value, (str(k.arg),)) for k in calls[0].keywords}
            return
        for node in module.body:  # results = model.train(...): its arguments stand in the tree once
            target, value = assigned(node)
            if value is calls[0] and target is not None:
                self._forget((target,))
                self.tree.pop(target, None)
        for keyword in calls[0].keywords:
            if keyword.arg is not None and not isinstance(self.tree.get(keyword.arg), (int, float, dict)):
                self._forget((keyword.arg,))
                self.tree[keyword.arg] = self.value(keyword.value, (keyword.arg,))
        self.call = calls[0]

    def flags(self, flags: Mapping[str, ast.expr]) -> None:
        """Take in the defaults of a script's own flags, which are its settings, in place of all other names."""
        self.tree.clear()
        self.spots.clear()
        for name, node in flags.items():
            self.tree[name] = self.value(node, (name,))

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._forget((target.id,))
            self.tree[target.id] = self.value(value, (target.id,))
        elif isinstance(target, (ast.Attribute, ast.Subscript)):
            key = self._place(target)
            if key is not None:
                self._put(key, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
            for index, item in enumerate(target.elts):
                if isinstance(item, ast.Name):
                    inner = value.elts[index] if same and isinstance(value, (ast.Tuple, ast.List)) else None
                    self._forget((item.id,))
                    found = Unknown(item.id) if inner is None else self.value(inner, (item.id,))
                    self.tree[item.id] = found

    def _put(self, key: Key, value: ast.expr) -> None:
        """Take in `a.b.c = value`, `a["b"] = value` or `a[0]["b"] = value`."""
        table = self._held(key[:-1], made=True)
        if isinstance(table, dict) or (isinstance(table, list) and isinstance(key[-1], int) and key[-1] < len(table)):
            self._forget(key)
            table[key[-1]] = self.value(value, key)
        else:
            self._lose(key[:1], value.lineno)

    def _held(self, key: Key, *, made: bool = False) -> Any:
        """Return what stands at a key, None for nothing; tables on the way are made where that is asked."""
        found: Any = self.tree
        for part in key:
            if isinstance(found, dict):
                found = found.setdefault(part, {}) if made else found.get(part)
            elif isinstance(found, list) and isinstance(part, int) and -len(found) <= part < len(found):
                found = found[part]
            else:
                return None
        return found

    def _lose(self, key: Key, line: int) -> None:
        """Forget what stands at a key: only running the file would tell."""
        head = key if isinstance(self._held(key[:-1]), dict) else key[:1]
        self._forget(head)
        why = f"{spelled(head)}, set on line {line} in a way that only running tells"
        self._held(head[:-1])[head[-1]] = Unknown(why)

    def _changing(self, call: ast.Call) -> Key | None:
        """Return the key of the table or list that a call changes, None where it changes none that is known."""
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in _CHANGING:
            return None
        key = self._place(call.func.value)
        return key if key is not None and isinstance(self._held(key), (dict, list)) else None

    def _lengthens(self, node: ast.AugAssign) -> bool:
        """Return whether `a += [...]` adds known items to a known list."""
        key = self._place(node.target)
        listed = isinstance(node.op, ast.Add) and isinstance(node.value, (ast.List, ast.Tuple))
        return listed and key is not None and isinstance(self._held(key), list)

    def _add(self, key: Key, items: list[ast.expr]) -> None:
        held = self._held(key)
        for item in items:
            held.append(self.value(item, (*key, len(held))))

    def _changed(self, call: ast.Call) -> None:
        """Take in `a.update(b=...)`, `a.append(...)` and `a.extend([...])`; what other changes leave is not known."""
        key = self._changing(call) or ()
        held, how = self._held(key), call.func.attr if isinstance(call.func, ast.Attribute) else ""
        pairs = _pairs(call) if how == "update" and isinstance(held, dict) else None
        items = _items(call, how) if isinstance(held, list) else None
        if pairs is not None:
            for name, value in pairs:
                self._put((*key, name), value)
        elif items is not None:
            self._add(key, items)
        else:
            self._lose(key, call.lineno)

    def _forget(self, key: Key) -> None:
        for old in [spot for spot in self.spots if spot[: len(key)] == key]:
            del self.spots[old]

    def _place(self, node: ast.expr) -> Key | None:
        if isinstance(node, ast.Name):
            return (node.id,)
        if isinstance(node, ast.Attribute):
            head = self._place(node.value)
            return None if head is None else (*head, node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            head, part = self._place(node.value), node.slice.value
            return (*head, part) if head is not None and isinstance(part, (str, int)) else None
        return None

    def _uncertain(self, node: ast.stmt) -> None:
        """Names that a branch, a loop or an update may set are not known."""
        for inner in ast.walk(node):
            key = self._changing(inner) if isinstance(inner, ast.Call) else None
            if isinstance(inner, (ast.Name, ast.Attribute, ast.Subscript)) and isinstance(
                inner.ctx, (ast.Store, ast.Del)
            ):
                key = self._place(inner)
                key = None if key is not None and len(key) > 1 and key[0] not in self.tree else key
            if key is not None:
                self._lose(key, node.lineno)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Take in what a function returns, or else the settings that it builds by name, its own names first."""
        self._scope = local_names(node)
        self._functions.add(node.name)
        for statement in node.body:
            target, value = assigned(statement)
            if target in self._scope and value is not None and self._scope[target] is ONCE:
                self._scope[target] = self.value(value, (node.name, target)) if target else None
        returns = [n for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None]
        built = {name: value for name, value in self._scope.items() if isinstance(value, dict) and CALLED in value}
        if len(returns) == 1 and isinstance(returns[0].value, (ast.Call, ast.Dict)):
            made = self.value(returns[0].value, (node.name,))
            self.tree[node.name] = built | made if isinstance(made, dict) else made
        elif built:
            self.tree[node.name] = built
        self._scope = {}

    def _started(self, node: ast.stmt) -> None:
        """Take in the arguments of a call that a script ends with, such as main(global_batch_size=...)."""
        inside = node.body if isinstance(node, ast.If) and "__name__" in self._name(node.test) else [node]
        for statement in inside:
            call = statement.value if isinstance(statement, ast.Expr) else None
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not call.keywords:
                continue
            if call.func.id not in self.tree:
                self.tree[call.func.id] = self.value(call, (call.func.id,))

    def value(self, node: ast.expr, key: Key) -> Any:
        """Return a plain value of an expression, noting where it stands."""
        if len(key) > DEEPEST:
            raise RecursionError
        self.spots[key] = self._spot(node)
        if isinstance(node, ast.Dict):
            return self._table(node, key)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self.value(item, (*key, index)) for index, item in enumerate(node.elts)]
        if isinstance(node, ast.Call):
            return self._call(node, key)
        return self._constant(node)

    def _table(self, node: ast.Dict, key: Key) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for name, item in zip(node.keys, node.values, strict=True):
            label = name.value if isinstance(name, ast.Constant) else ast.unparse(name) if name else "**"
            table[str(label)] = self.value(item, (*key, str(label)))
        return table

    def _call(self, node: ast.Call, key: Key) -> Any:
        table: dict[str, Any] = {}
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call) and len(node.args) == 2:
            return self._chained(node, node.func.value, key)
        called = self._name(node.func)
        if called in ("int", "float", "round") and len(node.args) == 1 and not node.keywords:
            number = self._constant(node.args[0])
            return _ROUNDED[called](number) if _number(number) and abs(number) < 1e18 else Unknown(self._said(node))
        if called not in ("dict", "L", "LazyCall", "partial"):
            table[CALLED] = called
        for index, item in enumerate(node.args):
            table[f"#{index}"] = self.value(item, (*key, f"#{index}"))
        for keyword in node.keywords:
            label = keyword.arg or "**"
            table[label] = self.value(keyword.value, (*key, label))
        return table

    def _chained(self, node: ast.Call, base: ast.Call, key: Key) -> Any:
        """Return what `Config(...).with_callback("name", Callback(...))` builds, callbacks by name."""
        spot = self.spots.pop(key)
        table = self.value(base, key)
        name = self._constant(node.args[0])
        if isinstance(table, dict) and isinstance(name, str) and name not in table:
            table[name] = self.value(node.args[1], (*key, name))
            return table
        self.spots[key] = spot
        return table

    def _name(self, node: ast.expr) -> str:
        try:
            return ast.unparse(node)
        except (RecursionError, ValueError):
            return "?"

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            value = node.value
            return value if isinstance(value, (bool, int, float, str)) or value is None else Unknown(repr(value))
        if isinstance(node, ast.Name) and node.id in self._scope:
            held = self._scope[node.id]
            return held if held is None or isinstance(held, (bool, int, float, str)) else Unknown(node.id)
        if isinstance(node, ast.Name) and node.id in self.tree and node.id not in self._functions:
            return self.tree[node.id]
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            found = self._looked_up(node)
            if not isinstance(found, Unknown):
                return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self._constant(node.operand)
            if _number(value):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = self._constant(node.left), self._constant(node.right)
            if _number(left) and _number(right):
                return self._computed(node, left, right)
        return Unknown(self._said(node))

    def _looked_up(self, node: ast.expr) -> Any:
        key = self._place(node)
        found: Any = self.tree
        for part in key or ("\0",):
            if not (isinstance(found, dict) and part in found):
                return Unknown(self._said(node))
            found = found[part]
        return found

    def _computed(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        small = abs(left) < 1e18 and abs(right) < 1e18 and not (isinstance(node.op, ast.Pow) and abs(right) > 64)
        try:
            value = _BINARY[type(node.op)](left, right) if small else None
        except (ArithmeticError, ValueError):
            value = None
        return value if _number(value) else Unknown(self._said(node))

    def _said(self, node: ast.expr) -> str:
        spot = self._spot(node)
        text = " ".join(self._text[spot.start : spot.end].split())
        return text if len(text) <= 60 else text[:57] + "..."

    def end_of(self, node: ast.expr) -> int:
        """Return one past the last character of an expression."""
        return self._spot(node).end

    def _spot(self, node: ast.expr) -> Spot:
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        if not self._ascii:
            start = len(self._bytes[:start].decode("utf-8", "replace"))
            end = len(self._bytes[:end].decode("utf-8", "replace"))
        quote = self._text[start : start + 1]
        return Spot(start, end, quote if quote in "'\"" else "")


def _pairs(call: ast.Call) -> list[tuple[str, ast.expr]] | None:
    """Return the names and values of `update(a=..., b=...)` or `update(dict(a=...))`; None for any other."""
    if len(call.args) == 1 and isinstance(call.args[0], ast.Call) and _called(call.args[0]) == "dict":
        return None if call.keywords or call.args[0].args else _pairs(call.args[0])
    if len(call.args) == 1 and isinstance(call.args[0], ast.Dict) and not call.keywords:
        names = [key.value if isinstance(key, ast.Constant) else None for key in call.args[0].keys]
        pairs = [(n, value) for n, value in zip(names, call.args[0].values, strict=True) if isinstance(n, str)]
        return pairs if len(pairs) == len(names) else None
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        return None
    return [(str(keyword.arg), keyword.value) for keyword in call.keywords]


def _items(call: ast.Call, how: str) -> list[ast.expr] | None:
    """Return what `append(item)` or `extend([item, ...])` adds to a list; None for any other change."""
    only = call.args[0] if len(call.args) == 1 and not call.keywords else None
    if how == "append" and only is not None:
        return [only]
    return only.elts if how == "extend" and isinstance(only, (ast.List, ast.Tuple)) else None


def _called(node: ast.Call) -> str:
    """Return the name of what is called, without what stands before its last dot."""
    func = node.func
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
