import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "invariant-adam.md"


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
