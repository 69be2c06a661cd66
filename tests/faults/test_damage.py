"""Another program removes rules, sets, virtual servers or the device: kproxy repairs the drift.

While rules are missing, requests may fail. No request may reach a pod of another service, and connections
must survive wherever conntrack still has them.
"""

import pytest

from tests.faults.bench import FaultBench
from tests.faults.state import TABLES
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES

pytestmark = pytest.mark.root

RULES: dict[str, tuple[list[list[str]], bool]] = {
    "table nat flushed": ([["-t", "nat", "-F"]], False),
    "table nat flushed while services change": ([["-t", "nat", "-F"]], True),
    "table filter flushed": ([["-t", "filter", "-F"]], True),
    "jumps deleted": ([["-t", "nat", "-D", "PREROUTING", "1"], ["-t", "nat", "-D", "OUTPUT", "1"]], False),
    "all tables emptied": (
        [["-t", table, command] for table in ("nat", "filter", "mangle") for command in ("-F", "-X")],
        True,
    ),
}
"""The iptables commands, and whether services change at the same time."""


@pytest.mark.needs(Capability.SERVICE_CHAINS)
@pytest.mark.alternates("name")
@pytest.mark.parametrize("name", RULES)
def test_rules_taken_away(bench: FaultBench, name: str) -> None:
    """Without any rule left, the kernel stops connection tracking, which cuts all translated connections."""
    bench.start()
    commands, changes = RULES[name]
    with bench.inject(f"damage: {name}", refuses=True, cuts=name == "all tables emptied"):
        for family in FAMILIES:
            for arguments in commands:
                bench.cluster.iptables(family, *arguments)
        if changes:
            bench.change()


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_chains_of_one_service_emptied(bench: FaultBench) -> None:
    program = bench.start()
    with bench.inject("damage: chains of a service emptied", refuses=True) as case:
        for family in FAMILIES:
            chains = {line.split()[1] for line in bench.cluster.rules(family) if bench.shop.key in line}
            own = sorted(chain for chain in chains if chain.startswith(("KUBE-SVC-", "KUBE-SEP-")))
            case.times = len(own)
            since = program.mark()
            for chain in own:
                bench.cluster.iptables(family, "-t", "nat", "-F", chain)
            for chain in own:
                program.wait_log("drift_found", chain, since=since)


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_others_write_all_the_time(bench: FaultBench) -> None:
    """Other programs add and delete chains while services change: theirs stay, kproxy's are correct."""
    bench.start()
    with bench.inject("damage: others write all the time") as case:
        case.times = 40
        for number in range(case.times):
            for family in FAMILIES:
                bench.cluster.iptables(family, "-t", "nat", "-N", f"OTHER-{number}")
            bench.change()
        left = bench.state()
        for number in range(case.times):
            for family in FAMILIES:
                bench.cluster.iptables(family, "-t", "nat", "-X", f"OTHER-{number}")
    assert {f"IPv4 nat/OTHER-{number}" for number in range(case.times)} <= left.keys()


TABLE_DAMAGE: dict[str, tuple[str, bool]] = {
    "rules of the table flushed": ("flush table {table}", True),
    "a map emptied": ("flush map {table} services", False),
    "the table deleted": ("delete table {table}", True),
    "the table deleted, another in its place": (
        "delete table {table}; add table {table}; add chain {table} nat-prerouting",
        True,
    ),
}
"""The nft script, and whether it ends connection tracking, which cuts all translated connections."""


@pytest.mark.needs(Capability.NFTABLES)
@pytest.mark.alternates("name", "changes")
@pytest.mark.parametrize("name", TABLE_DAMAGE)
@pytest.mark.parametrize("changes", [False, True], ids=["calm", "changes"])
def test_table_damaged(bench: FaultBench, name: str, *, changes: bool) -> None:
    bench.start()
    script, cuts = TABLE_DAMAGE[name]
    fault = f"damage: {name}" + (" while services change" if changes else "")
    with bench.inject(fault, refuses=True, cuts=cuts):
        bench.cluster.lab.node.run(
            ["nft", "; ".join(script.format(table=table) for table in TABLES.values())]
        )
        if changes:
            bench.change()


@pytest.mark.needs(Capability.NFTABLES)
def test_other_tables_come_and_go(bench: FaultBench) -> None:
    """The kernel's generation counts all commits: kproxy tells its own from foreign ones."""
    bench.start()
    with bench.inject("damage: others write all the time") as case:
        case.times = 40
        for number in range(case.times):
            bench.cluster.lab.node.run(["nft", f"add table inet other-{number}"])
            bench.change()
        for number in range(case.times):
            bench.cluster.lab.node.run(["nft", f"delete table inet other-{number}"])


VIRTUAL: dict[str, tuple[list[str], str, bool, bool]] = {
    "virtual servers cleared": (["ipvsadm", "-C"], "1s", True, True),
    "the device deleted": (["ip", "link", "del", "kube-ipvs0"], "1h", False, False),
    "its addresses flushed": (["ip", "address", "flush", "dev", "kube-ipvs0"], "1h", False, False),
    "sets flushed": (["ipset", "flush"], "1s", True, False),
}
"""The command, --ipvs-sync-period, and whether the command makes requests fail, or cuts connections.

Addresses are repaired as soon as the kernel reports their deletion; until then a rule drops their packets.
A connection whose virtual server is gone ends with its next packet (expire_nodest_conn).
"""


@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
@pytest.mark.slow
@pytest.mark.alternates("name")
@pytest.mark.parametrize("name", VIRTUAL)
def test_what_ipvs_needs_taken_away(bench: FaultBench, name: str) -> None:
    command, period, refuses, cuts = VIRTUAL[name]
    program = bench.start("--ipvs-sync-period", period)
    with bench.inject(f"damage: {name}", refuses=refuses, cuts=cuts):
        since = program.mark()
        bench.cluster.lab.node.run(command)
        program.wait_log("drift_found", since=since)
        bench.change()
