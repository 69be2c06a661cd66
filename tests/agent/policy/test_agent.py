"""The thread of policies, stepped by hand: what it applies when, and what it reports."""

from __future__ import annotations

import threading

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.agent.policy import agent as module
from kproxy.backends.core.base import Difference, Drift
from kproxy.backends.policy.config import Unknown
from kproxy.plan.policy.model import Direction, Touched
from kproxy.state.kinds import POLICY_KINDS, Kind
from kproxy.telemetry import series
from kproxy.telemetry.events import Reason
from tests.agent.policy.rig import DENY_ALL, ON, V4, V6, Rig, cluster, node
from tests.state.policy_objects import namespace, pod, policy

BOTH = {V4: {"10.1.0.1", "10.1.0.2"}, V6: set[str]()}


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("last", [*POLICY_KINDS, Kind.NODE], ids=str)
def test_nothing_is_written_before_all_first_lists(rig: Rig, last: Kind) -> None:
    objects = cluster()
    for kind in (Kind.NODE, *POLICY_KINDS):
        if kind is not last:
            rig.store.replace(kind, [each for each in objects if isinstance(each, kind.wire)], ())
            assert rig.settle() is None
    assert rig.kernel.enforcers == {}
    assert last.name in str(rig.agent.waits_for())
    rig.store.replace(last, [each for each in objects if isinstance(each, last.wire)], ())
    rig.settle()
    assert rig.agent.waits_for() is None
    assert rig.kernel.syncs == [V4, V6]


def test_the_first_lists_are_applied_at_once_and_the_next_change_too(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    assert rig.isolated() == BOTH
    rig.put(pod("new", "10.1.0.3"))
    rig.settle(0.02)
    assert rig.isolated()[V4] == BOTH[V4] | {"10.1.0.3"}
    assert rig.kernel.touched[-1] == (V4, Touched(addresses=frozenset({"10.1.0.3"})))


def test_changes_that_no_group_uses_write_nothing_and_are_no_sync(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    rig.kernel.syncs.clear()
    rig.put(pod("far", "10.2.0.9", node="n2"), namespace("other"))
    rig.settle(1.0)
    assert rig.kernel.syncs == []
    assert rig.agent.health()[V4].behind is None


def test_changes_in_quick_succession_share_a_sync(rig: Rig) -> None:
    rig.kernel.seconds = 0.005
    rig.lists(*cluster())
    rig.settle(1.0)
    rig.kernel.syncs.clear()
    for number in range(200):
        rig.put(pod(f"p{number}", f"10.1.1.{number}"))
        rig.kernel.clock += 0.001
        now = rig.kernel.clock
        rig.agent.step(now)
    rig.settle(1.0)
    assert len(rig.isolated()[V4]) == 202
    assert 2 < rig.kernel.syncs.count(V4) < 30


def test_a_family_that_fails_is_named_and_tried_again_and_the_other_goes_on(rig: Rig) -> None:
    rig.kernel.errors[V6] = "table ip6 kproxy-policy: out of memory"
    rig.lists(*cluster())
    with capture_logs() as logs:
        rig.settle()
    assert rig.isolated() == {V4: BOTH[V4]}
    assert [each["family"] for each in logs if each["event"] == "policy_sync_failed"] == ["IPv6"]
    status = rig.agent.status()
    assert status.families[V4].last_failure is None
    assert status.families[V6].failing_since is not None
    assert rig.agent.errors == {V6: "table ip6 kproxy-policy: out of memory"}
    rig.put(pod("new", "10.1.0.3"))
    rig.settle(0.05)
    assert rig.isolated()[V4] == BOTH[V4] | {"10.1.0.3"}
    del rig.kernel.errors[V6]
    rig.settle(60.0)
    assert rig.isolated()[V6] == set()
    assert rig.agent.errors == {}
    assert rig.agent.status().families[V6].failing_since is None


def test_what_failed_stays_pending_and_its_age_counts(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    rig.kernel.errors = {V4: "busy", V6: "busy"}
    rig.put(pod("new", "10.1.0.3"))
    rig.settle(0.05)
    assert rig.isolated() == BOTH
    rig.kernel.clock += 100.0
    health = rig.agent.health()[V4]
    assert (health.healthy, health.behind is not None and health.behind >= 100.0) == (False, True)
    rig.kernel.errors = {}
    rig.settle(60.0)
    assert "10.1.0.3" in rig.isolated()[V4]
    assert rig.agent.health()[V4].healthy


def test_a_thread_that_hangs_shows_in_the_health(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    ages = []

    def hang() -> None:
        rig.kernel.clock += 100.0
        ages.append(rig.agent.health()[V4].healthy)

    rig.kernel.during = hang
    rig.put(pod("new", "10.1.0.3"))
    rig.settle(0.05)
    assert ages[0] is False


def test_a_policy_that_cannot_be_obeyed_is_named_once_with_object_field_and_value(rig: Rig) -> None:
    bad = {"podSelector": {}, "ingress": [{"ports": [{"port": 70000}]}]}
    with capture_logs() as logs:
        rig.lists(*cluster(), policy("bad", bad))
        rig.settle()
        rig.put(pod("new", "10.1.0.3"))
        rig.settle(0.05)
        rig.put(policy("other", DENY_ALL))
        rig.settle(0.05)
    (told,) = [each for each in logs if each["event"] == "policy_rejected"]
    assert told["object"] == "NetworkPolicy shop/bad"
    assert (told["field"], told["value"]) == ("spec.ingress[0].ports[0].port", "70000")
    (rejected,) = rig.agent.status().rejected
    assert rejected.policy == "shop/bad"
    assert "70000" in rejected.reason
    assert rig.value(series.POLICIES_REJECTED) == 1
    assert [(each.reason, each.service) for each in rig.notices] == [(Reason.POLICY_REJECTED, "shop/bad")]
    with capture_logs() as logs:
        rig.put(policy("bad", DENY_ALL))
        rig.settle(0.05)
    assert [each["policy"] for each in logs if each["event"] == "policy_valid_again"] == ["shop/bad"]
    assert rig.agent.status().rejected == []


def test_a_policy_that_the_kernel_refuses_is_quarantined_and_tried_again(rig: Rig) -> None:
    rig.kernel.refused = {"shop/deny": "set p-1: no space"}
    rig.lists(*cluster())
    with capture_logs() as logs:
        rig.settle()
    told = [(each["family"], each["policy"]) for each in logs if each["event"] == "policy_quarantined"]
    assert told == [("IPv4", "shop/deny"), ("IPv6", "shop/deny")]
    status = rig.agent.status()
    assert [(each.policy, each.family) for each in status.quarantined] == [
        ("shop/deny", V4),
        ("shop/deny", V6),
    ]
    assert {each.reason for each in rig.notices} == {Reason.POLICY_QUARANTINED}
    assert not rig.agent.wait_applied(0.0)
    rig.kernel.refused = {}
    with capture_logs() as logs:
        rig.settle(5.1)
    assert [each["event"] for each in logs if "recovered" in each["event"]] == 2 * ["policy_recovered"]
    assert rig.agent.wait_applied(0.0)


def test_drift_is_counted_and_repaired(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    rig.kernel.enforcers[V4].drifts = (Drift("chain", "forward", Difference.MISSING),)
    with capture_logs() as logs:
        rig.settle(2.1)
    assert [each["family"] for each in logs if each["event"] == "policy_drift_found"] == ["IPv4"]
    assert rig.isolated() == BOTH
    drift = rig.agent.status().families[V4].drift
    assert (drift.found, drift.repaired, drift.outstanding) == (1, 1, 0)
    assert rig.value(series.POLICY_DRIFT_FOUND, "IPv4") == 1
    assert rig.value(series.POLICY_DRIFT_REPAIRED, "IPv4") == 1


def test_after_a_repair_the_connections_of_all_pods_are_judged_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What began while the table was damaged was judged by nothing."""
    heard = []
    connections = next(each for each in rig.agent.companions if each.name == "policy-connections")
    monkeypatch.setattr(
        connections, "applied", lambda family, touched: heard.append((family, touched.addresses))
    )
    rig.lists(*cluster())
    rig.settle()
    heard.clear()
    rig.kernel.errors = {V4: "busy"}
    rig.kernel.enforcers[V4].drifts = (Drift("table", "kproxy-policy", Difference.MISSING),)
    rig.settle(2.1)
    assert V4 not in dict(heard)
    rig.kernel.errors = {}
    rig.settle(60.0)
    assert dict(heard)[V4] == {"10.1.0.1", "10.1.0.2"}


def test_status_and_metrics_count_policies_groups_and_isolated_pods(rig: Rig) -> None:
    egress = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"]}
    rig.lists(*cluster(), pod("far", "10.2.0.1", node="n2"), pod("d", "10.1.0.7", labels={"app": "db"}))
    rig.put(policy("out", egress))
    rig.settle()
    status = rig.agent.status()
    assert (status.enabled, status.policies, status.isolated_pods) == (True, 2, 3)
    assert status.isolated == {"ingress": 3, "egress": 1}
    assert rig.value(series.POLICIES) == 2
    assert rig.value(series.ISOLATED_PODS, Direction.EGRESS.value) == 1
    assert rig.value(series.POLICY_GROUPS, "IPv4") == status.families[V4].groups == 2
    assert rig.value(series.POLICY_SYNC_FAILURES, "IPv4") is None


def test_turned_off_it_removes_the_tables_at_once_and_turned_on_again_it_enforces_everything(
    rig: Rig,
) -> None:
    rig.lists(*cluster())
    rig.settle()
    rig.agent.reconfigure(msgspec.structs.replace(ON, network_policy=False))
    rig.settle()
    assert rig.kernel.tables == {}
    assert rig.agent.health() == {}
    rig.put(pod("new", "10.1.0.3"))
    rig.agent.reconfigure(ON, (V4,))
    rig.settle()
    assert rig.isolated() == {V4: BOTH[V4] | {"10.1.0.3"}}


def test_tables_that_cannot_be_removed_are_tried_again(rig: Rig) -> None:
    rig.lists(*cluster())
    rig.settle()
    rig.kernel.removable = False
    rig.agent.reconfigure(msgspec.structs.replace(ON, network_policy=False))
    due = rig.settle()
    assert due == rig.kernel.clock + module.REMOVAL_AGAIN
    assert rig.isolated() == BOTH
    rig.kernel.removable = True
    assert rig.settle(module.REMOVAL_AGAIN) is None
    assert rig.kernel.tables == {}


def test_a_list_that_is_forgotten_opens_no_pod(rig: Rig) -> None:
    """The source forgets the kinds when policies are turned off, maybe before the thread has noticed."""
    rig.lists(*cluster())
    rig.settle()
    rig.store.forget(Kind.NETWORK_POLICY)
    rig.settle(1.0)
    assert rig.isolated() == BOTH


def test_other_settings_are_applied_while_it_runs(rig: Rig) -> None:
    rig.lists(*cluster(), node=node("10.1.0.0/24", "fd00::/64", "x"))
    rig.settle()
    assert rig.kernel.enforcers[V4].config.pod_cidrs == ("10.1.0.0/24",)
    assert rig.kernel.enforcers[V6].config.pod_cidrs == ("fd00::/64",)
    changed = msgspec.structs.replace(
        ON, network_policy_reject=True, network_policy_unknown_pods=Unknown.DROP.value
    )
    rig.agent.reconfigure(changed)
    rig.settle(0.1)
    config = rig.kernel.enforcers[V4].config
    assert (config.reject, config.unknown, rig.kernel.enforcers[V4].retried) == (True, Unknown.DROP, 1)
    assert rig.kernel.syncs == 2 * [V4, V6]
    assert rig.agent.status().unknown_pods == "drop"
    rig.store.upsert(Kind.NODE, node("10.9.0.0/24"))
    rig.settle(1.0)
    assert rig.kernel.enforcers[V4].config.pod_cidrs == ("10.9.0.0/24",)


def test_the_thread_ends_with_the_stop_and_leaves_the_tables(rig: Rig) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=rig.agent.run, args=(stop,))
    thread.start()
    rig.lists(*cluster())
    applied = rig.agent.wait_applied(20.0)
    stop.set()
    rig.store.wake()
    thread.join(20.0)
    assert (applied, thread.is_alive()) == (True, False)
    assert rig.isolated() == BOTH


def test_a_question_is_answered_by_the_planner_while_policies_are_enforced(rig: Rig) -> None:
    assert rig.agent.ask(lambda planner: planner.pod_at("10.1.0.1")) is None
    rig.lists(*cluster())
    rig.settle()
    assert rig.agent.ask(lambda planner: planner.pod_at("10.1.0.1")) == "shop/web"


def test_unknown_pods_that_cannot_be_told_from_others_are_named(rig: Rig) -> None:
    rig.agent.reconfigure(msgspec.structs.replace(ON, network_policy_unknown_pods="drop"))
    with capture_logs() as logs:
        rig.lists(*cluster(), node=node())
        rig.settle()
        gaps = rig.agent.status().gaps
        rig.store.upsert(Kind.NODE, node("10.1.0.0/24"))
        rig.settle(1.0)
    assert [each["event"] for each in logs if "ranges" in each["event"]] == ["policy_pod_ranges_unknown"]
    assert gaps == ["packets of pods that are not known yet pass: the Node has no podCIDRs"]
    assert rig.agent.status().gaps == []


def test_a_look_does_not_wait_for_the_next_regular_comparison(rig: Rig) -> None:
    rig.lists(*cluster())
    due = rig.settle()
    assert due is not None
    assert due > rig.kernel.clock
    rig.kernel.enforcers[V4].drifts = (Drift("table", "kproxy-policy", Difference.MISSING),)
    rig.settle()
    assert rig.agent.status().families[V4].drift.found == 0
    rig.agent.look()
    rig.settle(0.1)
    assert rig.agent.status().families[V4].drift.found == 1
    assert rig.isolated() == BOTH
