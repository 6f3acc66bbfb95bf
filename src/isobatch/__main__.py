"""python -m isobatch is the command isobatch."""

from isobatch.cli import main

if __name__ == "__main__":
    main()
