"""A node in memory with network policies: tables as the planner gives them, and a backend over a fake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import SyncReport
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.policy import names
from kproxy.backends.policy.backend import PolicyBackend
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.text import everything
from kproxy.kernel.nft.commands import AddTable, DeleteTable, Transaction
from kproxy.kernel.nft.types import Nft
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, Group, PeerMatch, PolicyTable, PortMatch, RuleMatch, Touched
from kproxy.plan.policy.names import content_name, named_port_set
from tests.support.fake_nft import ListedNft

CONFIG = PolicyConfig(Family.IPV4)


def ip(number: int, family: Family = Family.IPV4) -> str:
    """The address of a pod of this node."""
    return f"10.1.0.{number}" if family is Family.IPV4 else f"fd00:1::{number:x}"


def tcp(*ranges: tuple[int, int] | int, protocol: Protocol = Protocol.TCP) -> PortMatch:
    """Ports of a rule."""
    found = sorted(each if isinstance(each, tuple) else (each, each) for each in ranges)
    return PortMatch(protocol, tuple(found))


def named(name: str, protocol: Protocol = Protocol.TCP) -> PortMatch:
    """A port by name."""
    return PortMatch(protocol, (), name)


def pods(name: str) -> PeerMatch:
    """The pods of a selector."""
    return PeerMatch(pods=f"p-{name}")


class Tables:
    """A PolicyTable that is changed as the planner does: in place, and what was touched is noted."""

    def __init__(self) -> None:
        self.table = PolicyTable()
        self._touched: dict[str, set[str]] = {
            key: set() for key in ("groups", "members", "ranges", "addresses")
        }

    def touched(self) -> Touched:
        """What was changed since the last call."""
        found = Touched(**{key: frozenset(value) for key, value in self._touched.items()})
        for value in self._touched.values():
            value.clear()
        return found

    def group(self, direction: Direction, *rules: RuleMatch, policy: str = "default/a") -> str:
        """Make a group, with the sets that it needs; return its name."""
        name = content_name(direction.value[0], (direction, policy, rules))
        self.table.groups[name] = Group(name, direction, (policy,), rules)
        self._touched["groups"].add(name)
        for rule in rules:
            for peer in rule.peers:
                if peer.pods and peer.pods not in self.table.peers:
                    self.members(peer.pods, ())
            for port in rule.ports:
                if port.name:
                    of = named_port_set(port.name, port.protocol)
                    self.table.named_protocols[of] = port.name, port.protocol
                    self.table.named.setdefault(of, set())
                    self._touched["members"].add(of)
        return name

    def drop_group(self, name: str) -> None:
        """Remove a group."""
        del self.table.groups[name]
        self._touched["groups"].add(name)

    def members(self, name: str, addresses: Iterable[str]) -> None:
        """Set the members of a pod set."""
        self.table.peers[name] = set(addresses)
        self._touched["members"].add(name)

    @staticmethod
    def name_of(name: str, protocol: Protocol) -> str:
        """The name of the set of a port name."""
        return named_port_set(name, protocol)

    def ports(self, name: str, protocol: Protocol, found: Iterable[tuple[str, int]]) -> None:
        """Set the members of the set of a port name."""
        of = named_port_set(name, protocol)
        self.table.named[of] = set(found)
        self._touched["members"].add(of)

    def ranges(self, *cidrs: str) -> PeerMatch:
        """Make a set of address ranges."""
        name = content_name("c", cidrs)
        self.table.ranges[name] = cidrs
        self._touched["ranges"].add(name)
        return PeerMatch(ranges=name)

    def pod(self, address: str, *, egress: str | None = None, ingress: str | None = None) -> None:
        """Set the groups of a local pod's address."""
        self.table.local[address] = f"default/{address}"
        for direction, group in ((Direction.EGRESS, egress), (Direction.INGRESS, ingress)):
            if group is None:
                self.table.isolated[direction].pop(address, None)
            else:
                self.table.isolated[direction][address] = group
        self._touched["addresses"].add(address)

    def drop_pod(self, address: str) -> None:
        """Remove a local pod's address."""
        del self.table.local[address]
        for led in self.table.isolated.values():
            led.pop(address, None)
        self._touched["addresses"].add(address)


class PolicyNode:
    """One node; `now` is its clock. Without another `nft`, its kernel is a fake."""

    now = 1000.0

    def __init__(self, config: PolicyConfig = CONFIG, nft: Nft | None = None) -> None:
        self.config = config
        self.fake = ListedNft()
        self.nft: Nft = nft or self.fake
        self.tables = Tables()
        self.start()

    def start(self) -> None:
        """Start, or start again over the same kernel and the same objects."""
        self.backend = PolicyBackend(
            self.config, self.nft, ForeignWrites(self.nft.generation), clock=lambda: self.now
        )
        self.tables.touched()
        self.backend.update(self.tables.table, everything(self.tables.table))

    def sync(self) -> SyncReport:
        """Write what changed."""
        self.backend.update(self.tables.table, self.tables.touched())
        return self.backend.sync()

    def done(self) -> SyncReport:
        """Sync, with nothing going wrong."""
        report = self.sync()
        assert (report.error, report.failed, dict(report.leftovers)) == (None, {}, {})
        return report

    def remove(self) -> None:
        """Delete the table."""
        self.nft.commit(Transaction(self.config.family, names.TABLE, [AddTable(), DeleteTable()]))

    def replace(self) -> None:
        """Write everything into a new table."""
        self.remove()
        self.start()
        self.done()

    def state(self) -> list[str]:
        """Everything in the fake's table, a line for each object."""
        return state(self.fake, self.config.family)

    def fresh(self) -> list[str]:
        """What a new node would have for the same objects."""
        other = PolicyNode(self.config)
        other.backend.update(self.tables.table, everything(self.tables.table))
        report = other.backend.sync()
        assert (report.error, report.failed) == (None, {})
        return other.state()


def state(fake: ListedNft, family: Family) -> list[str]:
    """Everything in a fake's table, a line for each object."""
    table = fake.table(family, names.TABLE)
    lines = [f"{c.kind} {name} {c.declaration}" for name, c in table.containers.items()]
    lines += [
        f"{name} {{ {key} : {value} }}"
        for name, c in table.containers.items()
        for key, value in c.elements.items()
    ]
    lines += [
        f"{name} {hook} | {number} {rule}"
        for name, (hook, rules) in table.chains.items()
        for number, rule in enumerate(("", *rules))
    ]
    return sorted(lines)


def sample(family: Family = Family.IPV4) -> Tables:
    """A table with rules of every kind."""
    made = Tables()
    web = made.group(
        Direction.INGRESS,
        RuleMatch((tcp(80),), (pods("front"),), "default/web ingress[0]"),
        RuleMatch((tcp(443, (8000, 8010)), tcp(53, protocol=Protocol.UDP)), (pods("front"), pods("back"))),
        RuleMatch((PortMatch(Protocol.SCTP),), (made.ranges(*_cidrs(family)),)),
        policy="default/web",
    )
    out = made.group(
        Direction.EGRESS,
        RuleMatch((named("dns", Protocol.UDP), named("http")), (pods("back"),)),
        RuleMatch((), (pods("front"),)),
        RuleMatch((tcp((1, 65535)),)),
        policy="default/out",
    )
    many = made.group(
        Direction.INGRESS,
        *(RuleMatch((tcp(5000 + n % 7),), (pods("front" if n % 2 else "back"),)) for n in range(20)),
        RuleMatch((tcp(*range(6000, 6020, 2)),), (pods("back"),)),
        RuleMatch((tcp((5003, 5100)),), (pods("front"),)),
        RuleMatch((tcp(7000),), tuple(map(pods, ("front", "back", *"rstuvxyz")))),
        policy="default/many",
    )
    deny = made.group(Direction.INGRESS, policy="default/deny")
    made.members("p-front", {ip(1, family), ip(2, family)})
    made.members("p-back", {ip(3, family)})
    made.ports("dns", Protocol.UDP, {(ip(3, family), 53)})
    made.ports("http", Protocol.TCP, {(ip(3, family), 80), (ip(3, family), 8080)})
    made.pod(ip(1, family), ingress=web, egress=out)
    made.pod(ip(2, family), ingress=web)
    made.pod(ip(3, family), ingress=deny)
    made.pod(ip(4, family))
    made.pod(ip(5, family), ingress=many)
    return made


def _cidrs(family: Family) -> tuple[str, ...]:
    if family is Family.IPV4:
        return ("0.0.0.0/5", "192.0.2.7/32", "198.51.100.0/24", "224.0.0.0/3")
    return ("2001:db8::7/128", "2001:db8:1::/48", "ff00::/8")


def with_config(**settings: Any) -> PolicyConfig:
    """CONFIG with other settings."""
    return msgspec.structs.replace(CONFIG, **settings)


Counts = Mapping[str, tuple[int, int]]
