"""What notebooks show: plans, verdicts, noise scales and averages as tables of escaped text; the example runs."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tests.fabricated import comparison
from tests.recipes import recipe

import isobatch as ib
from isobatch.markup import panel
from isobatch.noise.estimate import Identification, NoiseEstimate

EXAMPLE = Path(__file__).parents[1] / "examples" / "at_any_batch.ipynb"


def test_a_plan_is_a_table_of_its_rows():
    plan = recipe().at(32)
    shown = plan._repr_html_()
    assert shown.count("<tr>") == len(plan.rows) + 1
    for row in plan.rows:
        assert f">{row.text[1]}</td>" in shown
    assert "kappa = 4" in shown


def test_a_plan_of_a_file_is_a_table_of_its_keys(tmp_path):
    pytest.importorskip("ruamel.yaml")
    (tmp_path / "a.yaml").write_text("per_device_train_batch_size: 4\nlearning_rate: 1.0e-4\nmax_steps: 100\n")
    made = ib.formats.load(tmp_path / "a.yaml", devices=2).at(32)
    shown = made._repr_html_()
    assert all(f">{row.key}</td>" in shown for row in made.rows)
    assert "lint" in shown or "<ul>" in shown


def test_a_comparison_shows_every_verdict():
    found = comparison({"plan": 0.5, "unscaled": math.nan})
    shown = found._repr_html_()
    assert shown.startswith("<div><p><b>DIFFERENT</b>")
    verdicts = [str(test.verdict) for models in found.table.values() for test in models.values()]
    assert sorted(re.findall(r">(SAME|DIFFERENT|UNDECIDED)</td>", shown)) == sorted(verdicts)


def test_a_noise_scale_shows_its_interval_and_its_caveats():
    one = NoiseEstimate(None, 3.0, math.inf, Identification.NOT_IDENTIFIED, "a < b", 10.0, -1.0, 2.0, 0.95, 40,
                        caveats=("beware",), parts={"head": None})  # fmt: skip
    part = NoiseEstimate(8.0, 5.0, 12.0, Identification.IDENTIFIED, "", None, 1.0, 8.0, 0.95, 40)
    shown = NoiseEstimate(**{**vars(one), "parts": {"<head>": part}})._repr_html_()
    assert "<b>not identified</b>" in shown
    assert "a &lt; b" in shown
    assert "beware" in shown
    assert ">inf</td>" in shown
    assert ">&lt;head&gt;</td>" in shown


def test_an_average_shows_its_clock():
    model = torch.nn.Linear(2, 1)
    ema = ib.ModelEMA(model, half_life=64)
    ema.update(samples=8)
    assert ">8</td>" in ema._repr_html_()
    assert "ModelEMA" in ema._repr_html_()


def test_every_text_is_escaped():
    evil = "<script>"
    assert evil not in panel(evil, [[evil], [evil]], [evil], badge=evil)


def test_the_example_holds_no_path_of_a_machine_and_was_run():
    cells = json.loads(EXAMPLE.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] or cell["source"] == "" for cell in code)
    assert not re.search(r"/(home|root|tmp|Users|work)/", EXAMPLE.read_text())
    assert any("text/html" in output.get("data", {}) for cell in code for output in cell["outputs"])


@pytest.mark.slow
def test_the_example_runs():
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    client = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    book = nbformat.read(EXAMPLE, as_version=4)
    where = {"metadata": {"path": str(EXAMPLE.parents[1])}}
    client.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
