"""Native nft rules in the tables of iptables-nft: iptables-nft-save prints nothing of such a table.

A table that cannot be read so is not an empty one: nothing is inserted twice, drift is told as it is, and a
cleanup takes everything away that no rule of others needs.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.iptables.base_chains import JUMPS
from kproxy.backends.iptables.cleanup import cleanup, plan_removal
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.kernel.xtables import native
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import NATIVE_RULE, Variant, XtablesUnavailable
from tests.backends.iptables_node import IptablesNode, config_with, divided
from tests.backends.test_iptables_backend_kernel import RealXtables, steps
from tests.builders import endpoint_slice, port, service
from tests.kernel.namespace import fresh_network

FIRST = "insert rule ip nat PREROUTING ct state established accept"
RULES = {
    "map": "add rule ip nat PREROUTING ip daddr 1.2.3.4 dnat to "
    "tcp dport map { 80 : 10.0.0.1, 81 : 10.0.0.2 }",
    "first in nat": FIRST,
    "in filter": "insert rule ip filter INPUT ct state { established, related } accept",
    "in mangle": "add chain ip mangle PREROUTING { type filter hook prerouting priority -150; }; "
    "insert rule ip mangle PREROUTING ct state established accept",
    "in another chain": "add chain ip nat other; add rule ip nat other ct state established accept",
    "in a chain of kproxy": "insert rule ip nat KUBE-SERVICES ct state established accept",
    "cuts the dump off": "insert rule ip nat PREROUTING meta mark set 0x10",
    "in every table": f"{FIRST}; insert rule ip filter FORWARD ct state established accept; "
    "insert rule ip filter KUBE-FORWARD ct state established accept",
    "in the chains of all services": "insert rule ip nat KUBE-SERVICES ct state established accept; "
    "insert rule ip filter KUBE-SERVICES ct state established accept; "
    "insert rule ip filter KUBE-EXTERNAL-SERVICES ct state established accept",
    "verdicts": 'insert rule ip nat OUTPUT oifname vmap { "lo" : accept }',
    "sets": "add set ip nat known { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } ; }; "
    "insert rule ip nat PREROUTING ip saddr @known counter accept",
    "a chain with a hook": "add chain ip nat early { type nat hook prerouting priority -150 ; }; "
    "add rule ip nat early ct state established accept",
}


def nft(script: str, family: Family = Family.IPV4) -> str:
    """Run nft as an administrator does, in the caller's namespace."""
    if family is Family.IPV6:
        script = script.replace(" ip ", " ip6 ")
    return subprocess.run(["nft", script], check=True, capture_output=True, text=True).stdout


def nft_xtables(family: Family = Family.IPV4) -> SubprocessXtables:
    try:
        return SubprocessXtables(family, find_tools(family, Variant.NFT, probe=False))
    except XtablesUnavailable as error:
        pytest.skip(error.reason)


def jumps(family: Family = Family.IPV4) -> Counter[str]:
    """How often each jump to a chain of kproxy stands, as the kernel says."""
    return Counter(
        rule.line
        for table in native.tables(family)
        for chain, kind in native.chains(family, table).items()
        if kind != "-"
        for rule in native.rules(family, table, chain)
        if " KUBE-" in rule.line
    )


def without_others(state: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """Rules by table and chain, without what RULES make."""
    theirs = re.compile(rf"-A PREROUTING (?:-j ACCEPT|-j MARK .*)$|-A OUTPUT$|.*{NATIVE_RULE}")
    return {
        table: {
            chain: [line for line in lines if not theirs.match(line)]
            for chain, lines in chains.items()
            if chain not in {"other", "early"}
        }
        for table, chains in state.items()
    }


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@fresh_network
def test_beside_a_native_rule_the_kernel_holds_what_it_holds_without(rule: str) -> None:
    real, fake = IptablesNode(fake=RealXtables(nft_xtables())), IptablesNode()
    both: Iterator[object] = zip(steps(real), steps(fake), strict=True)
    for number, _ in enumerate(both):
        reports = real.sync(), fake.sync()
        assert [(r.error, dict(r.failed)) for r in reports] == [(None, {}), (None, {})]
        if number == 0:
            nft(rule)
            real.sync()
            real.backend.check()
            real.sync()
        assert real.backend.check(full=True) == ()
        assert without_others(parse_save(real.fake.save())) == fake.state()
        assert set(jumps().values()) == {1}
        real.start()
        assert real.sync().changes == {}
        fake.start()
        fake.sync()


@pytest.mark.parametrize("family", list(Family))
@fresh_network
def test_no_change_of_others_and_no_restart_inserts_a_jump_twice(family: Family) -> None:
    real = IptablesNode(config=config_with(family=family), fake=RealXtables(nft_xtables(family)))
    real.sync()
    expected = jumps(family)
    assert len(expected) == len(JUMPS)
    for number in range(5):
        nft("add rule ip nat PREROUTING ct state established accept", family)
        assert real.backend.check() == ()
        real.sync()
        if number % 2:
            real.start()
            assert real.sync().changes == {}
    assert jumps(family) == expected


@fresh_network
def test_damage_beside_a_native_rule_is_reported_as_it_is() -> None:
    real = IptablesNode(fake=RealXtables(nft_xtables()))
    real.put(service("web", "10.96.0.1"), endpoint_slice("10.1.1.1", service="web"))
    real.sync()
    nft(FIRST)
    assert real.backend.check() == ()
    nft("flush chain ip nat KUBE-POSTROUTING")
    handle = next(r.handle for r in native.rules(Family.IPV4, "nat", "POSTROUTING") if "KUBE-" in r.line)
    nft(f"delete rule ip nat POSTROUTING handle {handle}")
    drifts = real.backend.check()
    assert drifts == (
        Drift(
            "chain",
            "nat/KUBE-POSTROUTING",
            Difference.MODIFIED,
            "lacks 3 of its rules and has 0 that are not ours",
        ),
        Drift(
            "jump",
            'nat/POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
            Difference.MISSING,
        ),
    )
    real.sync()
    assert real.backend.check(full=True) == ()
    assert set(jumps().values()) == {1}


@pytest.mark.parametrize(
    ("family", "name"),
    [*((Family.IPV4, name) for name in RULES), (Family.IPV6, "map"), (Family.IPV6, "in every table")],
)
@fresh_network
def test_a_cleanup_takes_everything_away_beside_native_rules(family: Family, name: str) -> None:
    rule = RULES[name]
    if family is Family.IPV6:
        rule = (
            rule.replace("10.0.0.", "fd00::")
            .replace("1.2.3.4", "fd00::9")
            .replace("192.0.2.0/24", "fd01::/64")
        )
        rule = (
            rule.replace("ip daddr", "ip6 daddr")
            .replace("ip saddr", "ip6 saddr")
            .replace("ipv4_addr", "ipv6_addr")
        )
    xtables = nft_xtables(family)
    real = IptablesNode(config=config_with(family=family), fake=RealXtables(xtables))
    cluster_ip = "10.96.0.1" if family is Family.IPV4 else "fd00:10::1"
    real.put(service("web", cluster_ip, type="NodePort", ports=[port(nodePort=30001)]))
    real.sync()
    nft(rule, family)
    standing = nft("list ruleset")
    assert all(not removal.kept for removal in cleanup(xtables))
    listing = nft("list ruleset")
    assert "KUBE-" in standing
    assert "KUBE-" not in listing
    if "KUBE-" not in rule:
        assert ("ct state" in listing, "mark set" in listing) == ("ct state" in rule, "mark set" in rule)
    assert list(plan_removal(xtables.save())) == []


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("insert rule ip nat PREROUTING ct state new jump KUBE-SERVICES", "--handle"),
        ('insert rule ip nat PREROUTING iifname vmap { "lo" : jump KUBE-SERVICES }', "busy"),
    ],
)
@fresh_network
def test_a_chain_that_a_native_rule_leads_to_stays_and_is_named(rule: str, kept: str) -> None:
    xtables = nft_xtables()
    real = IptablesNode(fake=RealXtables(xtables))
    real.put(service("web", "10.96.0.1"), endpoint_slice("10.1.1.1", service="web"))
    real.sync()
    nft(rule)
    removals = cleanup(xtables)
    told = {(r.table, chain): reason for r in removals for chain, reason in r.kept.items()}
    assert list(told) == [("nat", "KUBE-SERVICES")]
    assert kept in told["nat", "KUBE-SERVICES"]
    left = parse_save(xtables.save())
    assert [c for chains in left.values() for c in chains if c.startswith("KUBE-")] == ["KUBE-SERVICES"]
    assert left["nat"]["KUBE-SERVICES"] == []


@fresh_network
def test_counters_are_read_beside_a_native_rule() -> None:
    xtables = nft_xtables()
    xtables.restore(b"*nat\n:KUBE-A - [0:0]\n-A KUBE-A -p tcp -m tcp --dport 80 -c 3 180 -j RETURN\nCOMMIT\n")
    expected = xtables.counters("nat")
    assert b"[3:180] -A KUBE-A -p tcp -m tcp --dport 80 -j RETURN\n" in expected
    nft(RULES["in another chain"])
    assert b"[3:180] -A KUBE-A -p tcp -m tcp --dport 80 -j RETURN\n" in xtables.counters("nat")


@fresh_network
def test_a_chain_of_a_former_mode_that_a_native_rule_leads_to_holds_up_no_sync() -> None:
    xtables = nft_xtables()
    xtables.restore(
        b"*nat\n:KUBE-NODE-PORT - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n:KUBE-IPVS-LOCAL - [0:0]\n"
        b"-A KUBE-LOAD-BALANCER -j KUBE-NODE-PORT\n-A OUTPUT -j KUBE-LOAD-BALANCER\nCOMMIT\n"
    )
    nft('insert rule ip nat OUTPUT oifname vmap { "lo" : jump KUBE-NODE-PORT }')
    real = IptablesNode(fake=RealXtables(xtables))
    report = real.sync()
    assert report.error is None
    former = {"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-IPVS-LOCAL"}
    assert former & native.chains(Family.IPV4, "nat").keys() == {"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER"}
    assert real.backend.check() == ()


@pytest.mark.parametrize("layout", [StandardLayout, divided])
@pytest.mark.parametrize("variant", list(Variant))
@fresh_network
def test_rules_without_words_are_no_damage_or_are_mended(
    variant: Variant, layout: Callable[[IptablesConfig], Layout]
) -> None:
    try:
        xtables = SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant, probe=False))
    except XtablesUnavailable as error:
        pytest.skip(error.reason)
    real = IptablesNode(fake=RealXtables(xtables), layout=layout)
    for number in range(1, 6):
        real.put(service(f"svc{number}", f"10.96.0.{number}"))
    real.put(service("web", "10.96.0.9"), endpoint_slice("10.1.1.1", service="web"))
    real.sync()
    expected = xtables.save()
    xtables.restore(b"*nat\n-I PREROUTING\n-I OUTPUT\n-A POSTROUTING\nCOMMIT\n*filter\n-I INPUT\nCOMMIT\n")
    counted = xtables.save()
    assert real.backend.check(full=True) == ()
    assert real.sync().changes == {}
    for chain in ("nat\n-A KUBE-SERVICES", "filter\n-I KUBE-SERVICES", "filter\n-A KUBE-FORWARD"):
        xtables.restore(f"*{chain}\nCOMMIT\n".encode())
    real.start()
    assert real.sync().error is None
    assert xtables.save() == counted
    assert len(counted.splitlines()) == len(expected.splitlines()) + 4
