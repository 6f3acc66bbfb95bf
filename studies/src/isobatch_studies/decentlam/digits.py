"""Digits split by class over the nodes: small to full batch, every method, several graphs and sizes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from isobatch.decentralized import METHODS, VirtualNodes
from isobatch.decentralized.graphs import build
from isobatch.plan import Recipe
from isobatch.tasks import TensorSamples, make_run
from isobatch.verify.cells import hashed
from isobatch_studies.work import Work

_LARS = 50.0  # LARS's trust ratio is 1e-3: its learning rate is larger by about its inverse over |x|/|g|


@dataclass(frozen=True)
class Cell:
    """One method at one batch on one graph; all seeds are trained at once.

    Args:
        method: its name.
        nodes: of the graph.
        graph: its name.
        batch: samples a node and step.
        epochs: passes over a node's samples.
        lr: peak learning rate, by a cosine to 0.
        beta: momentum.
        seeds: of weights and order.
    """

    method: str
    nodes: int
    graph: str
    batch: int
    epochs: int
    lr: float
    beta: float
    seeds: int

    @property
    def rate(self) -> float:
        """Peak learning rate of the method: 1/(1-beta) times for DSGD, which keeps the step of momentum."""
        if self.method == "dsgd":
            return self.lr / (1 - self.beta)
        return self.lr * _LARS if self.method == "pmsgd-lars" else self.lr


@dataclass
class Trained:
    """What a cell gave.

    Args:
        cell: its values.
        steps: optimizer steps.
        accuracy: of the exact average, by seed.
        loss: of the exact average, by seed.
        own: mean accuracy of the nodes themselves, by seed.
        consensus: consensus distance, by seed.
    """

    cell: dict[str, Any]
    steps: int
    accuracy: list[float]
    loss: list[float]
    own: list[float]
    consensus: list[float]


def cells(part: dict[str, Any], seeds: int) -> list[Cell]:
    """Return the cells of a grid: batches and methods on the first graph, then graphs, then sizes at full batch.

    Args:
        part: of criteria.json.
        seeds: of every cell.

    Returns:
        Cells without repetition.
    """
    nodes, beta = part["nodes"], part["beta"]
    full = max(part["batches"], key=int)
    found = []
    for batch, (epochs, lr) in sorted(part["batches"].items(), key=lambda item: -int(item[0])):
        found += [Cell(m, nodes, part["graphs"][0], int(batch), epochs, lr, beta, seeds) for m in METHODS]
    epochs, lr = part["batches"][full]
    for graph in part["graphs"][1:]:
        names = [m for m in METHODS if not m.startswith("pmsgd") and (m != "d2" or graph.startswith("lazy"))]
        found += [Cell(m, nodes, graph, int(full), epochs, lr, beta, seeds) for m in names]
    for size in part["sizes"]:
        batch = int(full) * nodes // size
        names = ("dmsgd", "da", "qg", "d2", "decentlam", "pmsgd")
        found += [Cell(m, size, part["graphs"][0], batch, epochs, lr, beta, seeds) for m in names]
    return found


def train_cells(wanted: Iterable[Cell], work: Work) -> list[Trained]:
    """Train cells, or read what an earlier call trained.

    Args:
        wanted: in order.
        work: where cells are trained and kept, and until when.

    Returns:
        The cells that are complete.
    """
    found: dict[str, Trained] = {}
    todo = list(wanted)

    def arrived(trained: Trained) -> None:
        found[_name(Cell(**trained.cell))] = trained
        if work.on_done is not None:
            work.on_done(trained)

    work.results(train_cell, todo, name=_name, read=lambda values: Trained(**values), on_done=arrived)
    return [found[_name(cell)] for cell in todo if _name(cell) in found]


def _name(cell: Cell) -> str:
    return hashed(asdict(cell))


def train_cell(cell: Cell) -> Trained:
    """Train one cell on virtual nodes.

    Args:
        cell: what.

    Returns:
        What it gave.
    """
    runs = [make_run(RECIPE, seed) for seed in range(cell.seeds)]
    nodes = VirtualNodes(
        [run.model for run in runs], loss, build(cell.graph, cell.nodes), cell.method,
        lr=cell.rate, momentum=0.0 if cell.method == "dsgd" else cell.beta,
    )  # fmt: skip
    x, y = by_class(runs[0].samples, cell.nodes)
    rows = torch.arange(cell.nodes).repeat(cell.seeds)[:, None]
    for count, chosen in enumerate(batches(cell, y.shape[1])):
        nodes.step((x[rows, chosen], y[rows, chosen]), lr=rate_at(cell, count))
    found = Trained(asdict(cell), nodes.steps, [], [], [], [])
    for seed in range(cell.seeds):
        with nodes.applied(replica=seed):
            metrics = runs[0].evaluate()
        found.accuracy.append(metrics["accuracy"])
        found.loss.append(metrics["loss"])
        own = []
        for node in range(cell.nodes):
            with nodes.applied(node, seed):
                own.append(runs[0].evaluate()["accuracy"])
        found.own.append(sum(own) / len(own))
        found.consensus.append(nodes.consensus_distance(seed))
    return found


def loss(net: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of a batch.

    Args:
        net: the model.
        batch: images and labels.

    Returns:
        Its mean.
    """
    return F.cross_entropy(net(batch[0]), batch[1])


def by_class(samples: Any, nodes: int) -> tuple[Tensor, Tensor]:
    """Return the training samples sorted by class and cut into equal parts, one a node.

    Args:
        samples: of the digits task.
        nodes: how many parts.

    Returns:
        Images [nodes, part, 64] and labels [nodes, part].
    """
    assert isinstance(samples, TensorSamples)
    x, y = samples.tensors
    order, part = torch.argsort(y, stable=True), len(y) // nodes
    kept = order[: part * nodes].reshape(nodes, part)
    return x[kept], y[kept]


def steps_of(cell: Cell, part: int) -> int:
    """Return the steps of a cell.

    Args:
        cell: the cell.
        part: samples of a node.

    Returns:
        At least 1.
    """
    return max(1, cell.epochs * part // min(cell.batch, part))


def rate_at(cell: Cell, count: int) -> float:
    """Return the learning rate of a step: a cosine to nearly 0, because some methods divide by it.

    Args:
        cell: the cell.
        count: steps before.

    Returns:
        gamma.
    """
    total = steps_of(cell, _PART // cell.nodes)
    return cell.rate * (0.5 * (1 + math.cos(math.pi * count / total)) + 1e-3)


def batches(cell: Cell, part: int) -> Iterable[Tensor]:
    """Yield the samples of every step: without replacement in each node and epoch, an order of its own for each seed.

    Args:
        cell: the cell.
        part: samples of a node.

    Yields:
        Tensor: Indices [seeds * nodes, batch].
    """
    size = min(cell.batch, part)
    sources = [torch.Generator().manual_seed(1000 + seed) for seed in range(cell.seeds)]
    order, used = torch.empty(0, 0), part
    for _ in range(steps_of(cell, part)):
        if used + size > part:
            drawn = [torch.stack([torch.randperm(part, generator=s) for _ in range(cell.nodes)]) for s in sources]
            order, used = torch.cat(drawn), 0
        yield order[:, used : used + size]
        used += size


_PART = 1437
RECIPE = Recipe.parse({
    "task": "digits", "data_size": _PART, "batch": {"size": 8}, "optimizer": {"name": "sgd", "lr": 0.02},
})  # fmt: skip
