"""Destinations that have left but still have connections: kept with weight 0 until these end, or time is up.

The kernel holds the state: a destination of weight 0 that nobody wants is one that drains. So a restart finds
them again; only their time starts anew.

Where an address has been withdrawn that is not the cluster's own, another machine may have it already, and
while it is on the device this node answers in its place. So it waits for open connections only, not for those
that close, and for some seconds at most.
"""

from collections.abc import Callable, Collection, Mapping

from kproxy.kernel.ipvs.types import DestinationId, DestinationState, Ipvs, ServerId

WITHDRAWN_PERIOD = 10.0
"""Seconds that an external or load-balancer address is kept, at most, for the connections open through it."""

_FIRST = 1.0
_LONGEST = 60.0
"""Seconds between looks at the connections of what drains: from the first, doubled, to the longest."""

_CONNECTED = frozenset({"TCP", "SCTP"})
"""Protocols whose connections end visibly; a datagram's sender need not wait for anything."""


class Draining:
    """What drains, and when to look again; `clock` counts seconds."""

    def __init__(self, period: float, clock: Callable[[], float]) -> None:
        self.period = period
        self._clock = clock
        self._deadlines: dict[ServerId, dict[DestinationId, float]] = {}
        self._withdrawn: set[ServerId] = set()
        self._interval = _FIRST
        self._next = 0.0

    def keeps(self, server: ServerId, destination: DestinationId, *, withdrawn: bool = False) -> bool:
        """Whether a destination that nobody wants any more is to stay for now.

        `withdrawn`: the virtual server holds an address that may be another machine's by now.
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
        """Whether a virtual server drains for as long as connections may take."""
        return server in self._deadlines and server not in self._withdrawn

    def forget(self, server: ServerId, destination: DestinationId | None = None) -> None:
        """A destination, or all of a server, came back or is gone."""
        of_server = self._deadlines.get(server)
        if of_server is None:
            return
        if destination is not None:
            of_server.pop(destination, None)
        if destination is None or not of_server:
            del self._deadlines[server]
            self._withdrawn.discard(server)

    def recall(self, standing: Mapping[ServerId, Collection[DestinationId]]) -> None:
        """Forget what the kernel was found to hold no more, for others took it away."""
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
        """Seconds until the connections want to be looked at; None while nothing drains."""
        return max(0.0, self._next - self._clock()) if self._deadlines else None

    def look(self, ipvs: Ipvs) -> set[ServerId]:
        """Look at the connections; return the servers of which something has drained. Raises IpvsError."""
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
    """Whether a destination has connections that something drains for."""
    return bool(state.active if withdrawn else state.connections)
