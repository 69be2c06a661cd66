"""The routes of a node that exists only on paper."""

import ipaddress

from kproxy.plan.outcomes import Route

NODE = ("192.168.0.2", "fd00:168::2")
NOWHERE = ("198.51.100.0/24", "2001:db8:ffff::/48")


class PaperRouting:
    """Pods of the node behind cni0, everything else behind eth0, and no route to NOWHERE. See Routing."""

    def route(
        self, destination: str, source: str = "", mark: int = 0, interface: str | None = None
    ) -> Route | None:
        del source, mark, interface
        address = ipaddress.ip_address(destination)
        own = NODE[address.version == 6]
        if any(address in ipaddress.ip_network(each) for each in NOWHERE):
            return None
        if self.is_local(destination):
            return Route("lo", local=True, source=destination)
        here = any(address in ipaddress.ip_network(each) for each in ("10.1.1.0/24", "fd00:1:1::/64"))
        return Route("cni0" if here else "eth0", source=own)

    def is_local(self, address: str) -> bool:
        return address in NODE or ipaddress.ip_address(address).is_loopback
