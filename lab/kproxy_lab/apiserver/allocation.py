"""Allocation of cluster IPs and node ports, and their owners.

Holders are known from what is stored, not from what was handed out, so that objects written
past validation are seen too and a failed create leaks nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kproxy_lab.apiserver.errors import ApiError

SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
NODE_PORTS = range(30_000, 32_768)
"""kube-apiserver's default --service-node-port-range."""

_FIRST_ADDRESS = 16
"""Offset of the first allocated address; lower ones are left for addresses chosen by hand."""

Claim = str | int
"""A cluster IP in canonical text, or a node port number."""


class Allocations:
    """Owners (``namespace/name``) of cluster IPs and node ports."""

    def __init__(
        self, service_cidrs: Iterable[str] = SERVICE_CIDRS, node_ports: Collection[int] = NODE_PORTS
    ) -> None:
        self.networks = {f"IPv{net.version}": net for net in map(ipaddress.ip_network, service_cidrs)}
        self.node_ports = node_ports
        self._owners: dict[Claim, str] = {}
        self._claims: dict[str, set[Claim]] = {}
        self._next = dict.fromkeys(self.networks, _FIRST_ADDRESS)

    @property
    def families(self) -> tuple[str, ...]:
        """Return the cluster's IP families, the primary first."""
        return tuple(self.networks)

    def owner_of(self, claim: Claim) -> str | None:
        """Return who holds a cluster IP (canonical text) or node port."""
        return self._owners.get(claim)

    def record(self, owner: str, spec: object) -> None:
        """Replace the owner's claims by those its Service spec states, however malformed it is.

        What another owner already holds stays with that owner.
        """
        self.release(owner)
        claims = {claim for claim in _stated(spec) if claim not in self._owners}
        if claims:
            self._claims[owner] = claims
            self._owners.update(dict.fromkeys(claims, owner))

    def release(self, owner: str) -> None:
        """Drop all claims of an owner."""
        for claim in self._claims.pop(owner, ()):
            del self._owners[claim]

    def free_address(self, family: str) -> str:
        """Return a free cluster IP of ``IPv4`` or ``IPv6``.

        Raises:
            ApiError: 500, the range is full (as the real server answers).
        """
        network = self.networks[family]
        last = network.num_addresses - 1
        span = max(last - 1, 1)
        for _ in range(span):
            offset = self._next[family]
            self._next[family] = 1 if offset + 1 >= last else offset + 1
            address = str(network[min(offset, last)])
            if address not in self._owners:
                return address
        raise ApiError(500, f"failed to allocate an {family} address: range {network} is full")

    def free_node_port(self, taken: Collection[int] = ()) -> int:
        """Return a free node port not in ``taken``.

        Raises:
            ApiError: 500, the range is full.
        """
        for port in self.node_ports:
            if port not in self._owners and port not in taken:
                return port
        raise ApiError(500, "failed to allocate a node port: range is full")


def canonical(address: object) -> str | None:
    """Return an IP address in canonical text, or None if it is not one."""
    if not isinstance(address, str):
        return None
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None


def _stated(spec: object) -> Iterable[Claim]:
    if not isinstance(spec, Mapping):
        return
    addresses = spec.get("clusterIPs")
    for address in [*(addresses if isinstance(addresses, list) else ()), spec.get("clusterIP")]:
        if (text := canonical(address)) is not None:
            yield text
    ports = spec.get("ports")
    numbers: list[Any] = [spec.get("healthCheckNodePort")]
    for port in ports if isinstance(ports, list) else ():
        numbers.append(port.get("nodePort") if isinstance(port, Mapping) else None)  # noqa: PERF401
    for number in numbers:
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            yield number
