"""Which addresses stay on the device although no service has them: those that connections still need.

A cluster IP is the cluster's own, so it may wait for its connections as long as these last. An external or
load-balancer address may be another machine's as soon as a service gives it up, and on the device it makes
this node answer in that machine's place: it waits for open connections only, and for seconds (draining.py).
An address that the node has on another interface leads to virtual servers from there.
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
    """One family's addresses that are held for connections. `own` are the node's on other interfaces.

    Unless it `withdraws`, external addresses wait as cluster IPs do: they are still served, in another mode.
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
        """Take other addresses as the node's own; those of them on the device are looked at again."""
        self._desired.addresses |= own - self.own
        self.own = own

    def touch_given_up(self, record: KernelRecord) -> None:
        """Look again at what drains at an address that its last service has given up.

        While a service had the address, that kept nobody from anything, and may have time left.
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
        """Those destinations of a virtual server that are to drain. Raises IpvsError."""
        withdrawn = self._is_withdrawn(record, server)
        kept = [d for d in leaving if self._draining.keeps(server, d, withdrawn=withdrawn)]
        if not withdrawn or not kept:
            return kept
        states = self._ipvs.destinations(server)
        return [d for d in kept if d in states and waited_for(states[d], withdrawn=True)]

    def needed(self, record: KernelRecord, ips: Iterable[str]) -> set[str]:
        """Those addresses at which a virtual server drains, but for the node's own."""
        serving = set(filter(record.serves_at, ips)) - self.own
        if not serving:
            return serving
        return {s.ip for s in record.servers if s.ip in serving and self._desired.owner(s) is None}

    def relisted(self, server: ServerId) -> SetSpec:
        """The set that is to list a virtual server of ours which drains and which none lists."""
        is_long = not self.withdraws or self._draining.is_long(server)
        return self._sets.cluster_ip if is_long else self._sets.external

    def _is_withdrawn(self, record: KernelRecord, server: ServerId) -> bool:
        """Whether a virtual server holds an address which may be another machine's by now."""
        desired = self._desired
        if not self.withdraws or server.ip not in record.addresses or server.ip in self.own:
            return False
        if desired.owner(server) is not None or desired.wants_address(server.ip):
            return False
        entry = Entry(server.ip, server.protocol, server.port)
        external = (self._sets.external, self._sets.external_local)
        return any(entry in record.members.get(spec, ()) for spec in external)
