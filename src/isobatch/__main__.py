"""python -m isobatch is the command isobatch."""

import sys
from contextlib import suppress
from pathlib import Path

with suppress(
    FileNotFoundError, IndexError
):  # -m puts the current folder first, where a json.py would be Python's own;
    if sys.path[0] == str(Path.cwd()):  # main() puts it behind
        del sys.path[0]

from isobatch.cli import main

if __name__ == "__main__":
    main()
