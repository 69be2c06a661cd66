"""Counters read through libiptc are those that iptables-legacy-save prints, for both families at once."""

import sys
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.backends.iptables.traffic import Chains, port_traffic, rule_traffic
from kproxy.kernel import generations
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.legacy_counters import LegacyCounters
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.python_iptables import PythonIptablesError
from kproxy.kernel.xtables.types import Variant
from tests.cli.nodes import do
from tests.kernel.namespace import fresh_network

pytest.importorskip("iptc", reason="python-iptables is not installed")

RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES-1 - [0:0]
:KUBE-SVC-AAAA - [0:0]
:KUBE-EXT-AAAA - [0:0]
:ELSEWHERE - [0:0]
[7:700] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[5:500] -A KUBE-SERVICES -d {ip} -p tcp -m comment --comment "ns/a:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAA
[4:400] -A KUBE-SERVICES -d {ip} -p udp -m comment --comment "ns/a:dns cluster IP" -m udp --dport 53 -j KUBE-SVC-AAAA
[3:300] -A KUBE-SERVICES -d {ip} -j KUBE-SERVICES-1
[2:200] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS
[1:100] -A KUBE-SERVICES -p tcp -m comment --comment "ns/a:http cluster IP" -m tcp --dport 80 -j ELSEWHERE
[9:900] -A KUBE-SERVICES-1 -d {ip} -p tcp -m comment --comment "ns/b:tcp cluster IP" -m tcp --dport 81 -j KUBE-SVC-AAAA
[20:2000] -A KUBE-NODEPORTS -p tcp -m comment --comment "ns/a:http" -m tcp --dport 30080 -j KUBE-EXT-AAAA
[8:800] -A KUBE-SVC-AAAA -p tcp -m comment --comment "ns/a:http cluster IP" -m tcp --dport 80 -j KUBE-EXT-AAAA
COMMIT
"""  # noqa: E501


def load(family: Family) -> None:
    name, ip = ("iptables", "10.0.0.1/32") if family is Family.IPV4 else ("ip6tables", "fd00::1/128")
    do(f"{name}-legacy-restore", "-c", stdin=RULES.format(ip=ip))


@fresh_network
def test_they_are_those_of_the_dump() -> None:
    for family in Family:
        load(family)
    for _ in range(2):
        for family in Family:
            xtables = SubprocessXtables(family, find_tools(family, Variant.LEGACY, probe=False))
            expected = sorted(port_traffic(xtables.counters("nat")), key=str)
            read = LegacyCounters(family).read("nat", Chains.roots, Chains.leads_on)
            assert sorted(rule_traffic(read), key=str) == expected
            assert [(each.name, each.protocol, each.sent) for each in expected] == [
                ("ns/a:dns", "UDP", (4, 400)),
                ("ns/a:http", "TCP", (25, 2500)),
                ("ns/b:tcp", "TCP", (9, 900)),
            ]


@fresh_network
def test_a_table_that_does_not_exist_is_not_made() -> None:
    assert LegacyCounters(Family.IPV4).read("nat", Chains.roots, Chains.leads_on) == []
    assert generations.legacy_tables(Family.IPV4) == ()


@fresh_network
def test_a_library_that_crashes_takes_only_its_trial_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load(Family.IPV4)
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(PythonIptablesError, match="status -11"):
        LegacyCounters(Family.IPV4).read("nat", Chains.roots, Chains.leads_on)
