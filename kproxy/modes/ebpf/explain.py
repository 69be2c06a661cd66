"""What `explain` needs of the eBPF mode: how the socket table is read, and its intended peculiarities."""

import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from kproxy.addresses import Family, join_host_port, split_host_port
from kproxy.backends.core.packets import Branch, Hook, SharedRules
from kproxy.backends.ebpf.render import describe_slots, frontend_key, left_to_packets
from kproxy.config.model import ProxyConfig
from kproxy.kernel.bpf.layout import Layout
from kproxy.kernel.bpf.map_set import MapSet
from kproxy.kernel.bpf.maps import read_element
from kproxy.kernel.bpf.pins import open_pin
from kproxy.kernel.bpf.programs import HOOKS
from kproxy.kernel.bpf.socket_table import SETTINGS_MAP, open_published
from kproxy.kernel.bpf.types import SLOT_WORDS, BpfError, BpfFailure
from kproxy.kernel.processes import Runner
from kproxy.modes.base import ExplainError, KernelRules
from kproxy.modes.ebpf.kernel import known_tables, table_settings
from kproxy.modes.ebpf.mode import socket_config
from kproxy.modes.nftables import explain as of_table
from kproxy.node.facts import FamilyFacts
from kproxy.plan.model import PortPlan, Protocol
from kproxy.plan.outcomes import ModeFacts, Packet, Routing, Where

_COOKIE_BYTES = 8
_VALUE = struct.Struct("=III")
_BEFORE_ALL = -(1 << 31)
"""A priority before all chains of a hook: the address is replaced before there is a packet."""

Endpoints = Callable[[str, int], Sequence[str]]
"""The endpoints in the slots of a frontend, by its address and port; none if it is not in the map."""


class SocketsAtHook:
    """The socket table, where packets of this node's clients come from; see HookChain.

    A client has its endpoint before it sends anything, so that packets only seem to pass it.
    """

    table = "socket table"
    translates = False
    priority = _BEFORE_ALL

    def __init__(self, hook: Hook, endpoints: Endpoints, *, pods: bool) -> None:
        """`pods`: sockets of pods are served, not only those of the node's network namespace."""
        self.hook = hook
        self._endpoints = endpoints
        self._clients = {Where.NODE, Where.POD} if pods else {Where.NODE}

    def walk(self, branch: Branch, routing: Routing) -> Sequence[Branch]:  # noqa: ARG002 - of HookChain
        """See HookChain.walk."""
        flow = branch.flow
        if flow.connected or flow.client not in self._clients or flow.protocol is not Protocol.TCP:
            return [branch]
        slots = self._endpoints(flow.destination, flow.port)
        if not slots:
            return [branch]
        frontend = join_host_port(flow.destination, flow.port)
        found = []
        for endpoint, count in Counter(slots).items():
            ip, port = split_host_port(endpoint)
            to = msgspec.structs.replace(flow, destination=ip, port=port, connected=True)
            step = f"socket table: {frontend} -> {endpoint}, {count} of {len(slots)} slots"
            found.append(branch.share(count / len(slots)).step(step).to(to))
        return found


class SocketReader:
    """Reads the maps that serve. See RuleReader.

    Who asks may not know the settings of the process that has the table: then it is looked for.
    """

    def __init__(self, config: ProxyConfig, _runner: Runner) -> None:
        self._settings = table_settings(config)

    dump = ""

    def read_kernel(self, family: Family, shared: SharedRules) -> KernelRules:  # noqa: ARG002 - of RuleReader
        """Read the maps of the table; without programs on the hooks there is none."""
        candidates = (self._settings.pins, *known_tables())
        directory = next((each for each in candidates if is_published(each)), None)
        if directory is None:
            return KernelRules()
        try:
            maps = open_published(directory)
            try:
                endpoints = _read(maps, family)
            finally:
                maps.close()
            pods = _serves_pods(directory)
        except BpfError as error:
            if error.kind is BpfFailure.INTERRUPTED:
                return KernelRules()
            raise ExplainError(f"cannot read the socket table: {error.message}") from error
        return KernelRules(
            tuple(SocketsAtHook(hook, endpoints, pods=pods) for hook in (Hook.OUTPUT, Hook.PREROUTING))
        )

    @staticmethod
    def load_dump(_text: str, _family: Family) -> KernelRules | None:
        """Return None: dumps of rules have no socket table."""
        return None


def facts(config: ProxyConfig, family: Family, node: FamilyFacts) -> ModeFacts:
    """The intended peculiarities of the mode for a family: those of the table, and who is served at once."""
    found = of_table.facts(config, family, node)
    settings = table_settings(config)
    if not is_published(settings.pins):
        return found
    sockets = socket_config(config, family, node)
    clients = {Where.NODE} if settings.host_namespace_only else {Where.NODE, Where.POD}

    def at_socket(packet: Packet, port: PortPlan) -> bool:
        return packet.where in clients and left_to_packets(port, sockets) is None

    return msgspec.structs.replace(found, at_socket=at_socket)


def is_published(directory: Path) -> bool:
    """Whether programs are pinned that ask the maps."""
    return any(map(Layout(directory).has_link, HOOKS))


def _serves_pods(directory: Path) -> bool:
    """Whether sockets of every network namespace are served. Raises BpfError."""
    descriptor = open_pin(Layout(directory).shared(SETTINGS_MAP), read_only=True)
    try:
        return not any(read_element(SETTINGS_MAP, descriptor, 0, _COOKIE_BYTES))
    finally:
        os.close(descriptor)


def _read(maps: MapSet, family: Family) -> Endpoints:
    frontends = maps.frontends(family)
    words = SLOT_WORDS[family]
    content = bytes(maps.slots(family))

    def endpoints(ip: str, port: int) -> list[str]:
        value = frontends.get(frontend_key(ip, port, family))
        if value is None:
            return []
        first, count, _ = _VALUE.unpack(value)
        size = words * 8
        return describe_slots(content[first * size : (first + count) * size], family)

    return endpoints
