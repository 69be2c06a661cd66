"""A node in memory in IPVS mode: a backend over fakes of all parts of the kernel that it works on."""

from __future__ import annotations

from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.ipvs.backend import IpvsBackend
from kproxy.backends.ipvs.config import IpvsConfig
from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import sets
from kproxy.kernel.ipvs.types import DestinationId, ServerId
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.ipvs.rules import IpvsRules
from kproxy.plan.schedulers import Scheduler
from tests.backends.node import Node
from tests.builders import endpoint, endpoint_slice
from tests.support.fake_ipvs import FakeDevice, FakeIpset, FakeIpvs, Faults
from tests.support.fake_xtables import FakeXtables

RULES = IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr="10.1.0.0/16"))
CONFIG = IpvsConfig(
    rules=RULES,
    scheduler=Scheduler("rr"),
    node_addresses=("192.168.0.2", "192.168.0.3"),
    local_addresses=frozenset({"192.168.0.2", "192.168.0.3", "127.0.0.1"}),
)

CLUSTER_IP = ServerId("TCP", "10.96.0.1", 80)
"""The virtual server of the usual service."""


class IpvsNode(Node[IpvsBackend, list[str]]):
    """One node; `now` is its clock."""

    def __init__(self, config: IpvsConfig = CONFIG) -> None:
        self.config = config
        self.now = 1000.0
        self.faults = Faults()
        self.ipvs = FakeIpvs(self.faults)
        self.ipset = FakeIpset(self.faults)
        self.device = FakeDevice(self.faults)
        self.xtables = FakeXtables(config.family, Variant.NFT)
        super().__init__(config.family)

    @property
    def handles(self) -> KernelHandles:
        """What a backend works on."""
        return KernelHandles(self.ipvs, self.ipset, self.device)

    def make_backend(self) -> IpvsBackend:
        """A backend over all parts of the kernel."""
        rules = IpvsRules(self.config.rules, self.xtables, ForeignWrites(self.xtables.generation))
        return IpvsBackend(self.config, self.handles, rules, lambda: self.now)

    def another(self) -> IpvsNode:
        """A node with the same settings and an empty kernel."""
        return IpvsNode(self.config)

    def drained(self) -> None:
        """Let time pass until nothing drains any more."""
        for _ in range(50):
            wait = self.backend.run_timers()
            if wait is None:
                return
            self.now += wait
        raise AssertionError("something drains for ever")

    def forget(self) -> None:
        """Forget what was sent and read so far."""
        self.ipvs.sent.clear()
        self.ipset.sent.clear()
        self.ipvs.reads = self.ipset.reads = self.device.reads = self.device.changes = 0

    @property
    def messages(self) -> int:
        """How many changes were sent since then."""
        return len(self.ipvs.sent) + len(self.ipset.sent) + self.device.changes

    @property
    def reads(self) -> int:
        """How often the kernel was read since then."""
        return self.ipvs.reads + self.ipset.reads + self.device.reads

    def state(self) -> list[str]:
        """Everything in the kernel, a line for each object."""
        lines = [
            f"server {server.protocol} {server.ip} {server.port} {settings} {sorted(destinations.items())}"
            for server, (settings, destinations) in self.ipvs.table.items()
        ]
        lines += [
            f"set {name} {entry}" for name, (_, entries) in self.ipset.sets.items() for entry in entries
        ]
        lines += [f"set {name}" for name in self.ipset.sets]
        lines += [f"mark {family} {mark:#x}" for family, mark in self.ipvs.local_marks]
        lines += [f"address {ip}" for ip in self.device.held or ()]
        lines += [
            f"{table} {chain} {rule}"
            for table, chains in parse_save(self.xtables.save()).items()
            for chain, rules in chains.items()
            for rule in (chain, *rules)
        ]
        return sorted(lines)

    def listed(self) -> set[ServerId]:
        """The virtual servers that the sets list as ours."""
        return {
            ServerId(entry.protocol, entry.ip, entry.port)
            for spec in sets(self.config.family).owned_servers
            for entry in self.ipset.entries(spec)
        }

    def serving(self, server: ServerId) -> dict[DestinationId, int]:
        """The destinations of a virtual server that take new connections."""
        _, destinations = self.ipvs.table.get(server, (None, {}))
        return {destination: weight for destination, weight in destinations.items() if weight}

    def served(self) -> set[ServerId]:
        """The virtual servers that take connections; one that stands and is not listed is an error."""
        assert set(self.ipvs.table) <= self.listed()
        return {server for server in self.ipvs.table if self.serving(server)}


def with_config(**settings: Any) -> IpvsConfig:
    """CONFIG with other settings."""
    return msgspec.structs.replace(CONFIG, **settings)


def eps(*addresses: str, node: str = "node2", service: str = "svc1", **fields: Any) -> dict[str, Any]:
    """A slice with these endpoints."""
    return endpoint_slice(*(endpoint(ip, node=node) for ip in addresses), service=service, **fields)
