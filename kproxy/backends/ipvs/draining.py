"""Draining: removed destinations are kept with weight 0 until their connections end, or a time limit.

The kernel holds the state: a destination of weight 0 that no service wants is draining. So a restart finds
these again; only their time limit starts again.

If a service gave up an external address, another machine may have it already; while it is on the device, this
node answers in that machine's place. So such an address is kept for open connections only, not for closing
ones, and for a few seconds.
"""

from collections.abc import Callable, Collection, Mapping

from kproxy.kernel.ipvs.types import DestinationId, DestinationState, Ipvs, ServerId

WITHDRAWN_PERIOD = 10.0
"""Greatest time, in seconds, that a withdrawn external or load-balancer address is kept for connections."""

_FIRST = 1.0
_LONGEST = 60.0
"""Seconds between checks of draining connections: starts at the first, doubles up to the longest."""

_CONNECTED = frozenset({"TCP", "SCTP"})
"""Protocols whose connections have an end; UDP flows are not drained."""


class Draining:
    """Holds the deadlines of draining destinations and of the next check; `clock` returns seconds."""

    def __init__(self, period: float, clock: Callable[[], float]) -> None:
        self.period = period
        self._clock = clock
        self._deadlines: dict[ServerId, dict[DestinationId, float]] = {}
        self._withdrawn: set[ServerId] = set()
        self._interval = _FIRST
        self._next = 0.0

    def keeps(self, server: ServerId, destination: DestinationId, *, withdrawn: bool = False) -> bool:
        """Whether a destination that no service wants any more is kept; the first call starts its time.

        `withdrawn`: the address of the virtual server may belong to another machine by now.
        """
        if server.protocol not in _CONNECTED or self.period <= 0:
            return False
        now = self._clock()
        if withdrawn is not (server in self._withdrawn):
            self._deadlines.pop(server, None)
            (self._withdrawn.add if withdrawn else self._withdrawn.discard)(server)
        of_server = self._deadlines.setdefault(server, {})
        if destination not in of_server:
            period = min(self.period, WITHDRAWN_PERIOD) if withdrawn else self.period
            of_server[destination] = now + period
            self._interval = _FIRST
            self._next = min(self._next, now + _FIRST) if self._next > now else now + _FIRST
        return now < of_server[destination]

    def is_long(self, server: ServerId) -> bool:
        """Whether a virtual server drains with the full period, not the withdrawn one."""
        return server in self._deadlines and server not in self._withdrawn

    def forget(self, server: ServerId, destination: DestinationId | None = None) -> None:
        """Stop draining a destination, or all of a server, because it is wanted again or deleted."""
        of_server = self._deadlines.get(server)
        if of_server is None:
            return
        if destination is not None:
            of_server.pop(destination, None)
        if destination is None or not of_server:
            del self._deadlines[server]
            self._withdrawn.discard(server)

    def recall(self, standing: Mapping[ServerId, Collection[DestinationId]]) -> None:
        """Stop draining destinations that others have deleted from the kernel."""
        kept = {
            server: {
                destination: deadline
                for destination, deadline in deadlines.items()
                if destination in standing.get(server, ())
            }
            for server, deadlines in self._deadlines.items()
        }
        self._deadlines = {server: deadlines for server, deadlines in kept.items() if deadlines}
        self._withdrawn &= self._deadlines.keys()

    def due_in(self) -> float | None:
        """Seconds until the next check of the connections is due; None while nothing drains."""
        return max(0.0, self._next - self._clock()) if self._deadlines else None

    def look(self, ipvs: Ipvs) -> set[ServerId]:
        """Check the connections; return the servers with drained destinations. Raises IpvsError."""
        now = self._clock()
        ended: set[ServerId] = set()
        for server, deadlines in self._deadlines.items():
            states = ipvs.destinations(server)
            for destination in deadlines:
                state = states.get(destination)
                if state is None or not waited_for(state, withdrawn=server in self._withdrawn):
                    deadlines[destination] = 0.0
                if now >= deadlines[destination]:
                    ended.add(server)
        longest = _FIRST if self._withdrawn else _LONGEST
        self._interval = _FIRST if ended else min(2 * self._interval, longest)
        self._next = now + self._interval
        return ended


def waited_for(state: DestinationState, *, withdrawn: bool) -> bool:
    """Whether a destination has connections to wait for; if `withdrawn`, only open ones count."""
    return bool(state.active if withdrawn else state.connections)
