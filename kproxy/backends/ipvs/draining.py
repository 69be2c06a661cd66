"""Draining: removed destinations are kept with weight 0 until their connections end, or a time limit.

The kernel holds the state: a destination of weight 0 that no service wants is draining. So a restart finds
these again; only their time limit starts again.

The address of a draining virtual server stays on the device without a service. A cluster IP belongs to the
cluster, so it is kept for the full period. If a service gave up an external or load-balancer address, another
machine may have it already; while it is on the device, this node answers in that machine's place. So such an
address is kept for open connections only, not for closing ones, and for a few seconds. An address that the
node has on another interface needs no hold.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kproxy.addresses import Family
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.names import entry_of, sets
from kproxy.backends.ipvs.record import KernelRecord
from kproxy.kernel.ipset.types import SetSpec
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

    def check(self, ipvs: Ipvs) -> set[ServerId]:
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


class AddressHolds:
    """Decides which addresses of one family are held. `own`: the node's addresses on other interfaces.

    Unless `withdraws`, external addresses are held as cluster IPs are: another mode still serves them.
    """

    def __init__(
        self, family: Family, ipvs: Ipvs, desired: Desired, draining: Draining, *, withdraws: bool
    ) -> None:
        self.own: frozenset[str] = frozenset()
        self._ipvs = ipvs
        self._desired = desired
        self._draining = draining
        self.withdraws = withdraws
        self._sets = sets(family)

    def set_own(self, own: frozenset[str]) -> None:
        """Replace the node's own addresses; new ones that are on the device become pending."""
        self._desired.addresses |= own - self.own
        self.own = own

    def touch_given_up(self, record: KernelRecord) -> None:
        """Mark the virtual servers at addresses that their last service has given up as pending.

        Destinations that drain there started with the full period, which may be too long now.
        """
        desired = self._desired
        given_up = {
            ip
            for ip in desired.addresses & record.addresses
            if not desired.wants_address(ip) and record.serves_at(ip)
        }
        if given_up:
            desired.servers.update(server for server in record.servers if server.ip in given_up)

    def kept(
        self, record: KernelRecord, server: ServerId, leaving: Sequence[DestinationId]
    ) -> Sequence[DestinationId]:
        """Return the `leaving` destinations of a virtual server that are to drain. Raises IpvsError."""
        withdrawn = self._is_withdrawn(record, server)
        kept = [d for d in leaving if self._draining.keeps(server, d, withdrawn=withdrawn)]
        if not withdrawn or not kept:
            return kept
        states = self._ipvs.destinations(server)
        return [d for d in kept if d in states and waited_for(states[d], withdrawn=True)]

    def needed(self, record: KernelRecord, ips: Iterable[str]) -> set[str]:
        """Return the addresses of `ips` at which a virtual server drains, without the node's own."""
        serving = set(filter(record.serves_at, ips)) - self.own
        if not serving:
            return serving
        return {s.ip for s in record.servers if s.ip in serving and self._desired.owner(s) is None}

    def relisted(self, server: ServerId) -> SetSpec:
        """The set to add a draining virtual server of kproxy to, if no set lists it."""
        is_long = not self.withdraws or self._draining.is_long(server)
        return self._sets.cluster_ip if is_long else self._sets.external

    def _is_withdrawn(self, record: KernelRecord, server: ServerId) -> bool:
        """Whether the address of a virtual server may belong to another machine by now."""
        desired = self._desired
        if not self.withdraws or server.ip not in record.addresses or server.ip in self.own:
            return False
        if desired.owner(server) is not None or desired.wants_address(server.ip):
            return False
        entry = entry_of(server)
        external = (self._sets.external, self._sets.external_local)
        return any(entry in record.members.get(spec, ()) for spec in external)


def waited_for(state: DestinationState, *, withdrawn: bool) -> bool:
    """Whether a destination has connections to wait for; if `withdrawn`, only open ones count."""
    return bool(state.active if withdrawn else state.connections)
