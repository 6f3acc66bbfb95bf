"""Numbers in another writing, runs that never got to their goal, batches read off names: asked about, never guessed."""

import csv
import io
import json

import pytest

from isobatch.critical import fit_table, read_table
from isobatch.critical.exports import _named_batch
from isobatch.critical.machine import read_steps
from isobatch.errors import InputError

BATCHES = (16, 64, 256, 1024)
SMALLEST, CRITICAL = 200_000, 300


def need(batch):
    """Samples to the goal on a hyperbola."""
    return round(SMALLEST * (1 + batch / CRITICAL))


def written(tmp_path, rows, name="runs.csv", between=","):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(rows))
        return path
    text = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, keys, delimiter=between, restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


def histories(loss=str, clock=str):
    """Evaluated every 300 updates; below 3 from the fourth on, far below it from the ninth."""
    return [{"run": f"bs{b}", "batch": b, "steps": clock(300 * i), "loss": loss(value)} for b in BATCHES
            for i, value in enumerate((4, 3.5, 3.1, 2.9, 2.8, 2.7, 2.6, 2.5 - b / 8192, 2), start=1)]  # fmt: skip


@pytest.mark.parametrize("row", ["16,1,000,000", "16,3,5", "16,1000000,,7"])
def test_a_row_with_more_cells_than_names_is_refused(tmp_path, row):
    path = tmp_path / "runs.csv"
    path.write_text(f"batch,samples\n{row}\n64,1\n256,2\n1024,3\n")
    with pytest.raises(InputError, match="line 2 holds more cells than the header"):
        read_table(path)
    path.write_text("batch,seconds_per_step\n" + row.replace("16,", "8,", 1) + "\n16,2\n")
    with pytest.raises(InputError, match="line 2 holds more cells than the header"):
        read_steps(path)


def test_empty_cells_past_the_header_are_no_cells(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("batch,samples\n" + "".join(f"{b},{need(b)},, \n" for b in BATCHES))
    assert [p.values for p in read_table(path).points] == [(need(b),) for b in BATCHES]


@pytest.mark.parametrize("between", [",", ";", "\t"])
@pytest.mark.parametrize(("how", "cell"), [
    ({"loss": lambda v: str(v).replace(".", ",")}, "3,5"),
    ({"clock": lambda v: f"{v:,}"}, "1,200"),
    ({"clock": lambda v: f"{v:,}".replace(",", " ")}, "1 200"),
    ({"clock": lambda v: f"{v:,}".replace(",", "'")}, "1'200"),
    ({"clock": lambda v: f"{v / 1000}k"}, "0.3k"),
    ({"loss": lambda v: f"{v}%"}, "4%"),
])  # fmt: skip
def test_a_number_in_another_writing_is_no_gap(tmp_path, how, cell, between):
    """Passed over, it makes the run reach its goal at the next cell that happens to be readable, or never."""
    path = written(tmp_path, histories(**how), between=between)
    with pytest.raises(InputError, match="no number as it is written") as told:
        read_table(path, goal="loss <= 3")
    assert repr(cell) in str(told.value)


@pytest.mark.parametrize("gap", ["", "NaN", "nan", "-Infinity", "None", "N/A", "1e999"])
def test_gaps_between_evaluations_stay_gaps(tmp_path, gap):
    rows = histories()
    for row in rows[1::9]:
        row["loss"] = gap
    found = read_table(written(tmp_path, rows), goal="loss <= 3")
    assert [p.values for p in found.points] == [(1200.0,)] * len(BATCHES)


SAYS = [("reached", True, False), ("Converged", "yes", "no"), ("summary.goal_reached", 1, 0), ("diverged", 0, 1),
        ("config.timed-out", "false", "true"), ("censored", "N", "Y"), ("success", "1.0", "0.0")]  # fmt: skip


@pytest.mark.parametrize("name", ["runs.csv", "runs.json"])
@pytest.mark.parametrize(("column", "there", "short"), SAYS)
def test_runs_short_of_their_goal_do_not_count_as_if_they_were_there(tmp_path, name, column, there, short):
    """Seeds that ended at the budget, of which one a batch is no longer than the others, would move B_crit at will."""
    rows = [{"batch": b, "seed": s, "samples": need(b) + s, column: there} for b in BATCHES for s in range(3)]
    rows += [{"batch": b, "seed": 3, "samples": 10**6, column: short} for b in BATCHES]
    found = read_table(written(tmp_path, rows, name))
    assert [p.values for p in found.points] == [tuple(need(b) + s for s in range(3)) for b in BATCHES]
    assert ["left out" in note for note in found.notes] == [True] * len(BATCHES)
    if (name, column) == ("runs.csv", "reached"):
        assert fit_table(found).hyperbola.critical.value == pytest.approx(CRITICAL, rel=0.01)


def test_a_batch_at_which_most_runs_never_get_there_is_left_out(tmp_path):
    rows = [{"batch": b, "seed": s, "steps": need(b) / b, "reached": b < 1024 or s == 0}
            for b in (*BATCHES, 4096) for s in range(3)]  # fmt: skip
    found = read_table(written(tmp_path, rows))
    assert [p.batch for p in found.points] == [16, 64, 256]
    assert "batch 1024: left out, only 1 of 3 runs reach the goal, and the others would take longer" in found.notes
    with pytest.raises(InputError, match="reached is 'perhaps'; write true or false"):
        read_table(written(tmp_path, [{**row, "reached": "perhaps"} for row in rows]))


@pytest.mark.parametrize(("label", "batch"), [
    ("bs64", 64), ("run-bs64-s1", 64), ("a batch 1024 run", 1024), ("global_batch_size=512_lr0.1", 512),
    ("batchnorm_v2-bs16", 16), ("bs64lr0.1", 64), ("bs64mom0.9", 64), ("micro_batch_size=8-bs64", 64),
    ("bs128 val_bs 7", 128), ("bs64_again_bs64", 64),
    ("bs4k-lr1", None), ("batch_0.5M", None), ("bs1,024", None), ("bs64x8", None), ("bs64 x 8 gpus", None),
    ("bs1e5", None), ("micro_batch_size=8", None), ("per_device_train_batch_size_8", None), ("eval-bs32", None),
    ("bs64-then-bs128", None), ("local_bs8", None), ("jobs128", None),
])  # fmt: skip
def test_a_batch_is_read_off_a_name_that_says_it_once_and_whole(label, batch):
    found = _named_batch(label)
    assert (None if found is None else int(found)) == batch


def test_a_name_that_does_not_say_its_batch_is_asked_about(tmp_path):
    rows = [{**{k: v for k, v in row.items() if k != "batch"}, "run": f"bs{row['batch']}k"} for row in histories()]
    with pytest.raises(InputError, match="no name says the batch of run 'bs16k', or not clearly"):
        read_table(written(tmp_path, rows), goal="loss <= 3")


@pytest.mark.parametrize(("first", "told"), [(0, True), (1, False), (0.5, False)])
def test_epochs_that_are_counted_from_zero_are_said(tmp_path, first, told):
    rows = [{"run": f"bs{b}", "batch": b, "epoch": first + i, "loss": 4 - 0.2 * i - b / 10**5}
            for b in BATCHES for i in range(9)]  # fmt: skip
    notes = read_table(written(tmp_path, rows), goal="loss <= 3").notes
    assert any("epochs are counted from 0" in note for note in notes) == told
