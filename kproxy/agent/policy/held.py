"""Hold the first packets of pods that are not known yet, and send them through the rules once they are.

A pod may send before the API server has told its address, and its policies may not come late: so rules hand
over what pods send that are not known (the queue of PolicyConfig). A packet goes back to the first rule when
the addresses that it waits for are in the kernel's table; it is judged there, by the rules alone. What takes
longer than a connection's second attempt is dropped, as is what exceeds the bounds: each address has its own,
so that no pod and no scan from outside uses up the room of others.

While no kproxy runs, the kernel drops what the rules would hand over.
"""

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import msgspec
import structlog

from kproxy.kernel.nfqueue import Nfqueue, NfqueueError, Queued, Verdict

log = structlog.stdlib.get_logger(__name__)

MOST = 2048
"""Packets held at most; the kernel's own limit is the same."""
MOST_EACH = 128
"""Packets held at most for one address, 16 of which fill the whole."""
SECONDS = 5.0
"""A packet waits at most so long: after it, resolvers and TCP have sent their second attempts."""
REOPEN = 5.0
"""Seconds until a queue that cannot be had is tried again."""
_TCP = 6
_REPEATS, _REPEATS_SECONDS = 8, 1.0
"""A flow that comes back more often in this time is dropped: the kernel's table has lost its address."""


class Queue(Protocol):
    """See Nfqueue."""

    def close(self) -> None:
        """Give up the queue."""

    def wake(self) -> None:
        """End a `wait`."""

    def wait(self, seconds: float | None) -> Collection[Queued]:
        """Wait for packets. Raises OSError."""

    def decide(self, numbers: Collection[int], verdict: Verdict) -> None:
        """Give packets their verdict. Raises OSError."""


Ranges = tuple[tuple[int, bytes, bytes], ...]
"""Of each range: the length of its addresses, the first, the last."""


class _Held(msgspec.Struct):
    until: float
    waits_for: set[bytes]
    flow: tuple[bytes, ...] | None


class HeldPackets:
    """Decides about the packets of one queue. `run` is its thread; others call `follow`, `wake`, `counts`."""

    def __init__(
        self,
        queue: int,
        counted: Callable[[str, int], None] = lambda _outcome, _packets: None,
        make: Callable[[int, int], Queue] = Nfqueue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`counted` is called with `released`, `expired` or `refused`, and the number of packets."""
        self._queue = queue
        self._counted = counted
        self._make = make
        self._clock = clock
        self._lock = threading.Condition()
        self._on = True
        self._open: Queue | None = None
        self._ranges: Ranges | None = None
        """None until `follow`: a former process's rules may hand over packets already."""
        self._known: frozenset[bytes] = frozenset()
        self._followed: tuple[Collection[str], Collection[str]] | None = None
        self._held: dict[int, _Held] = {}
        self._flows: set[tuple[bytes, ...]] = set()
        self._of: Counter[bytes] = Counter()
        self._repeated: Counter[tuple[bytes, ...]] = Counter()
        self._repeats_from = 0.0

    def turn(self, *, on: bool) -> None:
        """Hold packets, or give up the queue and drop what is held."""
        with self._lock:
            self._on = on
        self.wake()

    def follow(self, known: Collection[str], ranges: Collection[str]) -> None:
        """The pods of these addresses are in the kernel's table; the rules hand over others of the ranges.

        To be called after the table was committed, so that a packet that goes back passes.
        """
        if (known, ranges) == self._followed:
            return
        self._followed = known, ranges
        packed = frozenset(ipaddress.ip_address(address).packed for address in known)
        bounds = tuple(_bounds(cidr) for cidr in ranges)
        with self._lock:
            self._known, self._ranges = packed, bounds
            if self._open is not None:
                self._open.wake()

    def wake(self) -> None:
        """Wake `run`, so that it checks for the stop."""
        with self._lock:
            self._lock.notify_all()
            if self._open is not None:
                self._open.wake()

    @property
    def held(self) -> int:
        """The number of packets that are held now."""
        return len(self._held)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called; what is still held then is dropped."""
        warned = False
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._on or stop.is_set())
            if stop.is_set():
                return
            try:
                queue = self._make(self._queue, MOST)
            except NfqueueError as error:
                if not warned:
                    effect = "packets of pods that are not known yet are dropped"
                    log.warning("held_packets_unavailable", reason=str(error), effect=effect)
                warned = True
                stop.wait(REOPEN)
                continue
            warned = False
            self._work(queue, stop)

    def _work(self, queue: Queue, stop: threading.Event) -> None:
        """Decide until the stop, until it is turned off, or until the queue fails."""
        with self._lock:
            self._open = queue
        try:
            while self._on and not stop.is_set():
                self.step(queue)
        except OSError as error:
            log.warning("held_packets_lost", reason=error.strerror or str(error), packets=len(self._held))
            stop.wait(REOPEN)
        finally:
            with self._lock:
                self._open = None
            queue.close()
            self._forget()

    def step(self, queue: Queue) -> None:
        """Wait for packets, a change or the end of a wait, and decide. Raises OSError."""
        first = next(iter(self._held.values()), None)
        packets = queue.wait(None if first is None else max(0.0, first.until - self._clock()))
        with self._lock:
            known, ranges = self._known, self._ranges
        now = self._clock()
        expired = list(self._overdue(now))
        released = [
            number
            for number, held in self._held.items()
            if not any(_is_unknown(end, known, ranges) for end in held.waits_for)
        ]
        for number in released:
            self._let_go(number)
        refused = []
        for packet in packets:
            verdict = self._take(packet, known, ranges, now)
            if verdict is Verdict.DROP:
                refused.append(packet.number)
            elif verdict is Verdict.REPEAT:
                released.append(packet.number)
        if expired or refused:
            queue.decide([*expired, *refused], Verdict.DROP)
        if released:
            queue.decide(released, Verdict.REPEAT)
        for outcome, numbers in (("expired", expired), ("refused", refused), ("released", released)):
            if numbers:
                self._counted(outcome, len(numbers))

    def _take(
        self,
        packet: Queued,
        known: frozenset[bytes],
        ranges: Ranges | None,
        now: float,
    ) -> Verdict | None:
        """The verdict about a new packet; None: it is held."""
        flow = (packet.source, packet.destination, bytes((packet.protocol,)), packet.flow)
        ends = {packet.source, packet.destination}
        waits_for = {end for end in ends if _is_unknown(end, known, ranges)}
        if not waits_for:
            return Verdict.DROP if self._again(flow, now) else Verdict.REPEAT
        is_tcp = packet.protocol == _TCP
        if is_tcp and flow in self._flows:  # the same packet again, sent because no answer came
            return Verdict.DROP
        if len(self._held) >= MOST or any(self._of[end] >= MOST_EACH for end in waits_for):
            return Verdict.DROP
        self._held[packet.number] = _Held(now + SECONDS, waits_for, flow if is_tcp else None)
        self._of.update(waits_for)
        if is_tcp:
            self._flows.add(flow)
        return None

    def _again(self, flow: tuple[bytes, ...], now: float) -> bool:
        """Note that a flow goes back to the rules; whether it did so too often."""
        if now >= self._repeats_from + _REPEATS_SECONDS:
            self._repeated.clear()
            self._repeats_from = now
        self._repeated[flow] += 1
        return self._repeated[flow] > _REPEATS

    def _overdue(self, now: float) -> Iterator[int]:
        """Let go of the packets whose time has passed. They are in the order in which they came."""
        for number in [number for number, held in self._held.items() if held.until <= now]:
            self._let_go(number)
            yield number

    def _let_go(self, number: int) -> None:
        held = self._held.pop(number)
        self._of.subtract(held.waits_for)
        for end in held.waits_for:
            if self._of[end] <= 0:
                del self._of[end]
        if held.flow is not None:
            self._flows.discard(held.flow)

    def _forget(self) -> None:
        self._held.clear()
        self._flows.clear()
        self._of.clear()


def _bounds(cidr: str) -> tuple[int, bytes, bytes]:
    network = ipaddress.ip_network(cidr)
    first, last = network.network_address.packed, network.broadcast_address.packed
    return len(first), first, last


def _is_unknown(address: bytes, known: frozenset[bytes], ranges: Ranges | None) -> bool:
    """Whether it may be the address of a pod that is not known; without ranges, any may."""
    return address not in known and (
        ranges is None
        or any(length == len(address) and first <= address <= last for length, first, last in ranges)
    )
