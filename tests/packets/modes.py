"""The modes in which kproxy programs a node; all of them must pass the same tests.

A new mode is one more line in MODES: its name, the flags that select it, and its capabilities.
"""

import enum
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kproxy_lab.lab import Lab, LabSpec
from kproxy_lab.lab.topology import Family


class Capability(enum.Enum):
    """A feature that some modes lack; the value describes it for the reason of a skip."""

    LOCALHOST_NODE_PORTS = "node ports on 127.0.0.1"
    SERVICE_CHAINS = "a chain of iptables rules for each service, which others can damage"
    VIRTUAL_SERVERS = "virtual servers with IPVS' schedulers"
    NFTABLES = "tables of its own in nftables"
    XTABLES_LOCK = "writing under the xtables lock"
    SOCKET_TABLE = "a table of programs that replace the address when a socket connects"


@dataclass(frozen=True, slots=True)
class Mode:
    """`variant` is the iptables variant whose programs the mode uses and whose rules others may damage.

    `unserved` is the outcome at an address of a service that nothing serves (any more): the lab's routers
    have no route to it, unless the node holds the address itself and refuses. `usual`: the files and tests
    that `make test` runs in this mode, None for all: one that shares its rules with another needs no more.
    """

    name: str
    variant: str
    arguments: tuple[str, ...]
    capabilities: frozenset[Capability]
    unserved: str = "Unreachable"
    usual: frozenset[str] | None = None

    def __str__(self) -> str:
        return self.name

    def program(self, family: Family, name: str = "") -> str:
        """`iptables-nft`, `ip6tables-legacy-save`, ..."""
        stem = "iptables" if family == 4 else "ip6tables"
        return f"{stem}-{self.variant}-{name}" if name else f"{stem}-{self.variant}"

    def flags(self, lab: Lab) -> tuple[str, ...]:
        """The flags that select this mode for the node of a lab."""
        if lab.cgroup is None:
            return self.arguments
        own = ("--ebpf-cgroup-root", str(lab.cgroup.path), "--ebpf-pin-directory", str(pins(lab)))
        return (*self.arguments, *own)

    def reference(self) -> tuple[str, ...]:
        """The flags for a run elsewhere that makes the same rules, and leaves the lab's cgroup alone."""
        if Capability.SOCKET_TABLE not in self.capabilities:
            return self.arguments
        return tuple("nftables" if each == self.name else each for each in self.arguments)

    def spec(self, spec: LabSpec | None = None) -> LabSpec:
        """The lab that the mode needs: this one, with a cgroup for its node where programs attach to that."""
        return replace(spec or LabSpec(), cgroup=Capability.SOCKET_TABLE in self.capabilities)

    @property
    def writer(self) -> str:
        """Suffix of the names of the programs with which the mode writes rules."""
        return "nft" if Capability.NFTABLES in self.capabilities else "restore"

    def missing(self, lab: Lab) -> list[str]:
        """The reasons why this mode cannot run in a lab here; empty when it can."""
        reasons = []
        for family in (4, 6):
            program = self.program(family, "restore")
            if shutil.which(program) is None:
                reasons.append(f"no {program}")
                continue
            tried = lab.node.run([program, "--noflush"], stdin="*nat\nCOMMIT\n*filter\nCOMMIT\n", check=False)
            if tried.returncode != 0:
                reasons.append(f"{program}: {tried.stderr.strip()}")
        return reasons


def pins(lab: Lab) -> Path:
    """The directory for the pins of a lab's node, on the lab's own bpffs."""
    assert lab.cgroup is not None
    return lab.cgroup.bpffs / "kproxy"


_IPTABLES = frozenset({Capability.LOCALHOST_NODE_PORTS, Capability.SERVICE_CHAINS})

ROUTED_ON = ("--nftables-reject-unallocated=false",)
"""What no service has is routed on, as in iptables mode; what is refused by default has tests of its own."""

MODES = (
    Mode("nft", "nft", ("--iptables-variant", "nft"), _IPTABLES),
    Mode("legacy", "legacy", ("--iptables-variant", "legacy"), _IPTABLES | {Capability.XTABLES_LOCK}),
    Mode("scalable", "nft", ("--iptables-variant", "nft", "--iptables-layout", "scalable"), _IPTABLES),
    Mode(
        "nftables",
        "nft",
        ("--proxy-mode", "nftables", "--nodeport-addresses", "0.0.0.0/0,::/0", *ROUTED_ON),
        frozenset({Capability.NFTABLES}),
    ),
    Mode(
        "ebpf",
        "nft",
        ("--proxy-mode", "ebpf", "--nodeport-addresses", "0.0.0.0/0,::/0", *ROUTED_ON),
        frozenset({Capability.NFTABLES, Capability.SOCKET_TABLE}),
        usual=frozenset(
            {
                *("test_cluster_ip.py", "test_ebpf.py", "test_ebpf_faults.py", "test_table.py"),
                "test_to_sockets_from_each_mode_and_back",
            }
        ),
    ),
    pytest.param(
        Mode(
            "ipvs",
            "legacy",
            ("--proxy-mode", "ipvs", "--iptables-variant", "legacy"),
            frozenset({Capability.VIRTUAL_SERVERS}),
            unserved="Refused",
        ),
        marks=pytest.mark.ipvs,
        id="ipvs",
    ),
)
