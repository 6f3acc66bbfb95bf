"""A small evaluator of printed formulas: the letters of a plan, arithmetic, sqrt, max, min, and `h = ...` beside it."""

import ast
import math
import operator
import re

import pytest

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.Pow: operator.pow}  # fmt: skip
_FUNCTIONS = {"sqrt": math.sqrt, "max": max, "min": min}
WORDS = {
    "samples kept",
    "kept in samples",
    "the same share of the run",
    "views kept",
    "share kept",
    "steps kept",
    "invariant form",
    "ratio",
    "std",
    "kept",
}
"""Formulas that are words: what they speak of must not move, but for the share of a run."""


def value(formula: str, letters: dict[str, float]) -> float:
    """The number that a printed formula gives."""
    plain = formula.replace("'", "_new").replace("lambda", "lam")
    text, *beside = re.split(r", (?=\w+ = )", plain)
    names = {key.replace("'", "_new").replace("lambda", "lam"): number for key, number in letters.items()}
    functions = dict(line.split(" = ") for line in beside)
    return _value(ast.parse(text.strip(), mode="eval").body, names, functions)


def _value(node, names, functions):
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        sides = (_value(side, names, functions) for side in (node.left, node.right))
        return _OPERATORS[type(node.op)](*sides)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names, functions)
    assert isinstance(node, ast.Call), ast.dump(node)
    assert isinstance(node.func, ast.Name)
    arguments = [_value(argument, names, functions) for argument in node.args]
    if node.func.id in functions:  # h(B) is a function of the batch
        return _value(ast.parse(functions[node.func.id], mode="eval").body, {**names, "B": arguments[0]}, {})
    return _FUNCTIONS[node.func.id](*arguments)


def letters(base, plan) -> dict[str, float]:
    """The letters of docs/methods, from the recipe as it is and the numbers that were asked for."""
    o, kappa = base.optimizer, plan.recipe.batch.size / base.batch.size
    per = plan.recipe.batch.per_device / base.batch.per_device
    found = {"kappa": kappa, "B": base.batch.size, "B'": plan.recipe.batch.size, "eta": o.lr, "mu": o.momentum,
             "mu'": plan.recipe.optimizer.momentum, "eta'": plan.row("optimizer.lr").becomes, "eps": o.eps,
             "lambda": o.weight_decay, "b": 1.0, "b'": per,
             "devices": plan.recipe.batch.devices, "micro": plan.recipe.batch.per_device}  # fmt: skip
    if base.critical is not None:
        found["Bc"] = base.critical.batch
    if base.rules.noise_share is not None:
        found["f"] = base.rules.noise_share
    if base.batch_norm is not None:
        found["m"] = base.batch_norm.momentum
    return found


OWN = {"optimizer.betas[0]": "beta", "optimizer.betas[1]": "beta", "optimizer.alpha": "beta", "ema.decay": "rho",
       "ema.half_life": "H", "schedule.length": "E", "schedule.warmup": "w0",
       "optimizer.clip": "clip", "ema.final": "rho", "ema.ramp.inv_gamma": "g"}  # fmt: skip


def amount(text) -> float:
    """A number, or the number of samples in a span."""
    return float(re.match(r"[\d.,e+-]+", str(text))[0].replace(",", "")) if isinstance(text, str) else float(text)


def evaluate(base, plan) -> set[str]:
    """Check every row of a plan; the keys of those whose formula was evaluated or whose words were held."""
    known, checked = letters(base, plan), set()
    was = {"schedule.length": base.staircase().length, "schedule.warmup": base.staircase().warmup}
    if base.ema is not None:
        was["ema.half_life"] = base.half_life
    for row in plan.rows[1:]:
        old = was.get(row.key, row.was)
        if row.rule in WORDS:
            if row.rule != "the same share of the run" and row.key != "optimizer.name":
                assert amount(row.becomes) == pytest.approx(amount(old), rel=1e-9), (row.key, row.rule)
        else:
            own = {OWN[row.key]: amount(old)} if row.key in OWN else {}
            got = value(row.rule, {**known, **own})
            assert got == pytest.approx(amount(row.becomes), rel=1e-9), (row.key, row.rule, base.rules, base.optimizer)
        checked.add(row.key)
    return checked
