import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_code_of_the_page_runs():
    page = (ROOT / "docs" / "batch-control.md").read_text(encoding="utf-8")
    blocks, names = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE), {}
    for block in blocks:
        exec(compile(block, "docs/batch-control.md", "exec"), names)
    assert len(blocks) == 6


def test_control_needs_no_torch():
    code = "import sys, isobatch.control; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
