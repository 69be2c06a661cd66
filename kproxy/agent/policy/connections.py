"""End established connections that a changed policy forbids.

Rules judge the first packet of a connection; the others pass because connection tracking knows it. So after
each applied change, the tracked connections of the pods that it concerns are judged again, in the direction
in which they were opened and at the destination after translation, and the forbidden ones are deleted: their
next packet is the first of a connection again, and rules refuse it.

The server may send that packet, and it would look like a connection that the server opens. So the kernel's
table first gets the answers of what is deleted, which its rules then refuse (`mark`).

It is a thread of its own: reading a node's connections can take longer than a change may wait.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol as Interface
from typing import TypeVar

import structlog

from kproxy.addresses import Family
from kproxy.agent.policy.family import together
from kproxy.kernel import links
from kproxy.kernel.conntrack.connections import Connection, Connections
from kproxy.kernel.conntrack.types import ConntrackError
from kproxy.kernel.nft.types import NftError
from kproxy.plan.model import Protocol
from kproxy.plan.policy.affected import affected, allowed_without_ports
from kproxy.plan.policy.model import Touched
from kproxy.plan.policy.planner import PolicyPlanner

log = structlog.stdlib.get_logger(__name__)

AGAIN = 1.0
"""Seconds until the next try after a failure."""
RESTS, LONGEST_REST = 10, 1.0
"""Rest after a pass, as a multiple of what it took, and at most so many seconds.

Even for a few connections, the kernel goes through its whole table: some 25 ms where that is large.
"""
_AT_ONCE = 256
"""Flows judged at once: planning waits so long, some milliseconds."""
T = TypeVar("T")
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}


class Ask(Interface):
    """See PolicyAgent.ask."""

    def __call__(self, question: Callable[[PolicyPlanner], T], /) -> T | None:
        """The planner's answer to a question, while its plan does not change; None if there is no plan."""


Mark = Callable[[Family, Sequence[Connection]], None]
"""Makes the kernel refuse the answers of these connections, before they are deleted. Raises NftError."""


class PolicyConnections:
    """Collects what changes concern, and ends what they forbid.

    `keep`: asked before each pass; if it says True, established connections are left alone. `counted` is
    called with the number of those that were ended. `own`: this node's addresses.
    """

    def __init__(
        self,
        make: Callable[[], Connections],
        ask: Ask,
        keep: Callable[[], bool],
        mark: Mark,
        counted: Callable[[Family, int], None] = lambda _family, _connections: None,
        own: Callable[[], Collection[str]] = links.local_addresses,
    ) -> None:
        self._make = make
        self._ask = ask
        self._keep = keep
        self._mark = mark
        self._own = own
        self._counted = counted
        self._wanted: dict[Family, Touched] = {}
        self._news = threading.Condition()

    def submit(self, family: Family, touched: Touched) -> None:
        """Look at the connections that a change concerns; return at once. May be called from any thread."""
        if touched:
            with self._news:
                self._wanted[family] = together(self._wanted.get(family, Touched()), touched)
                self._news.notify()

    def wake(self) -> None:
        """Wake `run`, so that it checks for the stop."""
        with self._news:
            self._news.notify()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set and `wake` called; changes submitted before that are tried once more."""
        connections = self._make()
        ending = False
        while not ending:
            with self._news:
                self._news.wait_for(lambda: self._wanted or stop.is_set())
                ending = stop.is_set()
                wanted, self._wanted = self._wanted, {}
            began = time.monotonic()
            for family, touched in wanted.items():
                if not self.end_forbidden(connections, family, touched):
                    self.submit(family, touched)
                    stop.wait(AGAIN)
            stop.wait(min(LONGEST_REST, RESTS * (time.monotonic() - began)))

    def end_forbidden(self, connections: Connections, family: Family, touched: Touched) -> bool:
        """End the forbidden connections that a change concerns; False if that failed, which is logged."""
        if self._keep():
            return True
        began = time.monotonic()
        addresses = self._ask(lambda planner: affected(planner.tables[family], touched))
        if not addresses:
            return True
        try:
            found = connections.of(family, addresses)
            forbidden = self._forbidden(family, found) if found else []
            ended = self._end(connections, family, forbidden) if forbidden else 0
        except (ConntrackError, OSError) as error:
            log.warning("connections_not_ended", family=family.value, reason=str(error), retry_seconds=AGAIN)
            return False
        if ended:
            self._counted(family, ended)
            cost = round((time.monotonic() - began) * 1000, 1)
            log.info("connections_ended", family=family.value, connections=ended, of=len(found), ms=cost)
        return True

    def _end(self, connections: Connections, family: Family, forbidden: Sequence[Connection]) -> int:
        """End connections; return how many still existed. Raises ConntrackError."""
        try:
            if marked := [each for each in forbidden if each.protocol in _PROTOCOLS]:
                self._mark(family, marked)
        except NftError as error:
            effect = "a server that sends first may go on"
            log.warning("answers_not_refused", family=family.value, reason=error.message, effect=effect)
        return connections.delete(family, forbidden)

    def _forbidden(self, family: Family, found: Sequence[Connection]) -> list[Connection]:
        """Those that the policies refuse now. The node's own connections into its pods always pass.

        Raises OSError.
        """
        own = frozenset(self._own())
        theirs = [each for each in found if each.source not in own]
        judged: dict[_Flow, bool] = {}
        flows = list(dict.fromkeys(map(_flow, theirs)))
        for start in range(0, len(flows), _AT_ONCE):
            judge = partial(_judge, flows[start : start + _AT_ONCE], family)
            judged |= self._ask(judge) or {}
        return [each for each in theirs if not judged.get(_flow(each), True)]


_Flow = tuple[Protocol | None, str, str, int]


def _flow(connection: Connection) -> _Flow:
    """What policies look at; no protocol: one without ports."""
    protocol = _PROTOCOLS.get(connection.protocol)
    port = 0 if protocol is None else connection.server_port
    return protocol, connection.source, connection.server, port


def _judge(flows: Sequence[_Flow], family: Family, planner: PolicyPlanner) -> dict[_Flow, bool]:
    """Whether each flow is allowed."""
    table = planner.tables[family]
    return {
        (protocol, source, server, port): allowed_without_ports(table, source, server)
        if protocol is None
        else planner.judge(protocol, source, server, port).allowed
        for protocol, source, server, port in flows
    }
