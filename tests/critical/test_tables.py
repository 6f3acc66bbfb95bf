"""Tables as people have them: CSV, JSON, exported runs, reference convergence points; and what is refused."""

import json

import pytest

from isobatch.critical import fit_table, read_table
from isobatch.errors import InputError

ROWS = "16,0,1000\n16,1,1100\n64,0,1300\n64,1,1200\n256,0,2100\n256,1,2200\n"
POINTS = [{"batch": b, "samples": [1000 + b, 1010 + b]} for b in (16, 64, 256, 1024)]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def reference(benchmark="llama31_8b", values=((16, [160, 172]), (32, [180, 190]), (64, [230, 220]), (128, [340, 350]))):
    return {f"ref_{b}": {"Benchmark": benchmark, "BS": b, "Hyperparams": {}, "Epochs to converge": list(v)}
            for b, v in values}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "unit"), [
    ("a.csv", "batch,seed,samples\n" + ROWS, "samples"),
    ("semi.csv", ("batch,seed,samples\n" + ROWS).replace(",", ";"), "samples"),
    ("tab.tsv", ("batch,seed,samples\n" + ROWS).replace(",", "\t"), "samples"),
    ("bom.csv", "\ufeffbatch,seed,samples\n" + ROWS, "samples"),
    ("b.csv", "Global Batch Size,Run ID,steps_to_target\n" + ROWS, "steps"),
    ("c.csv", "Name,State,config.batch_size,summary.tokens_to_loss\n" + "".join(
        f"run{i},finished,{b},{v}\n" for i, (b, _, v) in enumerate(r.split(",") for r in ROWS.split())), "tokens"),
    ("d.csv", "batch,seed,value,unit\n" + "".join(f"{r},epochs\n" for r in ROWS.split()), "epochs"),
    ("e.json", [{"batch": 16, "samples": [1000, 1100]}, {"batch": 64, "samples": [1300, 1200]},
                {"batch": 256, "samples": [2100, 2200]}], "samples"),
    ("f.json", {"unit": "steps", "points": [{"batch": 256, "value": [2100, 2200]}, {"batch": 16, "value": [1000, 1100]},
                                            {"batch": 64, "value": [1300, 1200]}]}, "steps"),
    ("g.json", [{"id": f"r{i}", "state": "finished", "config": {"batch_size": {"value": int(b)}},
                 "summary": {"samples_to_goal": int(v)}}
                for i, (b, _, v) in enumerate(r.split(",") for r in ROWS.split())], "samples"),
])  # fmt: skip
def test_tables_are_read(tmp_path, name, content, unit):
    found = read_table(written(tmp_path, name, content)) if unit != "steps" else None
    if found is None:  # the same numbers as steps: their samples rise far more steeply
        found = read_table(written(tmp_path, name, content))
    assert (found.unit, found.name) == (unit, name.split(".")[0])
    assert [(p.batch, p.values) for p in found.points] == [(16, (1000, 1100)), (64, (1300, 1200)), (256, (2100, 2200))]


def test_runs_that_did_not_finish_are_left_out_and_named(tmp_path):
    rows = "".join(f"r{i},{'crashed' if i == 2 else 'finished'},{b},{v}\n"
                   for i, (b, v) in enumerate([(8, 90), (16, 100), (16, 1), (32, 120), (64, 180)]))  # fmt: skip
    found = read_table(written(tmp_path, "runs.csv", "Name,State,batch_size,samples\n" + rows))
    assert found.points[1].values == (100,)
    assert found.notes == ("row 3 left out: state 'crashed'",)


@pytest.mark.parametrize(("folder", "benchmark", "unit", "size"), [
    ("training_3.0.0", "unet3d", "epochs", 168), ("training_4.0.0", "unet3d", "samples", None),
    ("training_3.1.0", "stable_diffusion", "steps", None), ("training_4.1.0", "stable_diffusion", "samples", None),
    ("training_4.1.0", "gpt3", "tokens", 1 / 2048), ("training_1.1.0", "ssd", "epochs", 117266),
    ("training_4.0.0", "ssd", "epochs", 1170301), ("hpc_3.0.0", "cosmoflow", "epochs", None),
    ("training_6.1.0", "LLAMA31_8B", "samples", None),
])  # fmt: skip
def test_reference_points_have_the_unit_of_their_round(tmp_path, folder, benchmark, unit, size):
    values = ((16, [150, 152]), (32, [152, 155]), (64, [155, 159]), (128, [160, 166]))
    found = read_table(written(tmp_path, f"{folder}/rcps_x.json", reference(benchmark, values)))
    assert (found.unit, found.size) == (unit, size)
    again = read_table(written(tmp_path, "rcps_x.json", reference(benchmark, values)), edition=folder)
    assert again.unit == unit


def test_a_typing_error_in_reference_points_is_found(tmp_path):
    """As in gpt3 of round 4.1: one of seven seeds with a digit too many; and, in a draft, half of a point's seeds."""
    values = {b: [1000 + b // 4, 1010 + b // 4, 1020 + b // 4] * 2 for b in (1536, 2048, 3072, 4096, 6144, 8192)}
    values[3072].append(20000)
    values[6144][:3] = [1, 1, 1]
    path = written(tmp_path, "training_4.1.0/rcps_gpt3.json", reference("gpt3", values.items()))
    found = fit_table(read_table(path))
    assert [(o.batch, o.value) for o in found.outliers] == [(3072, 20000), (6144, 1), (6144, 1), (6144, 1)]
    assert found.hyperbola.critical.value == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", "batch,seed,loss\n" + ROWS, "no column for the values"),
    ("a.csv", "size,seed,samples\n" + ROWS, "no column for the batch"),
    ("a.csv", "batch,batch_size,samples\n" + ROWS, "several columns for the batch"),
    ("a.csv", "batch,steps,samples\n" + ROWS, "several columns of values.*mixed units"),
    ("a.csv", "batch,seed,value\n" + ROWS, "unit of 'value' is not declared"),
    ("a.csv", "batch,seed,value,unit\n16,0,10,steps\n64,0,10,samples\n", "mixes units: samples, steps"),
    ("a.csv", "batch,seed,steps,unit\n16,0,10,samples\n", "mixes units: the column 'steps' beside unit samples"),
    ("a.csv", "batch,seed,value,unit\n16,0,10,hours\n", "unit 'hours' must be one of"),
    ("a.csv", "batch,samples\n16,10\n32,11\n32,12\n64,15\n", "row 3: batch 32 stands there twice"),
    ("a.csv", "batch,seed,samples\n16,0,10\n32,0,11\n32,0,12\n64,0,15\n", "seed '0' of batch 32 stands there twice"),
    ("a.csv", "batch,seed,samples\n16,0,10\n16,1,11\n", "1 batch; a fit takes at least 3"),
    ("a.csv", "batch,seed,samples\n16,0,0\n", r"row 1, samples=0 must be in \(0, inf\]"),
    ("a.csv", "batch,seed,samples\n16,0,-4\n", "row 1, samples=-4 must be in"),
    ("a.csv", "batch,seed,samples\n0,0,4\n", "row 1, batch=0 must be in"),
    ("a.csv", "batch,seed,samples\n16,0,1k\n", "row 1, samples is '1k', which is no number"),
    ("a.csv", "batch,seed,samples\n16,0,nan\n", "row 1, samples=nan must be finite"),
    ("a.csv", "batch,seed,samples\n16,0\n", "row 1, samples"),
    ("a.csv", "batch,seed,samples,samples\n16,0,1,2\n", "several columns called samples"),
    ("a.csv", "batch,seed,samples\n", "must have a header"),
    ("a.csv", "", "must have a header"),
    ("a.csv", "batch,seed,samples\n16,0,900\n32,0,800\n64,0,700\n128,0,300\n", "fall as the batch grows.*declare"),
    ("a.csv", "batch,seed,samples\n8,0,2\n16,0,2\n32,0,2e6\n64,0,3e6\n", "mixed units"),
    ("a.csv", "batch,seed,samples\n8,0,2\n16,0,2\n24,0,2\n32,0,2e6\n64,0,3e6\n96,0,3e6\n", "mixed units"),
    ("a.json", "{", "neither CSV by its name nor JSON"),
    ("a.json", "3", "must hold rows"),
    ("a.json", [3], "must hold rows"),
    ("a.json", [{"batch": 16, "samples": []}], "empty list"),
    ("a.json", [{"batch": 16, "samples": ["x"]}], "'x', which is no number"),
    ("a.json", [{"batch": True, "samples": [3]}], "batch"),
    ("a.json", [{"batch": 16, "samples": [[3]]}], "samples"),
    ("a.json", [*POINTS, POINTS[0]], "batch 16 stands there twice; give each row a seed"),
    ("training_9.0.0/rcps_bert.json", reference("bert"), "round 'training_9.0.0' is unknown.*units change by round"),
    ("rcps_bert.json", reference("bert"), "round None is unknown"),
    ("training_5.1.0/rcps_x.json", reference("crystal"), "unit of 'crystal' in training_5.1.0 is not known"),
    ("training_2.0.0/rcps_x.json", reference("gpt3"), "unit of 'gpt3' in training_2.0.0 is not known"),
    ("training_5.1.0/rcps_x.json", reference() | {"b": reference("bert")["ref_16"]}, "several benchmarks"),
    ("training_6.1.0/rcps_x.json", reference() | {"again": reference()["ref_16"]}, "batch 16 stands there twice"),
    ("training_6.1.0/rcps_x.json", reference() | {"b": {"Benchmark": "llama31_8b", "BS": 4}}, "must hold BS and"),
])  # fmt: skip
def test_refusals(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_table(written(tmp_path, name, content))


def test_a_declared_unit_needs_no_round(tmp_path):
    path = written(tmp_path, "rcps_x.json", reference("crystal"))
    assert read_table(path, unit="samples").unit == "samples"
    with pytest.raises(InputError, match="unit='hours' must be one of"):
        read_table(path, unit="hours")
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / "nothing.csv")


def test_columns_may_be_named(tmp_path):
    rows = "".join(f"{r},7\n" for r in ROWS.split())
    path = written(tmp_path, "a.csv", "b,seed,samples,steps\n" + rows)
    assert read_table(path, batch="b", value="samples").unit == "samples"
    with pytest.raises(InputError, match="no column 'x'; it has b, seed, samples, steps"):
        read_table(path, batch="x", value="samples")


def test_a_fall_between_neighbours_is_noted(tmp_path):
    rows = "8,0,100\n16,0,130\n32,0,100\n64,0,150\n128,0,240\n"
    (note,) = read_table(written(tmp_path, "a.csv", "batch,seed,samples\n" + rows)).notes
    assert note.startswith("samples fall from 130 at batch 16 to 100 at batch 32")
