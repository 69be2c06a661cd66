"""The iptables backend after another proxy, and where the kernel refuses: what is kept, told, tried again."""

from __future__ import annotations

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import CheckError
from kproxy.kernel.xtables.types import FailureKind, Variant
from tests.backends import reference_rules
from tests.backends.iptables_node import IptablesNode, WatchedXtables, sync_checked
from tests.backends.packets import Packet, is_served, outcomes
from tests.backends.programmed import SVC1, both_variants, done, pods_of, programmed, ways
from tests.builders import endpoint, port, service

# kube-proxy's rules -------------------------------------------------------------------------------------


@ways
def test_rules_that_kube_proxy_left_are_taken_over_without_a_gap(variant: Variant, piece: int | None) -> None:
    """kube-proxy's order is that of a hash table, its rules are those of a moment ago."""
    fake = WatchedXtables(Family.IPV4, variant)
    theirs = IptablesNode(variant, fake=fake)
    for n in range(1, 7):
        theirs.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                externalIPs=[f"203.0.114.{n}"],
                sessionAffinity="ClientIP" if n == 3 else None,
            ),
            pods_of(f"svc{n}", f"10.1.{n}.1", f"10.1.{n}.2") if n != 5 else pods_of("svc5"),
        )
    done(theirs)
    for table in ("nat", "filter"):
        *rules, tail = fake.chains(table)["KUBE-SERVICES"]
        order = [rules[i] for i in (4, 0, 5, 2, 1, 3) if i < len(rules)] + rules[6:]
        lines = "\n".join([*order[::-1], tail])
        fake.edit(f"*{table}\n:KUBE-SERVICES - [0:0]\n{lines}\nCOMMIT\n")
    cluster = IptablesNode(variant, piece=piece, fake=fake)
    cluster.tables = theirs.tables
    cluster.start()
    cluster.put(None, pods_of("svc2", "10.1.2.2", "10.1.2.3"))
    cluster.put(None, pods_of("svc5", "10.1.5.1"))
    cluster.put(None, pods_of("svc6"))
    cluster.put(
        service("svc4", "10.96.0.4", internalTrafficPolicy="Local"),
        pods_of("svc4", endpoint("10.1.4.1", node="node1")),
    )
    cluster.drop("ns1/svc3")
    report = sync_checked(cluster)
    assert (report.error, dict(report.failed)) == (None, {})
    assert cluster.state() == cluster.fresh()


def test_kube_proxy_s_own_spelling_is_kept() -> None:
    """A node whose rules mean what is wanted is not written to, however they are spelled."""
    cluster = programmed(count=2)
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
    other = IptablesNode(fake=respelled)
    other.tables = cluster.tables
    other.start()
    done(other)
    assert respelled.restores == []


def test_the_intermediate_state_of_a_local_policy_in_pieces() -> None:
    """The last local endpoint leaves: the verdict has to stand before the chain lets traffic through."""
    cluster = IptablesNode(piece=1)
    for n in (1, 2):
        cluster.put(
            service(
                f"svc{n}",
                f"10.96.0.{n}",
                type="NodePort",
                externalTrafficPolicy="Local",
                ports=[port(nodePort=30000 + n)],
            ),
            pods_of(f"svc{n}", endpoint(f"10.1.{n}.1", node="node1"), endpoint(f"10.1.{n}.2", node="node2")),
        )
    done(cluster)
    for n in (1, 2):
        cluster.put(None, pods_of(f"svc{n}", endpoint(f"10.1.{n}.2", node="node2")))
    sync_checked(cluster)
    assert outcomes(cluster.fake, Packet("192.168.0.2", 30001)) == {"DROP"}
    assert is_served(outcomes(cluster.fake, Packet("192.168.0.2", 30001, src="10.1.7.7")))
    assert cluster.state() == cluster.fresh()


# Failures -----------------------------------------------------------------------------------------------


@ways
def test_a_missing_match_costs_only_the_service_that_needs_it(variant: Variant, piece: int | None) -> None:
    cluster = programmed(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    cluster.put(service("svc2", "10.96.0.2", sessionAffinity="ClientIP"), pods_of("svc2", "10.1.2.9"))
    cluster.put(service("svc4", "10.96.0.4"), pods_of("svc4", "10.1.4.1"))
    cluster.put(None, pods_of("svc1", "10.1.1.9"))
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
    done(cluster)
    assert cluster.state() == cluster.fresh()


@both_variants
def test_hundreds_of_services_that_need_a_missing_match_cost_few_restores(variant: Variant) -> None:
    cluster = programmed(variant)
    cluster.fake.refuse_rules_matching("-m recent")
    for n in range(300):
        sticky = service(f"sticky{n}", f"10.97.{n // 200}.{n % 200 + 1}", sessionAffinity="ClientIP")
        cluster.put(sticky, pods_of(f"sticky{n}", f"10.1.{n // 200}.{n % 200 + 1}"))
    cluster.put(None, pods_of("svc1", "10.1.1.9"))
    before = len(cluster.fake.restores)
    report = cluster.sync()
    assert (report.error, len(report.failed)) == (None, 300)
    assert len(cluster.fake.restores) - before < 60
    assert outcomes(cluster.fake, Packet("10.96.0.1", 80)) == {"10.1.1.9:8080"}
    for _ in range(5):
        assert report.retry_in is not None
        cluster.now += report.retry_in
        before = len(cluster.fake.restores)
        report = cluster.sync()
        assert (len(report.failed), report.refusals) == (300, 1)
        assert len(cluster.fake.restores) - before <= 4
    cluster.fake.accept_all_rules()
    while report.failed:
        assert report.retry_in is not None
        cluster.now += report.retry_in
        report = cluster.sync()
    assert cluster.state() == cluster.fresh()


@ways
@pytest.mark.parametrize("restart", [False, True])
def test_a_refused_service_keeps_what_it_had(variant: Variant, piece: int | None, restart: bool) -> None:
    """Whatever happens meanwhile: a check that finds damage elsewhere, a killed restore, a restart."""
    cluster = programmed(variant, piece)
    cluster.fake.refuse_rules_matching("-m recent")
    moved = service("svc2", "10.96.0.22", sessionAffinity="ClientIP")
    cluster.put(moved, pods_of("svc2", "10.1.2.9"))
    cluster.sync()
    old = Packet("10.96.0.2", 80)
    assert outcomes(cluster.fake, old) == {"10.1.2.1:8080", "10.1.2.2:8080"}
    assert cluster.backend.check(full=True) == ()
    cluster.fake.edit("*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n")
    assert [d.object for d in cluster.backend.check()] == ["chain nat/KUBE-MARK-MASQ"]
    if restart:
        cluster.start()
    cluster.fake.kill_after_tables(1)
    assert cluster.sync().error is not None
    cluster.put(None, pods_of("svc1", "10.1.1.9"))
    assert list(cluster.sync().failed) == ["ns1/svc2"]
    assert outcomes(cluster.fake, old) == {"10.1.2.1:8080", "10.1.2.2:8080"}
    assert outcomes(cluster.fake, Packet("10.96.0.1", 80)) == {"10.1.1.9:8080"}
    cluster.fake.accept_all_rules()
    cluster.backend.retry()
    done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
def test_a_refused_service_without_endpoints_does_not_stop_a_cold_start(
    variant: Variant, piece: int | None
) -> None:
    cluster = IptablesNode(variant, piece=piece)
    cluster.fake.refuse_rules_matching("-p sctp")
    cluster.put(service("bad", "10.96.0.9", ports=[port(9, "s", "SCTP")]))
    for n in (1, 2, 3):
        cluster.put(service(f"svc{n}", f"10.96.0.{n}"), pods_of(f"svc{n}", f"10.1.{n}.1"))
    for _ in range(2):
        report = cluster.sync()
        assert (report.error, list(report.failed)) == (None, ["ns1/bad"])
        assert all(cluster.holds(f"ns1/svc{n}") for n in (1, 2, 3))
        cluster.start()
    cluster.drop("ns1/bad")
    done(cluster)
    assert cluster.state() == cluster.fresh()


@ways
@pytest.mark.parametrize("kind", [FailureKind.LOCKED, FailureKind.OTHER, FailureKind.INTERRUPTED])
@pytest.mark.parametrize("after", range(5))
def test_a_change_that_is_taken_back_after_a_failure(
    variant: Variant, piece: int | None, kind: FailureKind, after: int
) -> None:
    """The kernel may hold the new state where the record still says the old one."""
    cluster = programmed(variant, piece)
    intact = cluster.state()
    cluster.put(None, pods_of("svc1", "10.1.1.9"), pods_of("svc2"))
    cluster.put(service("svc4", "10.96.0.4"), pods_of("svc4", "10.1.4.1"))
    cluster.fake.spare(after)
    if kind is FailureKind.INTERRUPTED:
        cluster.fake.kill_after_tables(1)
    else:
        cluster.fake.fail_next(kind)
    report = cluster.sync()
    assert report.error is None or report.error.startswith(kind)
    cluster.fake.clear_faults()
    cluster.put(None, pods_of("svc1", "10.1.1.1", "10.1.1.2"), pods_of("svc2", "10.1.2.1", "10.1.2.2"))
    cluster.drop("ns1/svc4")
    report = cluster.sync()
    assert (report.error, dict(report.failed), report.drifts) == (None, {}, ())
    assert cluster.state() == intact
    assert cluster.backend.check(full=True) == ()


def test_a_held_lock_is_reported_and_costs_no_second_look() -> None:
    cluster = programmed()
    cluster.put(None, pods_of("svc1", "10.1.1.9"))
    cluster.fake.lock_for(2)
    reads = cluster.fake.saves
    for _ in range(2):
        report = cluster.sync()
        assert report.error is not None
        assert report.error.startswith("locked: Another app is currently holding the xtables lock")
    done(cluster)
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
    cluster = IptablesNode(fake=fake)
    cluster.put(service())
    report = cluster.sync()
    assert report.error is not None
    assert "cannot be read" in report.error
    assert fake.restores == []


def test_a_base_that_the_kernel_refuses_is_an_error_that_says_so() -> None:
    cluster = IptablesNode()
    cluster.fake.refuse_rules_matching("-j MASQUERADE")
    cluster.put(service())
    report = cluster.sync()
    assert report.error is not None
    assert report.error.startswith("rule: ")
    cluster.fake.accept_all_rules()
    done(cluster)
    assert cluster.state() == cluster.fresh()


def test_check_reports_that_rules_cannot_be_read() -> None:
    fake = _CutOff(Family.IPV4, Variant.NFT)
    cluster = IptablesNode(fake=fake)
    fake.cut = 0
    cluster.put(service())
    done(cluster)
    fake.cut = 20
    with pytest.raises(CheckError):
        cluster.backend.check(full=True)


def test_what_a_fresh_sync_writes_means_what_kube_proxy_writes() -> None:
    """The rules in the kernel after a sync against the second statement of kube-proxy's rules."""
    cluster = programmed()
    cluster.put(
        service(
            "svc9",
            "10.96.0.9",
            type="LoadBalancer",
            ingress=["1.2.3.4"],
            loadBalancerSourceRanges=["1.0.0.0/8"],
        )
    )
    cluster.put(None, pods_of("svc9", "10.1.9.1"))
    done(cluster)
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


@pytest.mark.parametrize("variant", list(Variant))
def test_damage_that_a_sync_meets_is_named_and_repaired_by_it(variant: Variant) -> None:
    cluster = IptablesNode(variant)
    cluster.put(service("a", "10.96.0.1"), pods_of("a", endpoint("10.1.0.1")))
    done(cluster)
    cluster.fake.flush_table("nat")
    cluster.put(service("b", "10.96.0.2"), pods_of("b", endpoint("10.1.0.2")))
    report = cluster.sync()
    assert (report.error, dict(report.failed)) == (None, {})
    named = {str(drift) for drift in report.drifts}
    assert {"chain nat/KUBE-MARK-MASQ is missing", "chain nat/KUBE-SERVICES is missing"} <= named
    assert not any("filter/" in each for each in named)
    assert cluster.state() == cluster.fresh()
    assert cluster.sync().drifts == ()


@both_variants
@pytest.mark.parametrize("committed", [False, True])
def test_damage_that_follows_a_failed_sync_is_named(variant: Variant, committed: bool) -> None:
    """What the failed sync may have written itself is not."""
    cluster = programmed(variant)
    cluster.put(None, pods_of("svc2", "10.1.2.9"))
    if committed:
        cluster.fake.kill_after_tables(1)
    else:
        cluster.fake.fail_next(FailureKind.OTHER)
    assert cluster.sync().error is not None
    cluster.fake.edit(f"*nat\n:{SVC1} - [0:0]\nCOMMIT\n")
    cluster.fake.fail_next(FailureKind.OTHER)
    drifts = (*cluster.sync().drifts, *cluster.sync().drifts)
    assert [str(drift) for drift in drifts] == [
        f"chain nat/{SVC1} is modified: lacks 3 of its rules and has 0 that are not ours"
    ]
    assert cluster.state() == cluster.fresh()
