"""Mutants of rules, plan, groups and state, and the test that kills each; `python tests/mutants.py` runs them.

A mutant is one change of one line in a copy of the sources. It is killed when its test fails there. The list is also in
docs/architecture.md. Options: `--only N ...` for some of them, by their number.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS, REASONS = "tests/rules/test_rows.py::", "tests/rules/test_reasons.py"
GROUPS = f"{ROWS}test_the_groups_are_the_plans_rows_and_the_references_numbers"
FORMULA, STATE = f"{ROWS}test_every_printed_formula_gives_the_printed_number", f"{ROWS}test_state_moves_by_its_row"
PLAN = f"{ROWS}test_the_plan_has_the_references_numbers_and_no_others"


@dataclass(frozen=True)
class Mutant:
    """One change that a test must notice.

    Args:
        file: below src/isobatch.
        old: text that stands there once.
        new: what takes its place.
        test: node that must fail.
        chosen: -k expression that narrows it.
    """

    file: str
    old: str
    new: str
    test: str
    chosen: str = ""


_WRITES = 'for key in row_of(recipe).keys if key != "lr"'
MUTANTS = (
    # the loop's groups
    Mutant(
        "train/setup.py", _WRITES, _WRITES.replace('!= "lr"', 'not in ("lr", "betas")'), GROUPS, "switches-32-adamw"
    ),
    Mutant("train/setup.py", _WRITES, _WRITES.replace('!= "lr"', 'not in ("lr", "eps")'), GROUPS, "switches-32-adamw"),
    Mutant(
        "train/setup.py",
        _WRITES,
        _WRITES.replace('!= "lr"', 'not in ("lr", "weight_decay")'),
        GROUPS,
        "switches-32-adamw",
    ),
    Mutant(
        "train/setup.py", _WRITES, _WRITES.replace('!= "lr"', 'not in ("lr", "momentum")'), GROUPS, "switches-32-sgd"
    ),
    Mutant(
        "train/setup.py", _WRITES, _WRITES.replace('!= "lr"', 'not in ("lr", "alpha")'), GROUPS, "switches-2-rmsprop"
    ),
    Mutant("train/setup.py", _WRITES, f'{_WRITES} and "eps" in row_of(recipe).keys', GROUPS, "switches-32-lion"),
    Mutant(
        "train/loop.py",
        "self._groups[size] = prepare_groups(self.optimizer, self.recipe, new)",
        "self._groups[size] = prepare_groups(self.optimizer, self.recipe, self.settings(self.recipe.batch.size))",
        GROUPS,
        "starts-32-adamw",
    ),
    Mutant(
        "train/loop.py",
        "lr = new.lr * self.followed",
        "lr = self.recipe.optimizer.lr * self.followed",
        GROUPS,
        "starts-32-sgd",
    ),
    # rescale
    Mutant(
        "train/rescaling.py",
        "assign(group, key, getattr(new, key))",
        "assign(group, key, getattr(old, key))",
        GROUPS,
        "is_rescaled-32-adamw",
    ),
    Mutant(
        "train/rescaling.py",
        "group[key] * decay",
        "group[key]",
        GROUPS,
        "is_rescaled-32-adamw",
    ),
    Mutant(
        "train/rescaling.py",
        "group[key] * (new.lr / old.lr)",
        "group[key] * (old.lr / new.lr)",
        GROUPS,
        "is_rescaled-32-sgd",
    ),
    Mutant(
        "train/rescaling.py",
        "group[_BATCH], group[_SHARE] = size, after",
        "group[_SHARE] = after",
        GROUPS,
        "is_rescaled_twice-32-sgd",
    ),
    Mutant(
        "train/rescaling.py",
        "return rules.noise_share(batch, found.value)",
        "return 1.0",
        "tests/train/test_rescale.py::test_a_measured_noise_scale_gives_the_share_of_v",
    ),
    # state
    Mutant("rules/state.py", "_by(momentum.SAMPLE_CLOCK, b.momentum)", "1.0", STATE, "32-sgd"),
    Mutant("rules/state.py", "second_moment_factor(b.kappa, b.share)", "1.0", STATE, "32-adamw"),
    Mutant("rules/state.py", "second_moment_factor(b.kappa, b.share)", "1 / b.kappa", STATE, "32-adamw"),
    Mutant("rules/state.py", "_by(betas.POWER, b.beta)", "1.0", STATE, "32-adam"),
    Mutant("rules/betas.py", "math.log(old) / math.log(new)", "math.log(new) / math.log(old)", STATE, "32-adam"),
    Mutant("rules/momentum.py", "return (1 - old) / (1 - new)", "return (1 - new) / (1 - old)", STATE, "32-lars"),
    Mutant("train/setup.py", "        if key in group:", "        if False:", STATE, "32-adamp"),
    Mutant("train/setup.py", "(old.betas[1], new.betas[1])", "(old.betas[0], new.betas[0])", STATE, "128-adam"),
    Mutant("rules/optimizers.py", '_RMSPROP = {"square_avg": "second moment", ', "_RMSPROP = {", STATE, "32-rmsprop"),
    Mutant(
        "rules/noise_share.py",
        "return (1 - share) + share / kappa",
        "return share + (1 - share) / kappa",
        STATE,
        "32-adamw",
    ),
    # numbers of the plan
    Mutant(
        "rules/lr/noise_aware.py", "math.sqrt((1 - f) + f / kappa)", "math.sqrt(f + (1 - f) / kappa)", PLAN, "32-adamw"
    ),
    Mutant("rules/betas.py", "return max(scaled, min(old, ", "return max(scaled, max(old, ", PLAN, "32-adamw"),
    Mutant(
        "plan/settings.py",
        '("betas[1]", o.betas[1], kinds.floors[1])',
        '("betas[1]", o.betas[1], kinds.floors[0])',
        PLAN,
        "128-adamw",
    ),
    Mutant(
        "plan/settings.py",
        "full = rate * momentum.lr_factor(o.momentum, moved.becomes)",
        "full = rate",
        PLAN,
        "32-sgd",
    ),
    Mutant("rules/weight_decay.py", 'c.lr, c.new_lr, "decoupled"', 'c.lr, c.rate, "decoupled"', PLAN, "32-muon"),
    Mutant(
        "rules/epsilon.py",
        "scale_eps(c.value, c.kappa, c.lr, c.rate)",
        "scale_eps(c.value, c.kappa, c.lr, c.new_lr)",
        PLAN,
        "32-rmsprop",
    ),
    Mutant("rules/epsilon.py", "    if row.invariant:\n        return KEPT\n", "", REASONS, "eps"),
    Mutant("plan/planning.py", '"eps", "weight_decay", "clip")', '"eps", "clip")', PLAN, "32-adamw"),
    Mutant(
        "rules/optimizers.py",
        '"sqrt", ("betas",), "decoupled", None, ("NAdam",)',
        '"linear", ("betas",), "decoupled", None, ("NAdam",)',
        PLAN,
        "32-nadamw",
    ),
    Mutant(
        "rules/rule.py",
        "change.value if change.kappa == 1 else rule.number(change)",
        "rule.number(change)",
        f"{ROWS}test_a_batch_that_stays_moves_nothing_bit_for_bit",
        "speed",
    ),
    # formulas and words
    Mutant("rules/lr/linear.py", '    "kappa*eta",\n', '    "eta/kappa",\n', FORMULA, "24-sgd"),
    Mutant("rules/lr/speed.py", '"eta*(1+Bc/B)/(1+Bc/B\')"', '"eta*(1+Bc/B\')/(1+Bc/B)"', FORMULA, "24-sgd"),
    Mutant("rules/lr/speed.py", '"E*(1+B\'/Bc)/(1+B/Bc)"', '"E*(1+Bc/B\')/(1+Bc/B)"', FORMULA, "24-sgd"),
    Mutant("rules/betas.py", "return FLOORED.but(formula=", "return POWER.but(because=", FORMULA, "128-adamw"),
    Mutant("rules/average.py", 'formula="kappa*H"', 'formula="H"', FORMULA, "24-sgd"),
    Mutant("rules/batch_norm.py", '"1-(1-m)**(b\'/b)"', '"1-(1-m)**kappa/2"', FORMULA, "24-sgd"),
    Mutant("plan/settings.py", "momentum.beside(lr) if follows else lr, change", "lr, change", FORMULA, "24-sgd"),
    Mutant(
        "plan/settings.py",
        "moved.rule.formula == momentum.SAMPLE_CLOCK.formula and not row.normalises_after",
        "True",
        REASONS,
        "moments",
    ),
    Mutant("rules/lr/linear.py", "    if row.invariant:\n        return INVARIANT\n", "", REASONS, "learning_rate"),
    Mutant("rules/lr/square_root.py", "return NOT_INVARIANT", "return SQUARE_ROOT", REASONS, "learning_rate"),
    Mutant(
        "rules/weight_decay.py",
        "COUPLED_ADAPTIVE if row.adaptive and not row.invariant else COUPLED_SGD",
        "COUPLED_ADAPTIVE if row.adaptive else COUPLED_SGD",
        REASONS,
        "weight_decay",
    ),
    Mutant(
        "rules/epsilon.py",
        "if lr.confidence is Confidence.DERIVED and lr.exponent == 0.5 else AS_THE_RATE",
        "",
        REASONS,
        "eps",
    ),
    Mutant("rules/lr/legw.py", "    others=_others,\n", "", REASONS, "moments"),
    Mutant("rules/rule.py", "(kappa > 1) == (self is Side.UP)", "(kappa > 1) == (self is Side.DOWN)", REASONS, "side"),
    Mutant(
        "rules/lr/legw.py",
        "warmup=warmup, decay_from=start",
        "warmup=span.warmup, decay_from=start",
        "tests/curves/test_legw.py",
        "paper",
    ),
    Mutant(
        "curves/shapes.py", "weighted += stair * value", "weighted += value", "tests/curves/test_staircase.py", "sum"
    ),
)


def killed(mutant: Mutant, folder: Path) -> bool:
    """Whether the test of a mutant fails with it and passes without it."""
    file = folder / "src" / "isobatch" / mutant.file
    text = file.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} holds {text.count(mutant.old)} times: {mutant.old}"
    command = [sys.executable, "-m", "pytest", mutant.test, "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-k", mutant.chosen] if mutant.chosen else []
    path = os.pathsep.join([str(folder / "src"), str(folder), str(folder / "studies" / "src")])
    file.write_text(text.replace(mutant.old, mutant.new))
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    file.write_text(text)
    assert done.returncode in (0, 1, 2), done.stdout[-2000:]
    return done.returncode in (1, 2) and "no tests ran" not in done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, nargs="+", help="numbers of mutants, from 0")
    chosen = parser.parse_args().only or range(len(MUTANTS))
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        left_out = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", "results")
        shutil.copytree(ROOT, folder, ignore=left_out)
        for number in chosen:
            mutant = MUTANTS[number]
            dead = killed(mutant, folder)
            survivors += not dead
            word = "killed  " if dead else "SURVIVED"
            sys.stdout.write(f"{number:2} {word} {mutant.file}: {mutant.test} {mutant.chosen}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} of {len(list(chosen))} survived\n")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
