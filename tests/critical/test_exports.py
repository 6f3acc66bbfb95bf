"""Histories as trackers export them: each run counts up to its first evaluation at the goal; units are declared."""

import csv
import io
import json

import pytest

from isobatch.cli import run
from isobatch.critical import fit_table, read_table
from isobatch.critical.exports import RunGoal
from isobatch.errors import InputError

GOAL = "val/loss <= 3"
RUNS = [(f"bs{b}-s{seed}", b, seed, need) for b, needs in
        {16: (400, 420), 64: (130, 120), 256: (60, 70), 1024: (40, 50)}.items()
        for seed, need in enumerate(needs)]  # fmt: skip
WANTED = [(16, (400, 420)), (64, (130, 120)), (256, (60, 70)), (1024, (40, 50))]


def history(need, key="_step"):
    """Evaluated every 10 steps; the loss is at 3 from `need` on. Between evaluations only the train loss is logged."""
    for step in range(5, round(need) + 25, 5):
        row = {key: step, "train/loss": 3.5}
        yield row | ({"val/loss": 4 - step / need if step % 10 == 0 else None} if step % 10 == 0 else {})


def written(tmp_path, name, content):
    path = tmp_path / name
    if name.endswith(".csv"):
        keys = list(dict.fromkeys(key for row in content for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, keys, restval="")
        writer.writeheader()
        writer.writerows(content)
        path.write_text(text.getvalue())
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, content)) + "\n")
    else:
        path.write_text(json.dumps(content))
    return path


def long_rows(key="trainer/global_step", **more):
    return [{"Run ID": label, "config.batch_size": b, **more, **row} for label, b, _, need in RUNS
            for row in history(need, key)]  # fmt: skip


def api(**config):
    """Runs with settings and a history each, as a client dumps them."""
    return [{"name": label, "state": "finished", "config": {"batch_size": {"value": b}, **config},
             "history": list(history(need, "global_step"))} for label, b, _, need in RUNS]  # fmt: skip


def wide():
    """A chart's download: one column a run beside the logger's count."""
    made = {}
    for label, _, _, need in RUNS:
        for row in history(need):
            if "val/loss" in row:
                own = made.setdefault(row["_step"], {"Step": row["_step"]})
                own |= {f"{label} - val/loss{end}": row["val/loss"] for end in ("", "__MIN", "__MAX")}
    return [made[step] for step in sorted(made)]


def metric_files():
    """One metric of each run as a list of step and value."""
    return [{"project": "p", "run": label, "metric": "val/loss",
             "values": [{"step": r["_step"], "value": r["val/loss"], "timestamp": "2026-11-30T10:00:00"}
                        for r in history(need) if "val/loss" in r]} for label, _, _, need in RUNS]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "how"), [
    ("long.csv", long_rows(), {}),
    ("long.json", long_rows(), {}),
    ("long.jsonl", long_rows("optimizer_steps"), {}),
    ("logged.csv", long_rows("_step"), {"unit": "steps"}),
    ("named.csv", long_rows("iter"), {"unit": "steps", "value": "iter"}),
    ("api.json", api(), {}),
    ("api.json", {"runs": api(lr=0.1)}, {}),
    ("chart.csv", wide(), {"unit": "steps"}),
    ("metric.json", metric_files(), {"unit": "steps"}),
])  # fmt: skip
def test_every_form_says_the_same(tmp_path, name, content, how):
    found = read_table(written(tmp_path, name, content), goal=GOAL, **how)
    assert found.unit == "steps"
    assert [(p.batch, p.values) for p in found.points] == WANTED
    fit = fit_table(found)
    assert fit.points[0].quantum == 10 * 16, "as the histories tell, not the divisor of 400 and 420"
    named = any("read off its name" in note for note in found.notes)
    assert named == (name in ("chart.csv", "metric.json"))


def test_other_clocks_and_other_goals(tmp_path):
    rows = [row for row in long_rows() if "val/loss" in row]
    for row in rows:
        row["tokens_seen"] = row["trainer/global_step"] * row["config.batch_size"] * 2048
        row["acc"] = 1 - row["val/loss"] / 10
    path = written(tmp_path, "a.csv", rows)
    tokens = read_table(path, goal="acc >= 0.7", unit="tokens", size=1 / 2048)
    assert tokens.points[0].values == (400 * 16 * 2048, 420 * 16 * 2048)
    steps = fit_table(read_table(path, goal=GOAL, value="trainer/global_step"))
    assert fit_table(tokens).hyperbola.critical.value == pytest.approx(steps.hyperbola.critical.value)
    with pytest.raises(InputError, match=r"several clocks \(trainer/global_step, tokens_seen\): mixed units"):
        read_table(path, goal=GOAL)
    with pytest.raises(InputError, match="mixes units: the column 'tokens_seen' beside unit steps"):
        read_table(path, goal=GOAL, value="tokens_seen", unit="steps")


def test_the_fastest_learning_rate_of_a_batch_counts(tmp_path):
    rows = []
    for label, b, _, need in RUNS:
        for lr in (0.1, 0.3):
            worse = 2.5 if (lr == 0.1) == (b > 64) else 1
            more = {"run": f"{label}-{lr}", "batch_size": b, "lr": lr}
            rows += [more | row for row in history(worse * need, "global_step")]
    found = read_table(written(tmp_path, "a.csv", rows), goal=GOAL)
    assert [(p.batch, p.values) for p in found.points] == WANTED
    assert sum("2 learning rates reach the goal, the fastest is kept: 0.1" in note for note in found.notes) == 2
    assert sum("2 learning rates reach the goal, the fastest is kept: 0.3" in note for note in found.notes) == 2


def test_what_does_not_reach_the_goal_is_named(tmp_path):
    rows = [*long_rows(), {"Run ID": "lost", "config.batch_size": 64, "trainer/global_step": 10, "val/loss": 3.4},
            {"Run ID": "lost", "config.batch_size": 64, "trainer/global_step": 20, "val/loss": "NaN"},
            {"Run ID": "soon", "config.batch_size": 64, "trainer/global_step": 110, "val/loss": 2.9}]  # fmt: skip
    found = read_table(written(tmp_path, "a.csv", rows), goal=GOAL)
    assert found.points[1].values == (130, 120, 110)
    assert found.notes == (
        "run 'lost', batch 64: left out, never at val/loss <= 3: its best is 3.4",
        "run 'soon', batch 64: at the goal at its first evaluation; the truth may be far sooner",
    )


def test_a_batch_in_tokens_is_called_so(tmp_path):
    rows = [{"batch_tokens": b * 2048, "seed": s, "steps": need} for _, b, s, need in RUNS]
    found = fit_table(read_table(written(tmp_path, "a.csv", rows)))
    plain = fit_table(
        read_table(
            written(tmp_path, "b.csv", [{**r, "batch_tokens": r["batch_tokens"] / 2048} for r in rows]),
            batch="batch_tokens",
        )
    )
    assert (found.amount, found.batch_unit, found.scale) == ("tokens", "tokens", 1.0)
    assert found.hyperbola.critical.value == pytest.approx(2048 * plain.hyperbola.critical.value)
    assert " tokens (95% interval" in found.sentences[0]
    tokens = [
        {"batch_tokens": r["batch_tokens"], "seed": r["seed"], "tokens": r["steps"] * r["batch_tokens"]} for r in rows
    ]
    assert fit_table(read_table(written(tmp_path, "c.csv", tokens))).hyperbola.steps.value == pytest.approx(
        found.hyperbola.steps.value
    )


@pytest.mark.parametrize(("content", "how", "message"), [
    (long_rows("_step"), {}, "'_step' counts calls of the logger.*declare the unit"),
    (wide(), {}, "'step' counts calls of the logger"),
    (long_rows("iter"), {}, "no column that counts steps, samples, tokens or epochs"),
    (long_rows("iter"), {"value": "iter"}, "unit of 'iter' is not declared"),
    (long_rows(), {"value": "tokens"}, "no column 'tokens'; it has"),
    (long_rows(), {"goal": "loss <= 3"}, "has no 'loss' beside 'trainer/global_step'; it has"),
    (long_rows(), {"goal": "val/loss <= 1"}, "no run reaches val/loss <= 1; run 'bs16-s0', batch 16: left out"),
    (long_rows(), {"goal": "val/loss"}, 'must be a metric, <= or >=, and a number, such as "val/loss <= 3.2"'),
    (long_rows(), {"goal": "val/loss = 3"}, "must be a metric"),
    (long_rows(), {"goal": "val/loss <= nan"}, "must be a metric"),
    (long_rows(), {"goal": None}, 'no column for the values|histories; say what a run has to reach'),
    (wide(), {"goal": None, "unit": "steps"}, "histories; say what a run has to reach"),
    (api(), {"goal": None}, "histories; say what a run has to reach"),
    ([{"run": "a", "global_step": 3, "val/loss": 2}], {}, "no column and no name says the batch of run 'a'"),
    ([{"run": "a", "batch": "x", "global_step": 3, "val/loss": 2}], {}, "batch is 'x', which is no positive number"),
    ([{"run": "a", "batch": 0, "global_step": 3, "val/loss": 2}], {}, "no positive number"),
    ([{"run": "a", "batch": 8, "bs": 8, "global_step": 3, "val/loss": 2}], {}, "several columns for the batch"),
    ([{"run": "a", "batch": 8, "global_step": 0, "val/loss": 2}], {}, "at val/loss <= 3 before it trained"),
    ([{"run": "a", "batch": 8, "history": [3]}], {}, "its history must be a list of rows"),
    ([r for r in long_rows() if r["config.batch_size"] < 200], {}, "2 batches; a fit takes at least 3"),
])  # fmt: skip
def test_refusals(tmp_path, content, how, message):
    path = written(tmp_path, "a.json", content)
    with pytest.raises(InputError, match=message):
        read_table(path, **({"goal": GOAL} | how))


def test_reference_points_take_no_goal(tmp_path):
    (tmp_path / "training_6.1.0").mkdir()
    points = {f"r{b}": {"Benchmark": "flux1", "BS": b, "Epochs to converge": [b]} for b in (1, 2, 3)}
    with pytest.raises(InputError, match="which are at their goal; drop the goal"):
        read_table(written(tmp_path, "training_6.1.0/rcps_flux1.json", points), goal=GOAL)


def test_the_command(tmp_path, capsys):
    path = str(written(tmp_path, "a.csv", long_rows()))
    assert run(["noise", "fit", path, "--goal", GOAL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "steps"
    assert run(["noise", "fit", path]) == 2
    assert run(["noise", "fit", path, "--goal", "soon"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("text", "falls"), [("a<=1", True), ("a < 1", True), ("a b >= 1e0", False), ("a>1", False)])
def test_goals(text, falls):
    goal = RunGoal.parse(text)
    assert (goal.falls, goal.value) == (falls, 1)
    assert goal.holds(1)
    assert goal.holds(0.5) == falls
