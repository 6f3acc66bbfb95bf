"""The recipes of other stacks that tests read, and what each of them leaves open."""

from pathlib import Path

from isobatch.formats import load

FILES = Path(__file__).parent / "files"
ANSWERS = {"devices": 8, "data_size": 1281167, "total_num_steps": 10000, "sequence": 2048, "config": "large"}
ANSWERS |= {"total_batch_size": 1048576, "training_tokens": 8_000_000_000, "rests_on": "nothing"}
OWN = {"torchtitan/registry_sequences.py": {"config": "llama3_70b"}}
INCLUDED = {"include", "_base_"}
SHELF = sorted(
    str(path.relative_to(FILES))
    for path in FILES.rglob("*")
    if path.is_file() and not INCLUDED & set(path.parts) and "pycache" not in str(path)
)
ASKED = dict.fromkeys(SHELF, ())  # what a file asks stands in asked.txt, one line a file
for line in (Path(__file__).parent / "asked.txt").read_text().splitlines():
    name, _, asked = line.partition(":")
    ASKED[name] = tuple(asked.split())


def read(name, **more):
    """Read a file of the shelf with what it asks for."""
    given = {key: ANSWERS[key] for key in ASKED[name]} | OWN.get(name, {}) | more
    own = {key: given.pop(key) for key in ("devices", "data_size", "format") if key in given}
    return load(FILES / name, **own, set=given)
