"""Pods as policies see them, and which of them has each address.

Only a pod that is neither finished nor in the host's network has addresses of its own. An address may be
that of two pods for a while, because the end of one and the start of the other arrive in any order: then the
pod counts that is not terminating, of several the newest. So the holder of an address depends on the pods
that are known, not on the order in which they became known.
"""

from collections.abc import Iterable, Iterator

import msgspec

from kproxy.addresses import parse_ip
from kproxy.plan.model import Protocol
from kproxy.plan.policy.identities import Identities, Identity
from kproxy.plan.policy.rules import NamedPort
from kproxy.state.policy_wire import Container, Pod, PodSpec

_PROTOCOLS = {each.value: each for each in Protocol} | {None: Protocol.TCP, "": Protocol.TCP}
_PORT_MAX = 65_535


class PodEntry(msgspec.Struct, frozen=True, gc=False):
    """A pod. `addresses` are canonical, and those that it has itself; `note` says why it has none.

    `ports` are sorted. `local`: it runs on this node.
    """

    key: str
    identity: Identity
    addresses: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    local: bool = False
    terminating: bool = False
    created: str = ""
    note: str = ""

    def precedence(self) -> tuple[bool, str, str]:
        """Of the pods that claim an address, the one with the greatest value has it."""
        return not self.terminating, self.created, self.key

    def numbers(self, name: str, protocol: Protocol) -> tuple[int, ...]:
        """The numbers that a port name means at this pod."""
        return tuple(number for n, p, number in self.ports if n == name and p is protocol)


class PodReader:
    """Makes the entries of one update.

    The pods of a workload share their labels and containers (kproxy.state.sharing_policies), so most of the
    work is done once for all of them. The objects must live as long as the reader.
    """

    def __init__(self, node: str, identities: Identities) -> None:
        """`node` is the name of this node."""
        self._node = node
        self._identities = identities
        self._entered: dict[tuple[str, int], Identity] = {}
        self._ports: dict[tuple[int, int], tuple[NamedPort, ...]] = {}

    def read(self, key: str, pod: Pod) -> PodEntry:
        """The entry of a pod, which enters its identity."""
        metadata, spec = pod.metadata, pod.spec
        addresses, note = addresses_of(pod)
        labels = metadata.namespace, id(metadata.labels)
        identity = self._entered.get(labels)
        if identity is not None and identity.pods:
            identity.pods += 1
        else:
            identity = self._identities.enter(metadata.namespace, metadata.labels)
            self._entered[labels] = identity
        ports: tuple[NamedPort, ...] = ()
        if spec is not None:
            containers = id(spec.containers), id(spec.init_containers)
            known = self._ports.get(containers)
            ports = self._ports[containers] = named_ports(spec) if known is None else known
        return PodEntry(
            key,
            identity,
            addresses,
            ports,
            pod.node == self._node,
            metadata.deletion_timestamp is not None,
            metadata.creation_timestamp or "",
            note,
        )


def addresses_of(pod: Pod) -> tuple[tuple[str, ...], str]:
    """The canonical addresses that a pod has itself, or none and the reason."""
    if pod.host_network:
        return (), "uses the host's network"
    if pod.finished:
        return (), "is finished"
    found: dict[str, None] = {}
    for text in pod.addresses:
        try:
            found[parse_ip(text)[1]] = None
        except ValueError:
            continue
    return tuple(found), "" if found else "has no address yet"


def named_ports(spec: PodSpec) -> tuple[NamedPort, ...]:
    """The named ports of containers and sidecars (init containers that are always restarted; KEP-753)."""
    found = {
        (port.name, _PROTOCOLS[port.protocol], port.container_port)
        for container in _lasting(spec.containers or (), spec.init_containers or ())
        for port in container.ports or ()
        if port.name and port.protocol in _PROTOCOLS and 1 <= port.container_port <= _PORT_MAX
    }
    return tuple(sorted(found)) if found else ()


def _lasting(containers: Iterable[Container], init_containers: Iterable[Container]) -> Iterator[Container]:
    yield from containers
    for each in init_containers:
        if each.restart_policy == "Always":
            yield each


class AddressBook:
    """Which pod has each address. `holders` is changed by `claim` and `release` only."""

    def __init__(self) -> None:
        self.holders: dict[str, PodEntry] = {}
        self._claims: dict[str, list[PodEntry]] = {}
        """All pods of the addresses that more than one claims."""

    def claim(self, pod: PodEntry) -> None:
        """A pod has its addresses now, or claims them beside others."""
        for address in pod.addresses:
            holder = self.holders.get(address)
            if holder is None:
                self.holders[address] = pod
            else:
                claims = self._claims.setdefault(address, [holder])
                claims.append(pod)
                self.holders[address] = max(claims, key=PodEntry.precedence)

    def release(self, pod: PodEntry) -> None:
        """A pod that has claimed its addresses does so no more."""
        for address in pod.addresses:
            claims = self._claims.get(address)
            if claims is None:
                del self.holders[address]
                continue
            claims.remove(pod)
            self.holders[address] = max(claims, key=PodEntry.precedence)
            if len(claims) == 1:
                del self._claims[address]
