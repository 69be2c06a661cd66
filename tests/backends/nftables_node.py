"""A node in memory in nftables mode: a backend over a fake, and what its table serves."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.nftables.backend import NftablesBackend
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.kernel.nft.types import Nft
from tests.backends.node import Node
from tests.support.fake_nft import FakeNft

CONFIG = NftablesConfig(
    Family.IPV4,
    local_traffic=LocalTraffic(cidr="10.1.0.0/16"),
    node_addresses=("192.168.0.2", "203.0.113.2"),
)
"""The second node address is also one that services contest as an external one."""

_PARTS = re.compile(r"\b(all|here)-(\d{1,3}(?:-\d+)?\b|[A-Z2-7]{16}\b)")
_NUMBERED = re.compile(r"numgen random mod (\d+) map @(\S+)")
_FIRST = re.compile(r"dport map @(\S+)")
_OFFSETS = re.compile(r"numgen inc mod 1 offset (\d+) \. ")


class NftablesNode(Node[NftablesBackend, list[str]]):
    """One node; `now` is its clock. Without another `nft`, its kernel is a fake."""

    now = 1000.0

    def __init__(self, config: NftablesConfig = CONFIG, nft: Nft | None = None, *, piece: int = 40) -> None:
        self.config = config
        self.fake = FakeNft()
        self.nft: Nft = nft or self.fake
        self.piece = piece
        super().__init__(config.family)

    def make_backend(self) -> NftablesBackend:
        """A backend over the fake or the real nft."""
        return NftablesBackend(
            self.config,
            self.nft,
            ForeignWrites(self.nft.generation),
            batch_size=self.piece,
            clock=lambda: self.now,
        )

    def another(self) -> NftablesNode:
        """A node with the same settings and an empty fake."""
        return NftablesNode(self.config)

    def state(self) -> list[str]:
        """Everything in the table, a line for each object."""
        table = self.fake.table(self.config.family)
        lines = [f"{c.kind} {name} {c.declaration}" for name, c in table.containers.items()]
        lines += [
            f"{name} {{ {key} : {value} }}"
            for name, c in table.containers.items()
            for key, value in c.elements.items()
        ]
        lines += [
            f"{name} {hook} | {rule}" for name, (hook, rules) in table.chains.items() for rule in ("", *rules)
        ]
        return sorted(lines)

    def served(self) -> set[str]:
        """The frontends that lead to an endpoint, whatever number is drawn; the rest is named by an error."""
        table = self.fake.table(self.config.family)
        elements = {name: c.elements for name, c in table.containers.items()}
        found = set()
        for asked, verdict in elements["services"].items():
            way = elements["admitted"][asked] if verdict.startswith("goto firewall-") else verdict
            assert way.removeprefix("goto ") in table.chains
            for part, rest in _PARTS.findall(way):
                self._leads_somewhere(asked, f"{part}-{rest}")
            found.add(asked)
        return found

    def _leads_somewhere(self, asked: str, chain: str) -> None:
        """Fail unless a chain finds an endpoint for a frontend, whatever number is drawn."""
        table = self.fake.table(self.config.family)
        rules = table.chains[chain][1]
        if any("@affinity-" in rule for rule in rules):
            return
        firsts = [table.containers[name].elements for rule in rules for name in _FIRST.findall(rule)]
        assert any(asked in first for first in firsts), (asked, chain)
        for rule in rules:
            for count, name in _NUMBERED.findall(rule):
                numbers = _OFFSETS.findall(rule)
                prefix = " . ".join(numbers) if numbers else asked
                for number in range(0 if numbers else 1, int(count)):
                    assert f"{prefix} . {number}" in table.containers[name].elements, (asked, chain, number)


def with_config(**settings: Any) -> NftablesConfig:
    """CONFIG with other settings."""
    return msgspec.structs.replace(CONFIG, **settings)
