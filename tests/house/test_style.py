"""Small files and functions, no shortcuts."""

import ast

from tests.house.house import TREES, imported, name_of

LONGEST_FILE, LONGEST_FUNCTION = 450, 60


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
MESSAGES = {"isobatch.executors.remote"}  # what a caller and its own workers send each other; no file is read so


def test_no_probing_printing_leaving_or_pickling():
    found = []
    for path, tree in TREES.items():
        name = name_of(path)
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found += [f"{name} calls {call}" for call in calls & FORBIDDEN if (name, call) not in ALLOWED]
        roots = {target.split(".")[0] for target in imported(tree)}
        found += [f"{name} imports {root}" for root in roots & UNTRUSTED]
        picklers = {word for word in ast.unparse(tree).replace("(", ".").split(".") if word.endswith("Pickler")}
        found += [f"{name} uses {word}" for word in picklers if name not in MESSAGES]
    assert not found


def test_nothing_is_left_for_later():
    words = ("TODO", "FIXME", "XXX", "NotImplementedError")
    found = [f"{name_of(path)}: {word}" for path in TREES for word in words if word in path.read_text()]
    assert not found


def test_this_process_may_fork():
    """A forked child waits for ever for threads of its parent; tests/conftest.py starts none."""
    import torch

    assert torch.get_num_threads() == 1
