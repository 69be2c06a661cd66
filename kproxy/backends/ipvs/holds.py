"""Holds: addresses that stay on the device without a service, because connections still need them.

A cluster IP belongs to the cluster, so it is kept for the full draining period. An external or load-balancer
address may belong to another machine as soon as the service gives it up, and while it is on the device, this
node answers in that machine's place: it is kept for open connections only, and for seconds (draining.py).
An address that the node has on another interface needs no hold.
"""

from collections.abc import Iterable, Sequence

from kproxy.addresses import Family
from kproxy.backends.ipvs.desired import Desired
from kproxy.backends.ipvs.draining import Draining, waited_for
from kproxy.backends.ipvs.names import sets
from kproxy.backends.ipvs.record import KernelRecord
from kproxy.kernel.ipset.types import Entry, SetSpec
from kproxy.kernel.ipvs.types import DestinationId, Ipvs, ServerId


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
        entry = Entry(server.ip, server.protocol, server.port)
        external = (self._sets.external, self._sets.external_local)
        return any(entry in record.members.get(spec, ()) for spec in external)
