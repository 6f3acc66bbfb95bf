"""Messages between neighbours: posted at once, collected within a deadline, and nobody waits for the dead.

A message carries its step in its tag, so that one which comes too late can never be taken for another; each `Mail` of
a group has a range of tags of its own, so that several optimizers may talk over one group. Waiting is done
by one thread a neighbour, because a process group that is told to time out fails for all its members; a thread may wait
for a silent neighbour as long as it likes.
"""

import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from isobatch.errors import InputError

_FOREVER = timedelta(days=365)
TAGS = (1 << 27) - 1  # of one Mail; the last of its range tells who is alive
_LANES = 16
_BYE = -1
_OPENED: WeakKeyDictionary[dist.ProcessGroup, list["weakref.ref[Mail] | None"]] = WeakKeyDictionary()


class Receipt:
    """One message on its way, in or out.

    Args:
        peer: rank at the other end.
        buffer: its content; it must stay as it is until the message is through.
    """

    def __init__(self, peer: int, buffer: Tensor):
        self.peer, self.buffer = peer, buffer
        self.error = ""
        self.done = threading.Event()

    def fail(self, error: str) -> None:
        """Mark the message as lost.

        Args:
            error: what the connection said.
        """
        self.error = error or "connection lost"
        self.done.set()


@dataclass
class Collected:
    """What came of an exchange.

    Args:
        arrived: values by rank.
        late: ranks that sent nothing in time.
        broken: ranks whose connection is gone, with what it said.
    """

    arrived: dict[int, Tensor] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


class Exchange:
    """The messages of one bucket at one step.

    Args:
        incoming: receipts by rank.
        outgoing: receipts by rank.
    """

    def __init__(self, incoming: dict[int, Receipt], outgoing: dict[int, Receipt]):
        self.incoming, self.outgoing = incoming, outgoing

    def await_until(self, deadline: float, peers: Iterable[int] | None = None) -> bool:
        """Wait for incoming messages.

        Args:
            deadline: on time.monotonic().
            peers: whose; None for all.

        Returns:
            Whether all of them are there, or known to be lost.
        """
        chosen = self.incoming if peers is None else peers
        return all(self.incoming[rank].done.wait(max(0.0, deadline - time.monotonic())) for rank in chosen)

    def collect(self, deadline: float) -> Collected:
        """Wait for the incoming messages until a deadline.

        Args:
            deadline: on time.monotonic().

        Returns:
            What arrived, and who did not deliver.
        """
        self.await_until(deadline)
        found = Collected()
        for rank, receipt in self.incoming.items():
            if not receipt.done.is_set():
                found.late.append(rank)
            elif receipt.error:
                found.broken[rank] = receipt.error
            else:
                found.arrived[rank] = receipt.buffer
        found.broken |= {rank: r.error for rank, r in self.outgoing.items() if r.done.is_set() and r.error}
        return found


class Mail:
    """Point-to-point messages of this process in a group.

    The ranks of a group open theirs in one order, and so agree on which belong together.

    Args:
        group: process group; None is the default one.

    Raises:
        InputError: the one opened 16 before is still open.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank = dist.get_rank(group)
        self.bytes_sent = self.messages_sent = self.stale = 0
        self._queues: dict[int, queue.SimpleQueue] = {}
        self._excuses: dict[int, float] = {}
        self._sending: list[Receipt] = []
        self._given_up: list[Receipt] = []
        self.closed = False
        self._threads: list[threading.Thread] = []
        self._first_tag = self._take_lane(group) * (TAGS + 1)
        self._control = self._first_tag + TAGS

    def _take_lane(self, group: dist.ProcessGroup | None) -> int:
        known = group if group is not None else dist.distributed_c10d._get_default_group()
        opened = _OPENED.setdefault(known, [])
        before = opened[-_LANES] if len(opened) >= _LANES else None
        if before is not None and (other := before()) is not None and not other.closed:
            raise InputError(f"{_LANES} decentralized optimizers of one group are open; close() those that are done")
        opened.append(weakref.ref(self))
        return (len(opened) - 1) % _LANES

    def post(self, value: Tensor, tag: int, sources: Sequence[int], targets: Sequence[int]) -> Exchange:
        """Send a value to some ranks, and expect one of the same shape from others.

        Args:
            value: a dense tensor; it may be changed afterwards.
            tag: the same number on both sides, one for each exchange, below `TAGS`.
            sources: ranks that send.
            targets: ranks that receive.

        Returns:
            The exchange, to be collected.
        """
        tag += self._first_tag
        sent = value.detach().clone() if targets else value  # the sender may go on while a slow peer still reads
        incoming = {rank: Receipt(rank, torch.empty_like(value)) for rank in sources}
        outgoing = {rank: Receipt(rank, sent) for rank in targets}
        self.bytes_sent += len(targets) * sent.numel() * sent.element_size()
        self.messages_sent += len(targets)
        if value.is_cuda:
            self._start(list(incoming.values()), list(outgoing.values()), tag)
        else:  # one batch a peer: a dead one then takes no other message with it
            for rank in dict.fromkeys([*sources, *targets]):
                pair = [[part[rank]] if rank in part else [] for part in (incoming, outgoing)]
                self._start(pair[0], pair[1], tag)
        self._sweep()
        self._sending += outgoing.values()
        return Exchange(incoming, outgoing)

    def abandon(self, exchange: Exchange) -> None:
        """Give up what has not arrived; its buffers are kept until it does, and it is counted as stale then.

        Args:
            exchange: already collected.
        """
        self._given_up += [receipt for receipt in exchange.incoming.values() if not receipt.done.is_set()]

    def listen(self, peers: Iterable[int]) -> None:
        """Take in excuses of some ranks from now on.

        Args:
            peers: their ranks.
        """
        for peer in peers:
            self._excuses[peer] = -math.inf
            self._thread(f"isobatch-excuses-{peer}", self._hear, peer)

    def excuse(self, peers: Iterable[int], step: int) -> None:
        """Tell those who wait for this rank that it is alive, and waits for somebody else.

        Args:
            peers: whom to tell.
            step: at which it waits.
        """
        for peer in peers:
            receipt = Receipt(peer, torch.tensor([step]))
            self._start([], [receipt], self._control)
            self._sending.append(receipt)

    def excused(self, peer: int, since: float) -> bool:
        """Return whether a rank has said lately that it waits for somebody else.

        Args:
            peer: the rank.
            since: how far back, on time.monotonic().

        Returns:
            Whether it has.
        """
        return self._excuses.get(peer, -math.inf) >= since

    def flush(self, timeout: float) -> None:
        """Wait until what was sent has been read; a process that ends before takes it along.

        Args:
            timeout: seconds to wait at most.
        """
        deadline = time.monotonic() + timeout
        for receipt in self._sending:
            receipt.done.wait(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float = 0.0) -> None:
        """Say goodbye, and wait for the threads to end: a group that is destroyed under one ends the process.

        Args:
            timeout: seconds to wait for messages to be read, and for the goodbyes of the neighbours.
        """
        self.closed = True
        deadline = time.monotonic() + timeout
        self.excuse(self._excuses, _BYE)
        self.flush(timeout)
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._queues.clear()
        self._excuses.clear()

    def _hear(self, peer: int) -> None:
        buffer = torch.zeros(1, dtype=torch.int64)
        try:
            while int(buffer) != _BYE:
                work = dist.irecv(buffer, src=peer, group=self.group, tag=self._control)
                if work is not None:
                    work.wait(_FOREVER)
                self._excuses[peer] = time.monotonic()
        except RuntimeError:  # the connection is gone, which the exchanges tell better
            return

    def _start(self, incoming: list[Receipt], outgoing: list[Receipt], tag: int) -> None:
        operations = [dist.P2POp(dist.irecv, r.buffer, r.peer, self.group, tag) for r in incoming]
        operations += [dist.P2POp(dist.isend, r.buffer, r.peer, self.group, tag) for r in outgoing]
        receipts = [*incoming, *outgoing]
        try:
            works = dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:  # gloo's only kind, at once where the other end is gone
            for receipt in receipts:
                receipt.fail(_first_line(error))
            return
        if receipts and receipts[0].buffer.is_cuda:  # ordered by the stream; the group's own timeout watches over it
            for work in works:
                work.wait()
            for receipt in receipts:
                receipt.done.set()
            return
        for receipt, work in zip(receipts, works, strict=True):
            self._queue(receipt.peer).put((receipt, work))

    def _queue(self, peer: int) -> queue.SimpleQueue:
        if peer not in self._queues:
            self._queues[peer] = queue.SimpleQueue()
            name = f"isobatch-mail-{peer}"
            self._thread(name, _wait, self._queues[peer])
        return self._queues[peer]

    def _thread(self, name: str, target: Callable[..., None], argument: object) -> None:
        self._threads.append(threading.Thread(target=target, args=(argument,), name=name, daemon=True))
        self._threads[-1].start()

    def _sweep(self) -> None:
        """Let go of messages that are through; those given up before are stale."""
        self.stale += sum(receipt.done.is_set() and not receipt.error for receipt in self._given_up)
        self._given_up = [receipt for receipt in self._given_up if not receipt.done.is_set()]
        self._sending = [receipt for receipt in self._sending if not receipt.done.is_set()]


def _wait(waiting: queue.SimpleQueue) -> None:
    """Wait for messages of one peer in their order, for as long as they take."""
    while (item := waiting.get()) is not None:
        receipt, work = item
        try:
            work.wait(_FOREVER)
            receipt.done.set()
        except RuntimeError as error:
            receipt.fail(_first_line(error))


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0].rpartition("] ")[2] or str(error)
