"""The table of docs/optimizers.md says what the rows say."""

from pathlib import Path

import pytest

from isobatch import rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "optimizers.md").read_text()
LINES = {
    line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `") and "optimizer.name" not in line
}
BUILT = {"torch": "isobatch.optimizers.builders", "isobatch": "isobatch.optimizers.Invariant"}


def test_every_optimizer_has_a_line():
    assert LINES.keys() == rules.OPTIMIZERS.keys()


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_the_row(name):
    row, rule = rules.OPTIMIZERS[name], rules.lr_rule(rules.OPTIMIZERS[name])
    cells = [cell.strip() for cell in LINES[name].strip("|").split("|")]
    assert cells[1:5] == [rule.formula, str(rule.confidence), ", ".join(row.moments), row.decay]
    assert (cells[5] == "planned only") == (row.builder is None)
    if cells[5] in BUILT:
        assert row.builder.startswith(BUILT[cells[5]])
