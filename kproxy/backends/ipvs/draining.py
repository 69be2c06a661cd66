"""Destinations that have left but still have connections: kept with weight 0 until these end, or time is up.

The kernel holds the state: a destination of weight 0 that nobody wants is one that drains. So a restart finds
them again; only their time starts anew.
"""

from collections.abc import Callable, Collection, Mapping

from kproxy.kernel.ipvs.types import DestinationId, Ipvs, ServerId

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
        self._interval = _FIRST
        self._next = 0.0

    def keeps(self, server: ServerId, destination: DestinationId) -> bool:
        """Whether a destination that nobody wants any more is to stay for now."""
        if server.protocol not in _CONNECTED or self.period <= 0:
            return False
        now = self._clock()
        of_server = self._deadlines.setdefault(server, {})
        if destination not in of_server:
            of_server[destination] = now + self.period
            self._interval = _FIRST
            self._next = min(self._next, now + _FIRST) if self._next > now else now + _FIRST
        return now < of_server[destination]

    def forget(self, server: ServerId, destination: DestinationId | None = None) -> None:
        """A destination, or all of a server, came back or is gone."""
        of_server = self._deadlines.get(server)
        if of_server is None:
            return
        if destination is not None:
            of_server.pop(destination, None)
        if destination is None or not of_server:
            del self._deadlines[server]

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

    def due_in(self) -> float | None:
        """Seconds until the connections want to be looked at; None while nothing drains."""
        return max(0.0, self._next - self._clock()) if self._deadlines else None

    def look(self, ipvs: Ipvs) -> set[ServerId]:
        """Look at the connections; return the servers of which something has drained. Raises IpvsError."""
        now = self._clock()
        ended: set[ServerId] = set()
        for server, deadlines in self._deadlines.items():
            states = ipvs.destinations(server)
            for destination, deadline in deadlines.items():
                state = states.get(destination)
                if state is None or not state.connections:
                    deadlines[destination] = 0.0
                if state is None or not state.connections or now >= deadline:
                    ended.add(server)
        self._interval = _FIRST if ended else min(2 * self._interval, _LONGEST)
        self._next = now + self._interval
        return ended
