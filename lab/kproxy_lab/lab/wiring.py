"""Links, addresses, routes and sysctls of the lab, set through netlink.

All of it runs on the lab's namespace thread: a netlink socket speaks for the namespace in which it was
opened, so one per namespace is opened there and kept until the wiring is done.
"""

import contextlib
import ipaddress
import select
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from pyroute2 import IPRoute

from kproxy_lab.lab.namespaces import Namespace, family_of

IFA_F_NODAD: Final = 0x02  # linux/if_addr.h
RTMGRP_LINK: Final = 1  # linux/rtnetlink.h
CARRIER_SECONDS: Final = 10.0

# Set before any link exists, so that new links start from `default`. Without duplicate address detection an
# IPv6 address works at once; without redirects and router advertisements routes do not change; without ICMP
# rate limits (six to a peer, then one a second) every refused request gets an ICMP error; and no client's
# source port can be a port of a proxy or a node port.
EVERYWHERE: Final = {
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/icmp_ratemask": "0",
    "ipv6/icmp/ratemask": "\n",
    "ipv4/ip_local_port_range": "10000 60999",
    "ipv4/ip_local_reserved_ports": "10000-10300,30000-32767",
    "ipv4/tcp_tw_reuse": "1",
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/all/accept_redirects": "0",
    "ipv6/conf/default/accept_redirects": "0",
    "ipv6/conf/default/router_solicitations": "0",
}
FORWARDING: Final = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
"""A new namespace has the values of the machine's own, which may forward or not."""
WHERE_PRESENT: Final = {
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}


class CarrierError(RuntimeError):
    """Links of the lab did not come up."""


class Wiring:
    """Netlink sockets into the namespaces being wired; use it as a context manager, on the thread."""

    def __init__(self) -> None:
        self._sockets: dict[str, Any] = {}
        self._indexes: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def prepare(self, namespace: Namespace, *, forwarding: bool) -> None:
        """Set the sysctls of a new namespace and bring its loopback up."""
        namespace.visit()
        for name, value in (EVERYWHERE | dict.fromkeys(FORWARDING, str(int(forwarding)))).items():
            Path("/proc/sys/net", name).write_text(value)
        for name, value in WHERE_PRESENT.items():
            with contextlib.suppress(FileNotFoundError, PermissionError):
                Path("/proc/sys/net", name).write_text(value)
        self._rtnl(namespace).link("set", index=1, state="up")

    def bridge(self, namespace: Namespace, name: str) -> None:
        """Create a bridge that floods what it does not know yet: no spanning tree, no snooping."""
        self._rtnl(namespace).link(
            "add", ifname=name, kind="bridge", br_stp_state=0, br_mcast_snooping=0, state="up"
        )

    def cable(
        self,
        near: Namespace,
        near_name: str,
        far: Namespace,
        far_name: str,
        *,
        bridge: str | None = None,
        hairpin: bool = False,
    ) -> None:
        """A veth pair between two namespaces, both ends up; the near end in `bridge` when given.

        `hairpin`: the bridge may send a frame back through the port that it came from.
        """
        with far.path.open() as target:
            self._rtnl(near).link(
                "add",
                ifname=near_name,
                kind="veth",
                peer={"ifname": far_name, "net_ns_fd": target.fileno()},
            )
        master = {} if bridge is None else {"master": self._index(near, bridge)}
        self._rtnl(near).link("set", index=self._index(near, near_name), state="up", **master)
        if hairpin:
            self._rtnl(near).brport("set", index=self._index(near, near_name), mode=1)
        self._rtnl(far).link("set", index=self._index(far, far_name), state="up")

    def address(self, namespace: Namespace, link: str, *addresses: str) -> None:
        """Give a link addresses ("ip/bits"); of each family the first given is the default source.

        The kernel prefers the IPv4 address that came first and the IPv6 address that came last.
        """
        v4 = [text for text in addresses if ":" not in text]
        v6 = [text for text in addresses if ":" in text]
        for text in (*v4, *reversed(v6)):
            ip, _, bits = text.partition("/")
            self._rtnl(namespace).addr(
                "add",
                index=self._index(namespace, link),
                address=ip,
                prefixlen=int(bits),
                **({"flags": IFA_F_NODAD} if ":" in ip else {}),
            )

    def route(
        self, namespace: Namespace, destination: str, *, via: str | None = None, dev: str | None = None
    ) -> None:
        """Add a route through a gateway, or straight out of a link when only `dev` is given."""
        network = ipaddress.ip_network(destination)
        where: dict[str, Any] = {}
        if via is not None:
            where["gateway"] = via
        if dev is not None:
            where["oif"] = self._index(namespace, dev)
        self._rtnl(namespace).route(
            "add",
            family=family_of(destination),
            dst=str(network),
            scope="link" if via is None and network.version == 4 else "universe",
            **where,
        )

    def wait_for_carrier(self, namespaces: Iterable[Namespace]) -> None:
        """Wait until every link of these namespaces is operationally up.

        The kernel handles carrier changes of many links in batches up to a second apart (its linkwatch),
        and a bridge forwards nothing for a port until then. Raises CarrierError after ten seconds.
        """
        deadline = time.monotonic() + CARRIER_SECONDS
        for namespace in namespaces:
            namespace.visit()
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
                changes.bind((0, RTMGRP_LINK))
                while down := self._links_down(namespace):
                    left = deadline - time.monotonic()
                    if left <= 0 or not select.select([changes], [], [], left)[0]:
                        raise CarrierError(f"links still down in {namespace.name}: {', '.join(down)}")
                    changes.recv(65536)

    def _links_down(self, namespace: Namespace) -> list[str]:
        rtnl = self._rtnl(namespace)
        links = list(rtnl.get_links())
        bridges = {link.get("master") for link in links}  # one without ports has no carrier and needs none
        awaited = [link for link in links if link.get("link") is not None or link["index"] in bridges]
        down = [link["index"] for link in awaited if link.get("operstate") != "UP"]
        # Asked for one link, Linux since 6.8 handles its carrier change at once (linkwatch_sync_dev).
        again = [link for index in down for link in rtnl.link("get", index=index)]
        return [link.get("ifname") for link in again if link.get("operstate") != "UP"]

    def _rtnl(self, namespace: Namespace) -> Any:
        if namespace.name not in self._sockets:
            namespace.visit()
            self._sockets[namespace.name] = IPRoute()
        return self._sockets[namespace.name]

    def _index(self, namespace: Namespace, link: str) -> int:
        key = namespace.name, link
        if key not in self._indexes:
            self._indexes[key] = self._rtnl(namespace).link_lookup(ifname=link)[0]
        return self._indexes[key]
