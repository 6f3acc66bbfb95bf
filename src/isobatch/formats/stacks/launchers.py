"""Where a launcher says its devices: nodes and the GPUs of each, or processes in all; and how others lie on nodes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from isobatch.formats.acting import devices_of_a_model
from isobatch.formats.ledger import MOST, ONE_NODE
from isobatch.formats.reader import Found, Reader
from isobatch.formats.texts import Key, Unknown
from isobatch.formats.view import View

_EACH = ("nproc_per_node", "num_gpus", "ngpus", "ntasks_per_node", "gpus_per_node", "gres")
"""GPUs, or processes, of a node: torchrun's, DeepSpeed's, others', Slurm's."""
_ALL = ("num_processes", "np", "ntasks", "n", "gpus")
"""Processes in all: Accelerate's, MPI's, Slurm's."""
_STARTERS = ("nproc_per_node", "num_processes", "num_gpus", "ngpus", "np")
"""What a program is started by, whatever Slurm is asked for around it; the first that is said acts."""
_NODES = ("nnodes", "num_nodes", "num_machines", "nodes", "N")
_COUNT = re.compile(r"((?:gpu:)?(?:[A-Za-z]\w*:)?)(\d+)$")
_NODES_OF = {"num_processes": "num_machines", "num_gpus": "num_nodes"}
"""Which flag says the nodes where none is said: Accelerate's and DeepSpeed's; torchrun's else."""


@dataclass(frozen=True)
class _Said:
    """A number that a launcher says.

    Args:
        found: where, and the text.
        number: which number it is.
        head: what stands before it, such as "gpu:a100:".
    """

    found: Found
    number: int
    head: str = ""


def launched_devices(reader: Reader, split: int | None = None) -> int | None:
    """Return the data-parallel devices that a command's launcher says, and enter them into the ledger.

    Args:
        reader: of the file.
        split: devices that hold one model together; as the file's own degrees say unless given.

    Returns:
        Devices; None where the launcher does not say them.
    """
    split = devices_of_a_model(reader.source.tree) if split is None else split
    said = list(_said(reader))
    nodes = _nodes(reader, said)
    total = None if nodes is None else _processes(said, nodes, _every_card(reader))
    if nodes is None or total is None or total % split or total % nodes:
        if reader.source.extra.get("launcher"):
            reader.note(
                "no number of the launcher says its GPUs, so that the plan changes none there: start the file on those "
                "that the plan is for"
            )
        return None
    devices = total // split
    if reader.answers.get("devices", devices) == devices:
        each = total // nodes
        _enter(reader, said, _laid(reader, each, nodes, split), each, nodes)
        _seen(reader, each)
    return devices


def on_nodes(reader: Reader, each: Found, nodes: Found, split: int = 1) -> None:
    """Enter GPUs of a node and nodes that two keys say.

    Args:
        reader: of the file.
        each: GPUs of one node.
        nodes: how many there are.
        split: devices that hold one model together.
    """
    laid = _laid(reader, each.value, nodes.value, split)
    reader.link("devices", each, lambda view: laid(view)[1], words=_of(reader, nodes.value), whole=True, least=1)
    reader.link("devices", nodes, lambda view: laid(view)[0], words="nodes", whole=True, least=1)


def _of(reader: Reader, nodes: int) -> str:
    return ONE_NODE if nodes == 1 and MOST not in reader.answers else "of each node"


def lie_on(total: int, each: int) -> tuple[int, int]:
    """Return nodes and GPUs of each for a number of GPUs: full nodes where they divide it, else as full as they can be.

    Args:
        total: GPUs.
        each: GPUs that a node has.

    Returns:
        The pair.

    Example:
        >>> lie_on(16, 4), lie_on(6, 4), lie_on(2, 4)
        ((4, 4), (2, 3), (1, 2))
    """
    full = next(count for count in range(min(each, total), 0, -1) if total % count == 0)
    return total // full, full


def _laid(reader: Reader, each: int, nodes: int, split: int) -> Callable[[View], tuple[int, int]]:
    """Return what lays devices on nodes: on the one node, or on as many as it takes of those that there are."""
    if nodes == 1 and MOST not in reader.answers:
        return lambda view: (1, int(view.devices * split))
    most = reader.whole_answer(MOST, reader.remember(MOST, each))
    reader.note(
        f"nodes of {most} GPUs: other devices are other nodes, each full where they divide; --set {MOST}=N says others"
    )
    return lambda view: lie_on(int(view.devices * split), most)


def _enter(reader: Reader, said: list[_Said], laid: Callable[[View], tuple[int, int]], each: int, nodes: int) -> None:
    """Enter every number of a launcher that is GPUs of a node, nodes, or processes in all, so that all agree."""
    if MOST in reader.answers and not any(one.found.key[-1] in _NODES for one in said):
        starter = next((name for name in _STARTERS if any(one.found.key[-1] == name for one in said)), "")
        said = [*said, _Said(Found(("launcher", _NODES_OF.get(starter, "nnodes")), 1, "default"), 1)]
    for one in said:
        flag = str(one.found.key[-1])
        numbers: dict[str, Callable[[int, int], int]] = {}
        numbers |= dict.fromkeys(_EACH, lambda _, per: per)
        numbers |= dict.fromkeys(_ALL, lambda count, per: count * per)
        numbers |= dict.fromkeys(_NODES, lambda count, _: count)
        number = numbers[flag]
        if number(nodes, each) != one.number:
            continue  # another count, such as one task a node around torchrun

        def back(view: View, number: Any = number, head: str = one.head) -> Any:
            count = number(*laid(view))
            return f"{head}{count}" if head else count

        words = _of(reader, nodes) if flag in _EACH else "nodes" if flag in _NODES else "of all nodes"
        reader.link("devices", one.found, back, words=words, whole=not one.head, least=1)


def _said(reader: Reader) -> Iterator[_Said]:
    """Yield what the launcher says, then what the head of a Slurm script does."""
    extra = reader.source.extra
    tables: list[tuple[str, Any]] = [("launcher", extra.get("launcher", {})), ("sbatch", extra.get("sbatch", {}))]
    if str(extra.get("program", "")).startswith("trl "):  # hands Accelerate's flags on
        tables += [("", {flag: reader.find(flag).value for flag in ("num_processes", "num_machines")})]
    for place, table in tables:
        for flag, value in table.items():
            match = _COUNT.match(str(value)) if flag in (*_EACH, *_ALL, *_NODES) else None
            if match is None or isinstance(value, (bool, list, Unknown)) or int(match[2]) < 1:
                continue
            key: Key = (place, flag) if place else (flag,)
            yield _Said(Found(key, value, "launcher"), int(match[2]), match[1])


def _nodes(reader: Reader, said: list[_Said]) -> int | None:
    """Return the nodes; None where a variable or a range says them."""
    stated = next((one.number for one in said if one.found.key[-1] in _NODES), None)
    if stated is not None:
        return stated
    launcher = reader.source.extra.get("launcher", {})
    return None if any(flag in launcher for flag in _NODES) else 1


def _every_card(reader: Reader) -> bool:
    """Whether a launcher starts one process for each card that Slurm gives a node, by Slurm's variable or a word."""
    count = reader.source.extra.get("launcher", {}).get("nproc_per_node")
    return count in ("gpu", "auto") or (isinstance(count, Unknown) and "SLURM_GPUS" in count.text)


def _processes(said: list[_Said], nodes: int, every_card: bool) -> int | None:
    """Return the processes that are started, one a GPU; None where nothing says them."""
    numbers: dict[str, int] = {}
    for one in said:
        numbers.setdefault(str(one.found.key[-1]), one.number)
    for name in _STARTERS:
        if name in numbers:
            return numbers[name] * (1 if name in _ALL else nodes)
    tasks = numbers.get("ntasks", numbers.get("n", nodes * numbers.get("ntasks_per_node", 0)))
    cards = numbers.get("gpus", nodes * numbers.get("gpus_per_node", numbers.get("gres", 0)))
    if every_card:
        return cards or None
    if tasks and tasks in (nodes, 1) and cards > tasks:
        return None  # one task for several GPUs: the program decides what it does with them
    return tasks or cards or None


def _seen(reader: Reader, each: int) -> None:
    visible = reader.source.extra.get("visible", "")
    if visible:
        reader.note(f"CUDA_VISIBLE_DEVICES={visible} names the {each} GPUs of a node: name those of the plan there")
