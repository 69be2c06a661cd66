"""The iptables backend, one situation at a time: what is written, what is noticed, who is blamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.base import CheckError, LocalTraffic
from kproxy.backends.iptables import names
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.kernel.xtables.types import FailureKind, Variant
from tests.backends import reference_rules
from tests.backends.cluster import CONFIG, Cluster, State, WatchedXtables, config_with, divided, sync_checked
from tests.backends.packets import Packet, is_served, outcomes
from tests.builders import endpoint, endpoint_slice, port, service

both_variants = pytest.mark.parametrize("variant", list(Variant))
ways = pytest.mark.parametrize(
    ("variant", "piece"), [(Variant.LEGACY, None), (Variant.NFT, None), (Variant.NFT, 1), (Variant.NFT, 2)]
)
SVC1 = "KUBE-SVC-" + names.port_hash("ns1/svc1:p80", "tcp")
SEP1 = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.1:8080")


def _pods(name: str, *pods: Any) -> dict[str, Any]:
    return endpoint_slice(*pods, service=name, ports=[port(8080)], address_type="IPv4")


def _cluster(
    variant: Variant = Variant.NFT, piece: int | None = None, count: int = 3, **config: Any
) -> Cluster:
    """Services svc1 ... with two endpoints each, programmed."""
    cluster = Cluster(variant, piece=piece, config=config_with(**config))
    for n in range(1, count + 1):
        cluster.put(
            service(f"svc{n}", f"10.96.0.{n}", type="NodePort", ports=[port(nodePort=30000 + n)]),
            _pods(f"svc{n}", f"10.1.{n}.1", f"10.1.{n}.2"),
        )
    _done(cluster)
    return cluster


def _done(cluster: Cluster) -> None:
    report = cluster.sync()
    assert (report.error, dict(report.failed)) == (None, {})


def _written(cluster: Cluster, since: int) -> str:
    return b"".join(cluster.fake.restores[since:]).decode()


# What is written ----------------------------------------------------------------------------------------


@ways
def test_a_changed_endpoint_writes_its_service_s_chains_only(variant: Variant, piece: int | None) -> None:
    cluster = _cluster(variant, piece)
    before = len(cluster.fake.restores)
    cluster.put(None, _pods("svc1", "10.1.1.1", "10.1.1.9"))
    _done(cluster)
    assert len(cluster.fake.restores) == before + 1
    text = _written(cluster, before)
    added = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.9:8080")
    removed = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.2:8080")
    assert set(re.findall(r"^:(\S+)", text, re.MULTILINE)) == {SVC1, added, removed}
    assert re.findall(r"^-X (\S+)", text, re.MULTILINE) == [removed]
    assert cluster.state() == cluster.fresh()


@ways
def test_an_added_service_is_inserted_not_rewritten(variant: Variant, piece: int | None) -> None:
    cluster = _cluster(variant, piece)
    before = len(cluster.fake.restores)
    cluster.put(service("svc15", "10.96.0.15"), _pods("svc15", "10.1.15.1"))
    _done(cluster)
    text = _written(cluster, before)
    assert ":KUBE-SERVICES" not in text
    assert text.count("-I KUBE-SERVICES 2 ") == 1
    assert cluster.state() == cluster.fresh()


def test_many_changes_rewrite_the_shared_chain() -> None:
    cluster = _cluster(count=1)
    for n in range(2, 90):
        cluster.put(service(f"svc{n}", f"10.96.0.{n}"), _pods(f"svc{n}", f"10.1.{n}.1"))
    before = len(cluster.fake.restores)
    _done(cluster)
    assert ":KUBE-SERVICES" in _written(cluster, before)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_cold_start_writes_services_before_what_leads_to_them(variant: Variant, piece: int | None) -> None:
    cluster = _cluster(variant, piece)
    texts = [text.decode() for text in cluster.fake.restores]
    chains = max(n for n, text in enumerate(texts) if f"-A {SVC1} " in text)
    leads = min(n for n, text in enumerate(texts) if f" -j {SVC1}\n" in text and "KUBE-SERVICES" in text)
    assert chains <= leads
    assert (chains < leads) is (piece is not None)


@both_variants
def test_a_restart_writes_nothing(variant: Variant) -> None:
    cluster = _cluster(variant)
    before = len(cluster.fake.restores)
    cluster.start()
    _done(cluster)
    assert len(cluster.fake.restores) == before
    assert cluster.backend.check(thorough=True) == ()


@ways
def test_what_was_removed_while_kproxy_was_down_goes(variant: Variant, piece: int | None) -> None:
    """In pieces too, though chains of one piece refer to chains of another."""
    cluster = _cluster(variant, piece, count=6)
    for n in range(2, 7):
        cluster.drop(f"ns1/svc{n}")
    cluster.start()
    _done(cluster)
    assert cluster.state() == cluster.fresh()
    assert len([c for c in cluster.state()["nat"] if c.startswith("KUBE-S")]) == 4


@both_variants
def test_comments_come_and_go_with_the_size_of_the_cluster(variant: Variant) -> None:
    cluster = _cluster(variant, large_cluster_endpoints=6)
    assert "-> 10.1.1.1:8080" in cluster.fake.save().decode()
    cluster.put(None, _pods("svc1", "10.1.1.1", "10.1.1.2", "10.1.1.3"))
    sync_checked(cluster)
    assert "-> 10.1." not in cluster.fake.save().decode()
    assert cluster.state() == cluster.fresh()
    cluster.put(None, _pods("svc1", "10.1.1.1"))
    sync_checked(cluster)
    assert "-> 10.1.1.1:8080" in cluster.fake.save().decode()
    assert cluster.state() == cluster.fresh()


def test_the_threshold_is_kube_proxy_s() -> None:
    assert CONFIG.large_cluster_endpoints == 1000
    cluster = Cluster()
    pods = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(1000)]
    cluster.put(service(), _pods("svc1", *pods))
    _done(cluster)
    assert f"{SVC1} -m comment" in cluster.fake.save().decode()
    cluster.put(None, _pods("svc1", *pods, "10.2.0.1"))
    _done(cluster)
    assert f"{SVC1} -m comment" not in cluster.fake.save().decode()
    assert cluster.state() == cluster.fresh()


@pytest.mark.parametrize(
    "change",
    [
        {"masquerade_all": True},
        {"masquerade_bit": 15},
        {"local_traffic": LocalTraffic(interface="cbr0")},
        {"node_port_addresses": ("192.168.0.2",)},
        {"localhost_node_ports": False},
        {"large_cluster_endpoints": 1},
        {"random_fully": False},
    ],
)
def test_new_settings_end_as_a_fresh_start_with_them(change: dict[str, Any]) -> None:
    cluster = _cluster()
    cluster.config = config_with(**change)
    cluster.backend.reconfigure(StandardLayout(cluster.config))
    _done(cluster)
    expected, found = cluster.fresh(), cluster.state()
    if change == {"localhost_node_ports": False}:
        # The kubelet wants the same rule, so it is never taken away.
        assert found["filter"].pop("KUBE-FIREWALL") != expected["filter"].pop("KUBE-FIREWALL")
    assert found == expected
    before = len(cluster.fake.restores)
    _done(cluster)
    assert len(cluster.fake.restores) == before


def test_ipv6() -> None:
    config = IptablesConfig(Family.IPV6, local_traffic=LocalTraffic(cidr="fd00:1::/48"))
    cluster = Cluster(config=config)
    cluster.put(service(ip="fd00:96::1"), endpoint_slice("fd00:1::1"))
    _done(cluster)
    assert cluster.state() == cluster.fresh()
    assert outcomes(cluster.fake, Packet("fd00:96::1", 80, src="2001:db8::9")) == {"[fd00:1::1]:80"}
    cluster.put(None, endpoint_slice(address_type="IPv6"))
    _done(cluster)
    assert outcomes(cluster.fake, Packet("fd00:96::1", 80, src="2001:db8::9")) == {"REJECT"}


def test_equal_lines_of_two_ports() -> None:
    """One name with two protocols gives two equal health check rules, as with kube-proxy."""
    cluster = _cluster()
    fields: dict[str, Any] = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32000,
        "ports": [port(53, "dns"), port(53, "dns", "UDP")],
    }
    cluster.put(service("dns", "10.96.0.10", **fields))
    _done(cluster)
    assert cluster.state() == cluster.fresh()
    cluster.put(service("svc4", "10.96.0.4"))
    _done(cluster)
    cluster.drop("ns1/dns")
    _done(cluster)
    assert cluster.state() == cluster.fresh()


# Others' rules ------------------------------------------------------------------------------------------

FOREIGN = (
    "*filter\n:INPUT ACCEPT [0:0]\n:MY-FIREWALL - [0:0]\n:DOCKER-USER - [0:0]\n-A INPUT -j MY-FIREWALL\n"
    '-A MY-FIREWALL -m comment --comment "KUBE-SERVICES -j KUBE-" -j ACCEPT\n'
    "-A FORWARD -j DOCKER-USER\nCOMMIT\n"
    "*nat\n:CNI-HOSTPORT - [0:0]\n:KUBE-ROUTER-X - [0:0]\n-A PREROUTING -j CNI-HOSTPORT\n"
    "-A CNI-HOSTPORT -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.0.7:80\n"
    "-A POSTROUTING -s 10.1.0.0/16 -j MASQUERADE\nCOMMIT\n"
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    "*raw\n:OTHER - [0:0]\n-A PREROUTING -j OTHER\nCOMMIT\n"
)


@ways
def test_rules_of_others_are_left_alone(variant: Variant, piece: int | None) -> None:
    fake = WatchedXtables(Family.IPV4, variant)
    fake.edit(FOREIGN)
    before = _foreign(_state(fake))
    cluster = Cluster(variant, piece=piece, fake=fake)
    cluster.put(service(), _pods("svc1", "10.1.1.1"))
    _done(cluster)
    cluster.drop("ns1/svc1")
    _done(cluster)
    cluster.start()
    _done(cluster)
    assert _foreign(_state(fake)) == before


def _state(fake: WatchedXtables) -> State:
    return {table: fake.chains(table) for table in ("filter", "nat", "mangle", "raw")}


def _foreign(state: State) -> State:
    ours = {line.split()[1] for line in _static_names()} | {"KUBE-PROXY-CANARY"}
    return {
        table: {
            chain: [rule for rule in rules if " -j KUBE-" not in rule or 'comment "KUBE' in rule]
            for chain, rules in chains.items()
            if chain not in ours
        }
        for table, chains in state.items()
    }


def _static_names() -> list[str]:
    cluster = Cluster()
    _done(cluster)
    state = cluster.state()
    return [f"x {c}" for chains in state.values() for c in chains if c.startswith("KUBE-")]


DAMAGE: list[tuple[str, str, str]] = [
    ("*nat\n-F KUBE-SERVICES\nCOMMIT\n", "chain nat/KUBE-SERVICES", "lacks 4"),
    (f"*nat\n-F {SVC1}\nCOMMIT\n", f"chain nat/{SVC1}", "lacks 3"),
    (f"*nat\n-A {SEP1} -j RETURN\nCOMMIT\n", f"chain nat/{SEP1}", "has 1 that are not ours"),
    ("*nat\n-I KUBE-SERVICES 1 -j RETURN\nCOMMIT\n", "chain nat/KUBE-SERVICES", "has 1 that are not ours"),
    ("*nat\n-F KUBE-POSTROUTING\nCOMMIT\n", "chain nat/KUBE-POSTROUTING", "lacks 3"),
    ("*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n", "chain nat/KUBE-MARK-MASQ", "lacks 1"),
    (
        "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\nCOMMIT\n",
        "chain nat/KUBE-SVC-AAAAAAAAAAAAAAAA",
        "is not wanted",
    ),
    ("*nat\n-F PREROUTING\nCOMMIT\n", "jump nat/PREROUTING", "is missing"),
    ("*filter\n-F FORWARD\nCOMMIT\n", "jump filter/FORWARD", "is missing"),
    ("*filter\n-F KUBE-FIREWALL\nCOMMIT\n", "chain filter/KUBE-FIREWALL", "lacks 1"),
    ("*filter\n-A KUBE-SERVICES -j DROP\nCOMMIT\n", "chain filter/KUBE-SERVICES", "has 1 that are not ours"),
    ("*mangle\n-X KUBE-PROXY-CANARY\nCOMMIT\n", "chain mangle/KUBE-PROXY-CANARY", "is missing"),
    ("*filter\n-F\nCOMMIT\n", "chain filter/KUBE-FORWARD", "lacks 3"),
    ("*nat\n-F\nCOMMIT\n", "chain nat/KUBE-NODEPORTS", "lacks 3"),
]


@ways
@pytest.mark.parametrize(("edit", "name", "found"), DAMAGE)
def test_damage_is_noticed_named_and_repaired(
    variant: Variant, piece: int | None, edit: str, name: str, found: str
) -> None:
    cluster = _cluster(variant, piece)
    assert cluster.backend.check() == ()
    intact = _sorted(cluster.state())
    cluster.fake.edit(edit)
    drifts = cluster.backend.check()
    assert any(d.object.startswith(name) and found in d.found for d in drifts), drifts
    _done(cluster)
    assert _sorted(cluster.state()) == intact
    assert cluster.backend.check(thorough=True) == ()
    assert cluster.backend.check() == ()


def _sorted(state: State) -> State:
    """Jumps that are put back come first in their chain, so order counts only in chains of ours."""
    return {
        table: {chain: rules if "-" in chain else sorted(rules) for chain, rules in chains.items()}
        for table, chains in state.items()
    }


@ways
@pytest.mark.parametrize("table", ["nat", "filter", "mangle"])
def test_a_flushed_table_is_restored_in_order(variant: Variant, piece: int | None, table: str) -> None:
    cluster = _cluster(variant, piece)
    intact = cluster.state()
    cluster.fake.flush_table(table)
    assert cluster.backend.check()
    _done(cluster)
    assert cluster.state() == intact


def test_a_check_reads_nothing_while_nobody_wrote() -> None:
    cluster = _cluster()
    cluster.backend.check()
    reads = cluster.fake.saves
    assert cluster.backend.check() == ()
    cluster.put(None, _pods("svc1", "10.1.1.7"))
    _done(cluster)
    assert cluster.backend.check() == ()
    assert cluster.fake.saves == reads
    cluster.fake.edit("*filter\n:MINE - [0:0]\nCOMMIT\n")
    assert cluster.backend.check() == ()
    assert cluster.fake.saves == reads + 1
    assert cluster.backend.check(thorough=True) == ()
    assert cluster.fake.saves == reads + 2


def test_changes_that_wait_are_no_drift() -> None:
    cluster = _cluster()
    cluster.drop("ns1/svc2")
    cluster.put(service("svc1", "10.96.0.9"), _pods("svc1", "10.1.1.9"))
    cluster.put(None, _pods("svc3"))
    cluster.plan()
    assert cluster.backend.check(thorough=True) == ()
    _done(cluster)
    assert cluster.state() == cluster.fresh()


def test_damage_during_a_change_is_blamed_on_nobody() -> None:
    """The rule to delete is gone already: the kernel refuses the edit, and no service is at fault."""
    cluster = _cluster()
    cluster.fake.edit("*nat\n-F KUBE-SERVICES\nCOMMIT\n*filter\n-F KUBE-SERVICES\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    cluster.put(service("svc4", "10.96.0.4"), _pods("svc4", "10.1.4.1"))
    _done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_refused_service_is_found_although_somebody_else_writes_all_the_time(
    variant: Variant, piece: int | None
) -> None:
    cluster = _cluster(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    cluster.put(service("svc2", "10.96.0.2", sessionAffinity="ClientIP"))
    cluster.put(service("svc4", "10.96.0.4"), _pods("svc4", "10.1.4.1"))
    others = iter(range(1000))
    cluster.fake.after = lambda: cluster.fake.edit(f"*filter\n:MINE-{next(others)} - [0:0]\nCOMMIT\n")
    report = cluster.sync()
    assert (report.error, list(report.failed)) == (None, ["ns1/svc2"])
    assert cluster.holds("ns1/svc4")


def test_a_chain_that_reappeared_as_stale_is_not_deleted_when_it_is_wanted_again() -> None:
    cluster = _cluster()
    cluster.drop("ns1/svc1")
    _done(cluster)
    cluster.fake.edit(f"*nat\n:{SVC1} - [0:0]\n-A {SVC1} -j RETURN\nCOMMIT\n")
    assert cluster.backend.check()
    cluster.put(service("svc1", "10.96.0.1"))
    before = len(cluster.fake.restores)
    _done(cluster)
    assert cluster.state() == cluster.fresh()
    assert f"-X {SVC1}" not in _written(cluster, before)


@ways
def test_a_chain_that_others_refer_to_does_not_hold_back_its_service(
    variant: Variant, piece: int | None
) -> None:
    cluster = _cluster(variant, piece)
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -d 192.0.2.1/32 -j {SVC1}\n-A MINE -j {SEP1}\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    cluster.drop("ns1/svc3")
    _done(cluster)
    assert outcomes(cluster.fake, Packet("10.96.0.1", 80)) == {"LOST"}
    found, expected = cluster.state()["nat"], cluster.fresh()["nat"]
    kept = {chain: rules for chain, rules in found.items() if chain not in expected}
    assert kept.pop("MINE")
    assert kept == {SVC1: [], SEP1: []}
    before = len(cluster.fake.restores)
    _done(cluster)
    assert len(cluster.fake.restores) == before
    assert cluster.backend.check(thorough=True) == ()
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    _done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_chain_that_could_not_be_deleted_is_counted_until_it_is(
    variant: Variant, piece: int | None
) -> None:
    cluster = _cluster(variant, piece)
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -j {SEP1}\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    assert [cluster.sync().leftovers for _ in range(2)] == [1, 1]
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    assert cluster.sync().leftovers == 0
    assert cluster.state() == cluster.fresh()


@both_variants
@pytest.mark.parametrize("layout", [StandardLayout, divided])
def test_a_new_verdict_counts_before_the_old_one_goes(
    variant: Variant, layout: Callable[[IptablesConfig], Layout]
) -> None:
    cluster = Cluster(variant, layout=layout)
    cluster.put(service("svc1", "10.96.0.1", internalTrafficPolicy="Local"))
    cluster.sync()
    packet = Packet("10.96.0.1", 80)
    assert outcomes(cluster.fake, packet) == {"REJECT"}
    seen: list[frozenset[str]] = []
    cluster.fake.after = lambda: seen.append(outcomes(cluster.fake, packet))
    cluster.put(None, endpoint_slice(endpoint("10.1.0.1", node="node2"), service="svc1"))
    assert cluster.sync().error is None
    assert seen == [{"DROP"}] * len(seen)
    assert len(seen) > 1


@pytest.mark.parametrize("variant", list(Variant))
def test_a_divided_chain_that_somebody_refers_to_is_emptied_and_goes_later(variant: Variant) -> None:
    cluster = Cluster(variant, layout=divided)
    for n, ip in enumerate(("10.96.0.1", "10.96.0.2", "10.96.0.3", "10.97.0.1"), 1):
        cluster.put(service(f"svc{n}", ip), endpoint_slice(f"10.1.0.{n}", service=f"svc{n}"))
    assert cluster.sync().error is None
    divisions = [chain for chain in cluster.state()["nat"] if chain.startswith("KUBE-AT-")]
    assert divisions
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -j {divisions[0]}\nCOMMIT\n")
    for n in (1, 2):
        cluster.drop(f"ns1/svc{n}")
    report = cluster.sync()
    assert (report.error, report.failed, report.leftovers) == (None, {}, 1)
    assert cluster.state()["nat"][divisions[0]] == []
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    assert cluster.sync().leftovers == 0
    assert cluster.state() == cluster.fresh()


class _OtherWords(WatchedXtables):
    """An iptables of another version: the same rules, told in another way."""

    def save(self, table: str | None = None) -> bytes:
        text = super().save(table).decode()
        text = re.sub(r'(-m comment --comment "[^"]*") (-m (?:tcp|udp) --dport \d+)', r"\2 \1", text)
        text = re.sub(r" --mask 255\.255\.255\.255", "", text).replace("ESTABLISHED,DNAT", "DNAT,ESTABLISHED")
        text = re.sub(r"(-m comment --comment \"[^\"]*\") (-m addrtype --dst-type LOCAL)", r"\2 \1", text)
        return text.encode()


def test_an_iptables_that_prints_rules_in_other_words_is_understood() -> None:
    fake = _OtherWords(Family.IPV4, Variant.NFT)
    cluster = Cluster(fake=fake)
    for n in (1, 2):
        cluster.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                sessionAffinity="ClientIP",
                type="NodePort",
                ports=[port(nodePort=3000 + n)],
            ),
            _pods(f"svc{n}", "10.1.0.1"),
        )
    _done(cluster)
    assert cluster.backend.check(thorough=True) == ()
    before = len(fake.restores)
    cluster.start()
    _done(cluster)
    assert len(fake.restores) == before
    cluster.drop("ns1/svc1")
    cluster.put(None, _pods("svc2"))
    _done(cluster)
    assert cluster.backend.check(thorough=True) == ()
    assert WatchedXtables.save(fake).decode().count("10.96.0.2/32") == 1


# kube-proxy's rules -------------------------------------------------------------------------------------


@ways
def test_rules_that_kube_proxy_left_are_taken_over_without_a_gap(variant: Variant, piece: int | None) -> None:
    """kube-proxy's order is that of a hash table, its rules are those of a moment ago."""
    fake = WatchedXtables(Family.IPV4, variant)
    theirs = Cluster(variant, fake=fake)
    for n in range(1, 7):
        theirs.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                externalIPs=[f"203.0.114.{n}"],
                sessionAffinity="ClientIP" if n == 3 else None,
            ),
            _pods(f"svc{n}", f"10.1.{n}.1", f"10.1.{n}.2") if n != 5 else _pods("svc5"),
        )
    _done(theirs)
    for table in ("nat", "filter"):
        *rules, tail = fake.chains(table)["KUBE-SERVICES"]
        order = [rules[i] for i in (4, 0, 5, 2, 1, 3) if i < len(rules)] + rules[6:]
        lines = "\n".join([*order[::-1], tail])
        fake.edit(f"*{table}\n:KUBE-SERVICES - [0:0]\n{lines}\nCOMMIT\n")
    cluster = Cluster(variant, piece=piece, fake=fake)
    cluster.tables = theirs.tables
    cluster.start()
    cluster.put(None, _pods("svc2", "10.1.2.2", "10.1.2.3"))
    cluster.put(None, _pods("svc5", "10.1.5.1"))
    cluster.put(None, _pods("svc6"))
    cluster.put(
        service("svc4", "10.96.0.4", internalTrafficPolicy="Local"),
        _pods("svc4", endpoint("10.1.4.1", node="node1")),
    )
    cluster.drop("ns1/svc3")
    report = sync_checked(cluster)
    assert (report.error, dict(report.failed)) == (None, {})
    assert cluster.state() == cluster.fresh()


def test_kube_proxy_s_own_spelling_is_kept() -> None:
    """A node whose rules mean what is wanted is not written to, however they are spelled."""
    cluster = _cluster(count=2)
    text = cluster.fake.save().decode()
    respelled = WatchedXtables(Family.IPV4, Variant.NFT)
    for old, new in [
        ("--set-xmark 0x4000/0x4000", "--or-mark 0x00004000"),
        ("--set-xmark 0x4000/0x0", "--xor-mark 0x00004000"),
        ("--mark 0x4000/0x4000", "--mark 0x00004000/0x00004000"),
        ("--probability 0.50000000000", "--probability 0.5000000000"),
        (" --reject-with icmp-port-unreachable", ""),
    ]:
        text = text.replace(old, new)
    respelled.edit(text)
    other = Cluster(fake=respelled)
    other.tables = cluster.tables
    other.start()
    _done(other)
    assert respelled.restores == []


def test_the_intermediate_state_of_a_local_policy_in_pieces() -> None:
    """The last local endpoint leaves: the verdict has to stand before the chain lets traffic through."""
    cluster = Cluster(piece=1)
    for n in (1, 2):
        cluster.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                type="NodePort",
                externalTrafficPolicy="Local",
                ports=[port(nodePort=30000 + n)],
            ),
            _pods(f"svc{n}", endpoint(f"10.1.{n}.1", node="node1"), endpoint(f"10.1.{n}.2", node="node2")),
        )
    _done(cluster)
    for n in (1, 2):
        cluster.put(None, _pods(f"svc{n}", endpoint(f"10.1.{n}.2", node="node2")))
    sync_checked(cluster)
    assert outcomes(cluster.fake, Packet("192.168.0.2", 30001)) == {"DROP"}
    assert is_served(outcomes(cluster.fake, Packet("192.168.0.2", 30001, src="10.1.7.7")))
    assert cluster.state() == cluster.fresh()


# Failures -----------------------------------------------------------------------------------------------


@ways
def test_a_missing_match_costs_only_the_service_that_needs_it(variant: Variant, piece: int | None) -> None:
    cluster = _cluster(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    cluster.put(service("svc2", "10.96.0.2", sessionAffinity="ClientIP"), _pods("svc2", "10.1.2.9"))
    cluster.put(service("svc4", "10.96.0.4"), _pods("svc4", "10.1.4.1"))
    cluster.put(None, _pods("svc1", "10.1.1.9"))
    report = sync_checked(cluster)
    assert report.error is None
    assert list(report.failed) == ["ns1/svc2"]
    assert "RULE_APPEND" in report.failed["ns1/svc2"]
    assert cluster.holds("ns1/svc1")
    assert cluster.holds("ns1/svc4")
    assert outcomes(cluster.fake, Packet("10.96.0.2", 80)) == {"10.1.2.1:8080", "10.1.2.2:8080"}
    before = len(cluster.fake.restores)
    assert list(cluster.sync().failed) == ["ns1/svc2"]
    assert len(cluster.fake.restores) == before
    cluster.fake.accept_all_rules()
    cluster.backend.retry()
    _done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
@pytest.mark.parametrize("restart", [False, True])
def test_a_refused_service_keeps_what_it_had(variant: Variant, piece: int | None, restart: bool) -> None:
    """Whatever happens meanwhile: a check that finds damage elsewhere, a killed restore, a restart."""
    cluster = _cluster(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    moved = service("svc2", "10.96.0.22", sessionAffinity="ClientIP")
    cluster.put(moved, _pods("svc2", "10.1.2.9"))
    cluster.sync()
    old = Packet("10.96.0.2", 80)
    assert outcomes(cluster.fake, old) == {"10.1.2.1:8080", "10.1.2.2:8080"}
    assert cluster.backend.check(thorough=True) == ()
    cluster.fake.edit("*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n")
    assert [d.object for d in cluster.backend.check()] == ["chain nat/KUBE-MARK-MASQ"]
    if restart:
        cluster.start()
    cluster.fake.kill_after_tables(1)
    assert cluster.sync().error is not None
    cluster.put(None, _pods("svc1", "10.1.1.9"))
    assert list(cluster.sync().failed) == ["ns1/svc2"]
    assert outcomes(cluster.fake, old) == {"10.1.2.1:8080", "10.1.2.2:8080"}
    assert outcomes(cluster.fake, Packet("10.96.0.1", 80)) == {"10.1.1.9:8080"}
    cluster.fake.accept_all_rules()
    cluster.backend.retry()
    _done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_refused_service_without_endpoints_does_not_stop_a_cold_start(
    variant: Variant, piece: int | None
) -> None:
    cluster = Cluster(variant, piece=piece)
    cluster.fake.refuse_rules_matching("-p sctp")
    cluster.put(service("bad", "10.96.0.9", ports=[port(9, "s", "SCTP")]))
    for n in (1, 2, 3):
        cluster.put(service(f"svc{n}", f"10.96.0.{n}"), _pods(f"svc{n}", f"10.1.{n}.1"))
    for _ in range(2):
        report = cluster.sync()
        assert (report.error, list(report.failed)) == (None, ["ns1/bad"])
        assert all(cluster.holds(f"ns1/svc{n}") for n in (1, 2, 3))
        cluster.start()
    cluster.drop("ns1/bad")
    _done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
@pytest.mark.parametrize("kind", [FailureKind.LOCKED, FailureKind.OTHER, FailureKind.INTERRUPTED])
@pytest.mark.parametrize("after", range(5))
def test_a_change_that_is_taken_back_after_a_failure(
    variant: Variant, piece: int | None, kind: FailureKind, after: int
) -> None:
    """The kernel may hold the new state where the record still says the old one."""
    cluster = _cluster(variant, piece)
    intact = cluster.state()
    cluster.put(None, _pods("svc1", "10.1.1.9"), _pods("svc2"))
    cluster.put(service("svc4", "10.96.0.4"), _pods("svc4", "10.1.4.1"))
    cluster.fake.spare(after)
    if kind is FailureKind.INTERRUPTED:
        cluster.fake.kill_after_tables(1)
    else:
        cluster.fake.fail_next(kind)
    report = cluster.sync()
    assert report.error is None or report.error.startswith(kind)
    cluster.fake.clear_faults()
    cluster.put(None, _pods("svc1", "10.1.1.1", "10.1.1.2"), _pods("svc2", "10.1.2.1", "10.1.2.2"))
    cluster.drop("ns1/svc4")
    _done(cluster)
    assert cluster.state() == intact
    assert cluster.backend.check(thorough=True) == ()


def test_a_held_lock_is_reported_and_costs_no_second_look() -> None:
    cluster = _cluster()
    cluster.put(None, _pods("svc1", "10.1.1.9"))
    cluster.fake.lock_for(2)
    reads = cluster.fake.saves
    for _ in range(2):
        report = cluster.sync()
        assert report.error is not None
        assert report.error.startswith("locked: Another app is currently holding the xtables lock")
    _done(cluster)
    assert cluster.fake.saves == reads
    assert cluster.state() == cluster.fresh()


class _CutOff(WatchedXtables):
    cut = 20

    def save(self, table: str | None = None) -> bytes:
        dump = super().save(table)
        return dump[: len(dump) - self.cut]


def test_a_dump_that_was_cut_off_is_an_error_and_not_believed() -> None:
    fake = _CutOff(Family.IPV4, Variant.NFT)
    fake.edit("*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j RETURN\nCOMMIT\n")
    cluster = Cluster(fake=fake)
    cluster.put(service())
    report = cluster.sync()
    assert report.error is not None
    assert "cannot be read" in report.error
    assert fake.restores == []


def test_a_base_that_the_kernel_refuses_is_an_error_that_says_so() -> None:
    cluster = Cluster()
    cluster.fake.refuse_rules_matching("-j MASQUERADE")
    cluster.put(service())
    report = cluster.sync()
    assert report.error is not None
    assert report.error.startswith("rule: ")
    cluster.fake.accept_all_rules()
    _done(cluster)
    assert cluster.state() == cluster.fresh()


def test_check_reports_that_rules_cannot_be_read() -> None:
    fake = _CutOff(Family.IPV4, Variant.NFT)
    cluster = Cluster(fake=fake)
    fake.cut = 0
    cluster.put(service())
    _done(cluster)
    fake.cut = 20
    with pytest.raises(CheckError):
        cluster.backend.check(thorough=True)


def test_what_a_fresh_sync_writes_means_what_kube_proxy_writes() -> None:
    """The rules in the kernel after a sync against the second statement of kube-proxy's rules."""
    cluster = _cluster()
    cluster.put(
        service(
            "svc9",
            "10.96.0.9",
            type="LoadBalancer",
            ingress=["1.2.3.4"],
            loadBalancerSourceRanges=["1.0.0.0/8"],
        )
    )
    cluster.put(None, _pods("svc9", "10.1.9.1"))
    _done(cluster)
    expected: reference_rules.Rules = {}
    for key in sorted(cluster.plans):
        for chain, rules in reference_rules.rules_of(cluster.plans[key], cluster.config).items():
            expected.setdefault(chain, []).extend(rules)
    found = {
        (table, chain): [r for r in rules if "NOTE: this must be the last" not in r]
        for table, chains in cluster.state().items()
        for chain, rules in chains.items()
        if (table, chain) in expected
    }
    assert reference_rules.canonical(found) == reference_rules.canonical(expected)
