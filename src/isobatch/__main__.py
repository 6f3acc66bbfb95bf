"""python -m isobatch is the command isobatch."""

import sys
from contextlib import suppress
from pathlib import Path

# -m, and an empty part of PYTHONPATH, put the current folder first, where a json.py would hide Python's own;
# main() puts it behind.
with suppress(FileNotFoundError):
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]

from isobatch.cli import main

if __name__ == "__main__":
    main()
