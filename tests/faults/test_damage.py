"""Somebody else takes rules, sets, virtual servers or the device away: only what is mended may be told.

While rules are missing, requests fail, and that is theirs; but none is delivered to somebody else's pod, and
connections live on wherever the kernel still knows them.
"""

import pytest

from tests.faults.site import Site
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
"""What is done, and whether services change at the same time."""


@pytest.mark.needs(Capability.SERVICE_CHAINS)
@pytest.mark.alternates("name")
@pytest.mark.parametrize("name", RULES)
def test_rules_taken_away(site: Site, name: str) -> None:
    """Without any rule left, the kernel stops tracking connections, and all that were translated are cut."""
    site.start()
    commands, changes = RULES[name]
    with site.ordeal(f"damage: {name}", refuses=True, cuts=name == "all tables emptied"):
        for family in FAMILIES:
            for arguments in commands:
                site.cluster.iptables(family, *arguments)
        if changes:
            site.change()


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_chains_of_one_service_emptied(site: Site) -> None:
    program = site.start()
    with site.ordeal("damage: chains of a service emptied", refuses=True) as case:
        for family in FAMILIES:
            chains = {line.split()[1] for line in site.cluster.rules(family) if site.shop.key in line}
            own = sorted(chain for chain in chains if chain.startswith(("KUBE-SVC-", "KUBE-SEP-")))
            case.times = len(own)
            since = program.mark()
            for chain in own:
                site.cluster.iptables(family, "-t", "nat", "-F", chain)
            for chain in own:
                program.wait_log("drift_found", chain, since=since)


@pytest.mark.needs(Capability.SERVICE_CHAINS)
def test_others_write_all_the_time(site: Site) -> None:
    """Rules of others come and go while services change: theirs stay, ours are right."""
    site.start()
    with site.ordeal("damage: others write all the time") as case:
        case.times = 40
        for number in range(case.times):
            for family in FAMILIES:
                site.cluster.iptables(family, "-t", "nat", "-N", f"OTHER-{number}")
            site.change()
        left = site.state()
        for number in range(case.times):
            for family in FAMILIES:
                site.cluster.iptables(family, "-t", "nat", "-X", f"OTHER-{number}")
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
"""What is done, and whether nothing tracks connections any more: then those that were translated are cut."""


@pytest.mark.needs(Capability.NFTABLES)
@pytest.mark.alternates("name", "changes")
@pytest.mark.parametrize("name", TABLE_DAMAGE)
@pytest.mark.parametrize("changes", [False, True], ids=["calm", "changes"])
def test_table_damaged(site: Site, name: str, *, changes: bool) -> None:
    site.start()
    script, cuts = TABLE_DAMAGE[name]
    fault = f"damage: {name}" + (" while services change" if changes else "")
    with site.ordeal(fault, refuses=True, cuts=cuts):
        site.cluster.lab.node.run(["nft", "; ".join(script.format(table=table) for table in TABLES.values())])
        if changes:
            site.change()


@pytest.mark.needs(Capability.NFTABLES)
def test_other_tables_come_and_go(site: Site) -> None:
    """The kernel counts everybody's commits: ours are told from theirs while services change."""
    site.start()
    with site.ordeal("damage: others write all the time") as case:
        case.times = 40
        for number in range(case.times):
            site.cluster.lab.node.run(["nft", f"add table inet other-{number}"])
            site.change()
        for number in range(case.times):
            site.cluster.lab.node.run(["nft", f"delete table inet other-{number}"])


VIRTUAL: dict[str, tuple[list[str], str, bool, bool]] = {
    "virtual servers cleared": (["ipvsadm", "-C"], "1s", True, True),
    "the device deleted": (["ip", "link", "del", "kube-ipvs0"], "1h", False, False),
    "its addresses flushed": (["ip", "address", "flush", "dev", "kube-ipvs0"], "1h", False, False),
    "sets flushed": (["ipset", "flush"], "1s", True, False),
}
"""The command, --ipvs-sync-period, and whether by itself it makes requests fail, or cuts connections.

Addresses are mended as soon as the kernel tells of their end; meanwhile a rule drops what would go astray.
A connection whose virtual server is gone ends with its next packet (expire_nodest_conn).
"""


@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
@pytest.mark.slow
@pytest.mark.alternates("name")
@pytest.mark.parametrize("name", VIRTUAL)
def test_what_ipvs_needs_taken_away(site: Site, name: str) -> None:
    command, period, refuses, cuts = VIRTUAL[name]
    program = site.start("--ipvs-sync-period", period)
    with site.ordeal(f"damage: {name}", refuses=refuses, cuts=cuts):
        since = program.mark()
        site.cluster.lab.node.run(command)
        program.wait_log("drift_found", since=since)
        site.change()
