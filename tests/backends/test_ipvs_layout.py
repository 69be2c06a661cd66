"""The rules of the IPVS mode, in the form in which the installed iptables prints them back."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.dump import parse_save
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.backends.ipvs.names import sets
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetUnavailable
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from kproxy.modes.ipvs.layout import IPVS_JUMPS, IpvsLayout
from kproxy.plan.planner import Planner
from kproxy.state.tables import Tables
from tests.backends.ipvs_node import IpvsNode
from tests.builders import NODE, as_service, as_slice, endpoint, endpoint_slice, service
from tests.kernel.namespace import fresh_network

CIDR = {Family.IPV4: LocalTraffic(cidr="10.1.0.0/16"), Family.IPV6: LocalTraffic(cidr="fd00:1::/64")}
SETTINGS: dict[str, dict[str, Any]] = {
    "cidr": {},
    "interface": {"local_traffic": LocalTraffic(interface="veth+")},
    "unknown": {"local_traffic": None},
    "all": {"masquerade_all": True},
}


def layout(family: Family, setting: str = "cidr") -> IpvsLayout:
    return IpvsLayout(
        IptablesConfig(**{"family": family, "local_traffic": CIDR[family], **SETTINGS[setting]})
    )


def local_service(family: Family) -> Tables:
    """One with a load balancer and the external traffic policy Local."""
    tables = Tables()
    v4 = family is Family.IPV4
    tables.upsert(
        as_service(
            service(
                ip="10.96.0.1" if v4 else "fd00:96::1",
                type="LoadBalancer",
                ingress=["203.0.113.1" if v4 else "2001:db8::1"],
                externalTrafficPolicy="Local",
                healthCheckNodePort=32000,
                sessionAffinity="ClientIP",
            )
        )
    )
    ips = ("10.1.0.1", "10.1.0.2") if v4 else ("fd00:1::1", "fd00:1::2")
    pieces = [endpoint(ip, node=node) for ip, node in zip(ips, ("node1", "node2"), strict=True)]
    tables.upsert(as_slice(endpoint_slice(*pieces, address_type=family.value)))
    return tables


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("variant", list(Variant), ids=str)
@fresh_network
def test_the_kernel_prints_what_was_written_and_a_switch_leaves_nothing(
    variant: Variant, family: Family, setting: str
) -> None:
    ipset = NetlinkIpset()
    try:
        for spec in sets(family).all:
            ipset.create(spec)
        xtables = SubprocessXtables(family, find_tools(family, variant))
        xtables.restore(b"*nat\nCOMMIT\n")
    except (XtablesUnavailable, IpsetUnavailable) as error:
        pytest.skip(str(error))
    wanted = layout(family, setting)
    backend = IptablesBackend(wanted, xtables, ForeignWrites(xtables.generation))
    tables, planner = local_service(family), Planner(family)
    backend.update(planner.update(tables.dirty(), NODE).values())
    report = backend.sync()
    assert (report.error, report.failed) == (None, {})
    assert backend.check(full=True) == ()
    saved = parse_save(xtables.save())
    for (table, chain), text in wanted.base.items():
        assert saved[table][chain] == (text or "").splitlines()
    assert len(saved["nat"]["KUBE-IPVS-SHORTCUT"]) == 1
    backend.reconfigure(StandardLayout(wanted.config))
    assert backend.sync().error is None
    chains = {chain for found in parse_save(xtables.save()).values() for chain in found}
    assert not [chain for chain in chains if "IPVS" in chain]
    for spec in sets(family).all:
        ipset.destroy(spec.name)
    backend.reconfigure(wanted)
    backend.retry()
    assert "KPROXY" in (backend.sync().error or "")


def test_services_add_no_rules_but_for_local_external_policies() -> None:
    tables = Tables()
    tables.upsert(as_service(service(type="NodePort", externalIPs=["203.0.113.1"])))
    tables.upsert(as_slice(endpoint_slice("10.1.0.1")))
    (plan,) = Planner(Family.IPV4).update(tables.dirty(), NODE).values()
    assert layout(Family.IPV4).render(plan, comments=True).empty
    (local,) = Planner(Family.IPV4).update(local_service(Family.IPV4).dirty(), NODE).values()
    rules = layout(Family.IPV4).render(local, comments=True)
    assert sorted(chain[:9] for chain in rules.chains) == ["KUBE-SEP-", "KUBE-SEP-", "KUBE-SVC-"]


@pytest.mark.parametrize(
    ("setting", "source", "sides"),
    [
        ("cidr", "! -s 10.1.0.0/16 ", "dst,dst"),
        ("interface", "! -i veth+ ", "dst,dst"),
        ("unknown", "", "src,dst"),
        ("all", "", "dst,dst"),
    ],
)
def test_cluster_ip_traffic_is_masqueraded_as_the_settings_say(setting: str, source: str, sides: str) -> None:
    rules = "".join(filter(None, layout(Family.IPV4, setting).base.values())).splitlines()
    marking = [rule for rule in rules if "KPROXY-CLUSTER-IP" in rule and rule.endswith("KUBE-MARK-MASQ")]
    match = f"{source}-m set --match-set KPROXY-CLUSTER-IP {sides}"
    assert marking == [f"-A KUBE-IPVS-SERVICES {match} -j KUBE-MARK-MASQ"]


def test_every_jump_leads_to_a_chain_of_the_layout() -> None:
    wanted = layout(Family.IPV4)
    chains = {*wanted.base, *(placement.root for placement in wanted.shared.values())}
    assert {(jump.table, jump.line.split()[-1]) for jump in IPVS_JUMPS} <= chains


@pytest.mark.parametrize("before", [0, 2])
def test_network_policy_judges_before_packets_enter_virtual_servers_and_leave_them(before: int) -> None:
    node = IpvsNode()
    for hook in ("INPUT", "OUTPUT"):
        others = f"-A {hook} -s 192.0.2.1/32 -j DROP\n" * before
        engine = f'-A {hook} -m comment --comment "x" -j cali-{hook}\n-A {hook} -j DROP\n'
        node.xtables.edit(f"*filter\n:cali-{hook} - [0:0]\n{others}{engine}COMMIT\n")
    node.done()
    for hook, own in (("INPUT", "KUBE-IPVS-FILTER"), ("OUTPUT", "KUBE-IPVS-FORWARD")):
        targets = [rule.split()[-1] for rule in node.xtables.chains("filter")[hook]]
        at = targets.index(f"cali-{hook}")
        assert targets[at : at + 3] == [f"cali-{hook}", own, "DROP"]


def test_what_services_have_is_accepted_after_what_is_refused_and_nothing_else_is() -> None:
    known = sets(Family.IPV4)
    rules = (layout(Family.IPV4).base["filter", "KUBE-IPVS-FILTER"] or "").splitlines()
    accepted = [rule for rule in rules if rule.endswith("-j ACCEPT") and "RELATED" not in rule]
    assert accepted == [
        f"-A KUBE-IPVS-FILTER -m set --match-set {spec.name} dst,dst -j ACCEPT"
        for spec in known.owned_servers
    ]
    before = " ".join(rules[: rules.index(accepted[0])])
    assert known.no_endpoints.name in before
    assert known.no_local_endpoints.name in before
