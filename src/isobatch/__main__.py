"""python -m isobatch is the command isobatch."""

import sys
from contextlib import suppress
from pathlib import Path

# -m puts the current folder first, where a json.py would hide Python's own; main() puts it behind.
with suppress(FileNotFoundError, IndexError):
    if sys.path[0] == str(Path.cwd()):
        del sys.path[0]

from isobatch.cli import main

if __name__ == "__main__":
    main()
