"""One node among its neighbours: exchanges with a deadline, weights re-normalised over those who answered."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.decentralized.mail import Collected, Exchange, Mail
from isobatch.decentralized.mixing import renormalised
from isobatch.decentralized.topology import Topology
from isobatch.errors import InputError, PeerError
from isobatch.units import finite, whole

OnLoss = Literal["stop", "continue"]
_TAGS = 1 << 26  # tags of steps lie below, those of exact averages above


@dataclass(frozen=True)
class Incident:
    """Something that went wrong between neighbours.

    Args:
        step: at which it was noticed.
        node: who did not do its part.
        kind: "late", "lost" or "nonfinite".
        why: in words.
    """

    step: int
    node: int
    kind: str
    why: str


class Neighbourhood:
    """The exchanges of this process's node.

    A neighbour that does not deliver within `timeout` seconds is late: its weight goes to the node's own value for this
    step; one that has sent word that it waits for somebody else has as long again. Who is late more than `patience`
    steps in a row, or whose connection breaks, is lost. A value that is not
    finite is left out in the same way. Every incident is named.

    Args:
        topology: who averages with whom.
        nodes: ranks of each node, the first of them speaks for it; None: every rank is a node.
        group: process group of all nodes; None is the default one.
        timeout: seconds to wait for the neighbours of a step.
        patience: steps in a row that a neighbour may be late.
        on_loss: "stop" raises PeerError, "continue" goes on with those who are left.

    Raises:
        InputError: another number of nodes than ranks, a rank in two nodes or in none, or a setting out of range.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        nodes: Sequence[Sequence[int]] | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: float = 60.0,
        patience: int = 0,
        on_loss: OnLoss = "stop",
    ):
        if on_loss not in ("stop", "continue"):
            raise InputError(f'on_loss={on_loss!r} must be "stop" or "continue"')
        self.topology, self.on_loss = topology, on_loss
        self.timeout = finite("timeout", timeout, 0, open_low=True)
        self.patience = whole("patience", patience, 0)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.nodes = _checked(nodes, ranks, topology.size)
        self.mail = Mail(group)
        self._group = group
        mine = dist.get_rank()
        self.node = next(place for place, members in enumerate(self.nodes) if mine in members)
        self.leads = self.nodes[self.node][0] == mine
        self._locals = [dist.new_group(list(m)) if len(m) > 1 else None for m in self.nodes]  # every rank builds all
        leaders = [members[0] for members in self.nodes]
        self._leaders = group if nodes is None else dist.new_group(leaders)
        self._node_of = {rank: place for place, rank in enumerate(leaders)}
        self.lost: dict[int, str] = {}
        self.incidents: list[Incident] = []
        self._misses: dict[int, int] = {}
        self._averages = 0
        rounds = topology.rounds
        self._around = sorted({j for w in rounds for j in (*w.sources(self.node), *w.targets(self.node))})
        if self.leads:
            self.mail.listen(self._ranks(self._around))
        self._deadline = 0.0

    @property
    def size(self) -> int:
        """Number of nodes, the lost ones among them."""
        return len(self.nodes)

    def within(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks of this node.

        Args:
            value: of this rank; it is overwritten.

        Returns:
            The mean, the same on all ranks of the node.
        """
        inside = self._locals[self.node]
        if inside is not None:
            dist.all_reduce(value, group=inside)
            value /= len(self.nodes[self.node])
        return value

    def send(self, value: Tensor, step: int, slot: int, slots: int) -> Exchange | None:
        """Send this node's value to those who want it at this step.

        Args:
            value: what is averaged.
            step: count of steps.
            slot: which of the step's exchanges.
            slots: exchanges of a step.

        Returns:
            The exchange; None on ranks that do not speak for their node.
        """
        self._deadline = 0.0
        if not self.leads:
            return None
        mixing = self.topology.at(step)
        tag = (step * slots + slot) % _TAGS
        sources, targets = (self._ranks(part(self.node)) for part in (mixing.sources, mixing.targets))
        return self.mail.post(value, tag, sources, targets)

    def receive(self, value: Tensor, exchange: Exchange | None, step: int) -> Tensor:
        """Return sum_j w_ij z_j over the neighbours who answered.

        Args:
            value: this node's own.
            exchange: what `send` gave.
            step: the same count as there.

        Returns:
            The average; it has the dtype and shape of the value.

        Raises:
            PeerError: a neighbour is lost and on_loss is "stop", or all of them are lost.
        """
        if exchange is None:
            return self._share(torch.empty_like(value))
        if not self._deadline:  # all exchanges of a step that are awaited together share one deadline
            self._deadline = time.monotonic() + self.timeout
        found = self._await(exchange, step)
        self.mail.abandon(exchange)
        values = {self._node_of[rank]: z for rank, z in found.arrived.items()}
        bad = [node for node, z in values.items() if not torch.isfinite(z).all()]
        for node in bad:
            self._note(step, node, "nonfinite", "sent values that are not finite; they were left out")
        for rank, why in found.broken.items():
            self._lose(self._node_of[rank], step, why)
        for rank in found.late:
            self._late(self._node_of[rank], step)
        for node in values:
            self._misses.pop(node, None)
        mixing = self.topology.at(step)
        row = mixing.rows[self.node]
        missing = [j for j in mixing.sources(self.node) if j not in values or j in bad]
        kept = renormalised(row, self.node, missing) if missing else row
        values[self.node] = value
        mixed = torch.zeros_like(value)
        for j in sorted(kept):
            if kept[j]:
                mixed.add_(values[j], alpha=kept[j])
        return self._share(mixed)

    def _await(self, exchange: Exchange, step: int) -> Collected:
        """Wait until the deadline, and once more as long for those who are themselves kept waiting."""
        if not exchange.await_until(self._deadline - self.timeout / 2):
            self.mail.excuse(self._ranks(self._around), step)
            if not exchange.await_until(self._deadline):
                late = [rank for rank, receipt in exchange.incoming.items() if not receipt.done.is_set()]
                since = self._deadline - self.timeout
                exchange.await_until(self._deadline + self.timeout, [r for r in late if self.mail.excused(r, since)])
        return exchange.collect(0.0)

    def mean(self, value: Tensor, step: int) -> Tensor:
        """Return the exact mean over all nodes that are left; every rank calls it at the same place.

        Args:
            value: of this node.
            step: for the message of an error.

        Returns:
            The mean.

        Raises:
            PeerError: a node is lost and on_loss is "stop".
        """
        if not self.leads:
            return self._share(torch.empty_like(value))
        if self.on_loss == "continue":
            return self._share(self._star(value, step))
        total = value.clone()
        try:
            dist.all_reduce(total, group=self._leaders)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise PeerError(
                f"step {step}: the exact average failed, a node is gone ({why}); restart", None, step
            ) from error
        return self._share(total / self.size)

    def _star(self, value: Tensor, step: int) -> Tensor:
        """Everybody sends to the first node alive, which sends the mean back: no group without the dead is needed."""
        self._averages += 1
        while True:
            root = min(node for node in range(self.size) if node not in self.lost)
            tag = _TAGS + (self._averages * self.size + root) % (_TAGS - 2)
            others = self._ranks([node for node in range(self.size) if node not in (root, self.node)])
            if root == self.node:
                found = self._collected(self.mail.post(value, tag, others, ()), step)
                whole_mean = torch.stack([value, *found.values()]).mean(0)
                self.mail.post(whole_mean, tag, (), self._ranks(list(found)))
                self.mail.flush(self.timeout)
                return whole_mean
            rank = self._ranks([root])
            self.mail.post(value, tag, (), rank)
            answer = self._collected(self.mail.post(torch.empty_like(value), tag, rank, ()), step, 2.0)
            if answer:
                return answer[root]

    def _collected(self, exchange: Exchange, step: int, factor: float = 1.0) -> dict[int, Tensor]:
        found = exchange.collect(time.monotonic() + factor * self.timeout)
        for rank, why in found.broken.items():
            self._lose(self._node_of[rank], step, why)
        for rank in found.late:
            self._lose(self._node_of[rank], step, f"silent for {factor * self.timeout:g} s in an exact average")
        return {self._node_of[rank]: z for rank, z in sorted(found.arrived.items())}

    def _share(self, value: Tensor) -> Tensor:
        inside = self._locals[self.node]
        if inside is not None:
            dist.broadcast(value, self.nodes[self.node][0], group=inside)
        return value

    def _ranks(self, nodes: Sequence[int]) -> list[int]:
        return [self.nodes[node][0] for node in nodes if node not in self.lost]

    def _note(self, step: int, node: int, kind: str, why: str) -> None:
        self.incidents.append(Incident(step, node, kind, why))

    def _late(self, node: int, step: int) -> None:
        self._misses[node] = self._misses.get(node, 0) + 1
        why = f"sent nothing within {self.timeout:g} s, {self._misses[node]} steps in a row"
        self._note(step, node, "late", why)
        if self._misses[node] > self.patience:
            self._lose(node, step, why)

    def _lose(self, node: int, step: int, why: str) -> None:
        if node in self.lost:
            return
        self.lost[node] = why
        self._note(step, node, "lost", why)
        text = f"node {self.node} lost node {node} at step {step}: {why}"
        if self.on_loss == "stop":
            raise PeerError(
                f'{text}; resume from the last checkpoint, or go on without it: on_loss="continue"', node, step
            )
        if set(self._around) <= self.lost.keys():
            raise PeerError(
                f"{text}; no neighbour of node {self.node} is left: resume from the last checkpoint", node, step
            )


def _checked(nodes: Sequence[Sequence[int]] | None, ranks: list[int], size: int) -> list[list[int]]:
    found = [[rank] for rank in ranks] if nodes is None else [list(members) for members in nodes]
    if len(found) != size:
        raise InputError(f"the topology has {size} nodes and the job has {len(found)}; build it for {len(found)}")
    if sorted(rank for members in found for rank in members) != sorted(ranks) or not all(found):
        raise InputError(f"nodes={found} must name each rank of {sorted(ranks)} once, and none may be empty")
    return found
