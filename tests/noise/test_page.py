"""The code on the method's page runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "noise-scale.md"


def test_the_page_runs(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert code.count("assert") >= 5
    with torch.random.fork_rng():
        exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(
        r"^noise scale [\d.]+ samples \(95% interval [\d.]+ to [\d.]+\), from 100 measurements", printed
    ), printed
