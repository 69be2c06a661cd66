"""The iptables backend, one situation at a time: what is written, and in which order."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.iptables import names
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.kernel.xtables.types import Variant
from tests.backends.iptables_node import (
    CONFIG,
    IptablesNode,
    WatchedXtables,
    config_with,
    divided,
    sync_checked,
)
from tests.backends.packets import Packet, outcomes
from tests.backends.programmed import SEP1, SVC1, both_variants, done, pods_of, programmed, ways, written
from tests.builders import endpoint, endpoint_slice, port, service


@ways
def test_a_changed_endpoint_writes_its_service_s_chains_only(variant: Variant, piece: int | None) -> None:
    cluster = programmed(variant, piece)
    before = len(cluster.fake.restores)
    cluster.put(None, pods_of("svc1", "10.1.1.1", "10.1.1.9"))
    done(cluster)
    assert len(cluster.fake.restores) == before + 1
    text = written(cluster, before)
    added = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.9:8080")
    removed = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.2:8080")
    assert set(re.findall(r"^:(\S+)", text, re.MULTILINE)) == {SVC1, added, removed}
    assert re.findall(r"^-X (\S+)", text, re.MULTILINE) == [removed]
    assert cluster.state() == cluster.fresh()


@ways
def test_an_added_service_is_inserted_not_rewritten(variant: Variant, piece: int | None) -> None:
    cluster = programmed(variant, piece)
    before = len(cluster.fake.restores)
    cluster.put(service("svc15", "10.96.0.15"), pods_of("svc15", "10.1.15.1"))
    done(cluster)
    text = written(cluster, before)
    assert ":KUBE-SERVICES" not in text
    assert text.count("-I KUBE-SERVICES 2 ") == 1
    assert cluster.state() == cluster.fresh()


def test_many_changes_rewrite_the_shared_chain() -> None:
    cluster = programmed(count=1)
    for n in range(2, 90):
        cluster.put(service(f"svc{n}", f"10.96.0.{n}"), pods_of(f"svc{n}", f"10.1.{n}.1"))
    before = len(cluster.fake.restores)
    done(cluster)
    assert ":KUBE-SERVICES" in written(cluster, before)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_cold_start_writes_services_before_what_leads_to_them(variant: Variant, piece: int | None) -> None:
    cluster = programmed(variant, piece)
    texts = [text.decode() for text in cluster.fake.restores]
    chains = max(n for n, text in enumerate(texts) if f"-A {SVC1} " in text)
    leads = min(n for n, text in enumerate(texts) if f" -j {SVC1}\n" in text and "KUBE-SERVICES" in text)
    assert chains <= leads
    assert (chains < leads) is (piece is not None)


@both_variants
def test_a_restart_writes_nothing(variant: Variant) -> None:
    cluster = programmed(variant)
    before = len(cluster.fake.restores)
    cluster.start()
    done(cluster)
    assert len(cluster.fake.restores) == before
    assert cluster.backend.check(full=True) == ()


@ways
def test_what_was_removed_while_kproxy_was_down_goes(variant: Variant, piece: int | None) -> None:
    """In pieces too, though chains of one piece refer to chains of another."""
    cluster = programmed(variant, piece, count=6)
    for n in range(2, 7):
        cluster.drop(f"ns1/svc{n}")
    cluster.start()
    done(cluster)
    assert cluster.state() == cluster.fresh()
    assert len([c for c in cluster.state()["nat"] if c.startswith("KUBE-S")]) == 4


@both_variants
def test_comments_come_and_go_with_the_size_of_the_cluster(variant: Variant) -> None:
    cluster = programmed(variant, large_cluster_endpoints=6)
    assert "-> 10.1.1.1:8080" in cluster.fake.save().decode()
    cluster.put(None, pods_of("svc1", "10.1.1.1", "10.1.1.2", "10.1.1.3"))
    sync_checked(cluster)
    assert "-> 10.1." not in cluster.fake.save().decode()
    assert cluster.state() == cluster.fresh()
    cluster.put(None, pods_of("svc1", "10.1.1.1"))
    sync_checked(cluster)
    assert "-> 10.1.1.1:8080" in cluster.fake.save().decode()
    assert cluster.state() == cluster.fresh()


def test_the_threshold_is_kube_proxy_s() -> None:
    assert CONFIG.large_cluster_endpoints == 1000
    cluster = IptablesNode()
    pods = [f"10.1.{n // 250}.{n % 250 + 1}" for n in range(1000)]
    cluster.put(service(), pods_of("svc1", *pods))
    done(cluster)
    assert f"{SVC1} -m comment" in cluster.fake.save().decode()
    cluster.put(None, pods_of("svc1", *pods, "10.2.0.1"))
    done(cluster)
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
    cluster = programmed()
    cluster.config = config_with(**change)
    cluster.backend.reconfigure(StandardLayout(cluster.config))
    done(cluster)
    expected, found = cluster.fresh(), cluster.state()
    if change == {"localhost_node_ports": False}:
        # The kubelet wants the same rule, so it is never taken away.
        assert found["filter"].pop("KUBE-FIREWALL") != expected["filter"].pop("KUBE-FIREWALL")
    assert found == expected
    before = len(cluster.fake.restores)
    done(cluster)
    assert len(cluster.fake.restores) == before


def test_ipv6() -> None:
    config = IptablesConfig(Family.IPV6, local_traffic=LocalTraffic(cidr="fd00:1::/48"))
    cluster = IptablesNode(config=config)
    cluster.put(service(ip="fd00:96::1"), endpoint_slice("fd00:1::1"))
    done(cluster)
    assert cluster.state() == cluster.fresh()
    assert outcomes(cluster.fake, Packet("fd00:96::1", 80, src="2001:db8::9")) == {"[fd00:1::1]:80"}
    cluster.put(None, endpoint_slice(address_type="IPv6"))
    done(cluster)
    assert outcomes(cluster.fake, Packet("fd00:96::1", 80, src="2001:db8::9")) == {"REJECT"}


def test_equal_lines_of_two_ports() -> None:
    """One name with two protocols gives two equal health check rules, as with kube-proxy."""
    cluster = programmed()
    fields: dict[str, Any] = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32000,
        "ports": [port(53, "dns"), port(53, "dns", "UDP")],
    }
    cluster.put(service("dns", "10.96.0.10", **fields))
    done(cluster)
    assert cluster.state() == cluster.fresh()
    cluster.put(service("svc4", "10.96.0.4"))
    done(cluster)
    cluster.drop("ns1/dns")
    done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_refused_service_is_found_although_another_program_writes_all_the_time(
    variant: Variant, piece: int | None
) -> None:
    cluster = programmed(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    cluster.put(service("svc2", "10.96.0.2", sessionAffinity="ClientIP"))
    cluster.put(service("svc4", "10.96.0.4"), pods_of("svc4", "10.1.4.1"))
    others = iter(range(1000))
    cluster.fake.after = lambda: cluster.fake.edit(f"*filter\n:MINE-{next(others)} - [0:0]\nCOMMIT\n")
    report = cluster.sync()
    assert (report.error, list(report.failed)) == (None, ["ns1/svc2"])
    assert cluster.holds("ns1/svc4")


def test_a_chain_that_reappeared_as_stale_is_not_deleted_when_it_is_wanted_again() -> None:
    cluster = programmed()
    cluster.drop("ns1/svc1")
    done(cluster)
    cluster.fake.edit(f"*nat\n:{SVC1} - [0:0]\n-A {SVC1} -j RETURN\nCOMMIT\n")
    assert cluster.backend.check()
    cluster.put(service("svc1", "10.96.0.1"))
    before = len(cluster.fake.restores)
    done(cluster)
    assert cluster.state() == cluster.fresh()
    assert f"-X {SVC1}" not in written(cluster, before)


@ways
def test_a_chain_that_others_refer_to_does_not_hold_back_its_service(
    variant: Variant, piece: int | None
) -> None:
    cluster = programmed(variant, piece)
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -d 192.0.2.1/32 -j {SVC1}\n-A MINE -j {SEP1}\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    cluster.drop("ns1/svc3")
    done(cluster)
    assert outcomes(cluster.fake, Packet("10.96.0.1", 80)) == {"LOST"}
    found, expected = cluster.state()["nat"], cluster.fresh()["nat"]
    kept = {chain: rules for chain, rules in found.items() if chain not in expected}
    assert kept.pop("MINE")
    assert kept == {SVC1: [], SEP1: []}
    before = len(cluster.fake.restores)
    done(cluster)
    assert len(cluster.fake.restores) == before
    assert cluster.backend.check(full=True) == ()
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_chain_that_could_not_be_deleted_is_counted_until_it_is(
    variant: Variant, piece: int | None
) -> None:
    cluster = programmed(variant, piece)
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -j {SEP1}\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    assert [list(cluster.sync().leftovers) for _ in range(2)] == 2 * [[f"chain nat/{SEP1}"]]
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    assert cluster.sync().leftovers == {}
    assert cluster.state() == cluster.fresh()


@both_variants
@pytest.mark.parametrize("layout", [StandardLayout, divided])
def test_a_new_verdict_counts_before_the_old_one_goes(
    variant: Variant, layout: Callable[[IptablesConfig], Layout]
) -> None:
    cluster = IptablesNode(variant, layout=layout)
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
def test_a_divided_chain_that_another_rule_refers_to_is_emptied_and_goes_later(variant: Variant) -> None:
    cluster = IptablesNode(variant, layout=divided)
    for n, ip in enumerate(("10.96.0.1", "10.96.0.2", "10.96.0.3", "10.97.0.1"), 1):
        cluster.put(service(f"svc{n}", ip), endpoint_slice(f"10.1.0.{n}", service=f"svc{n}"))
    assert cluster.sync().error is None
    divisions = [chain for chain in cluster.state()["nat"] if chain.startswith("KUBE-AT-")]
    assert divisions
    cluster.fake.edit(f"*nat\n:MINE - [0:0]\n-A MINE -j {divisions[0]}\nCOMMIT\n")
    for n in (1, 2):
        cluster.drop(f"ns1/svc{n}")
    report = cluster.sync()
    assert (report.error, report.failed) == (None, {})
    assert list(report.leftovers) == [f"chain nat/{divisions[0]}"]
    assert cluster.state()["nat"][divisions[0]] == []
    cluster.fake.edit("*nat\n-F MINE\n-X MINE\nCOMMIT\n")
    cluster.backend.retry()
    assert cluster.sync().leftovers == {}
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
    cluster = IptablesNode(fake=fake)
    for n in (1, 2):
        cluster.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                sessionAffinity="ClientIP",
                type="NodePort",
                ports=[port(nodePort=3000 + n)],
            ),
            pods_of(f"svc{n}", "10.1.0.1"),
        )
    done(cluster)
    assert cluster.backend.check(full=True) == ()
    before = len(fake.restores)
    cluster.start()
    done(cluster)
    assert len(fake.restores) == before
    cluster.drop("ns1/svc1")
    cluster.put(None, pods_of("svc2"))
    done(cluster)
    assert cluster.backend.check(full=True) == ()
    assert WatchedXtables.save(fake).decode().count("10.96.0.2/32") == 1
