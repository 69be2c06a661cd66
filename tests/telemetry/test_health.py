"""/healthz and /livez: what load balancers and kubelets are told, over real HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family, split_host_port
from kproxy.state.wire import Node
from kproxy.telemetry.http.health import FamilyHealth, HealthServer, HealthState

PERIOD = 30.0


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.pending: float | None = None
        self.state = HealthState(PERIOD, lambda: self.now, lambda: self.pending)
        self.state.add_family(Family.IPV4)
        self.state.add_family(Family.IPV6)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def server(world: World) -> Iterator[HealthServer]:
    made = HealthServer("127.0.0.1:0", world.state)
    made.start()
    yield made
    made.stop()


def get(server: HealthServer, path: str) -> tuple[int, dict[str, object], str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, json.load(answer), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            content_type = error.headers["Content-Type"]
            return error.code, json.load(error) if "json" in content_type else {}, content_type


def node(**metadata: object) -> Node:
    return msgspec.convert({"metadata": {"name": "a", **metadata}}, Node)


def test_healthy_before_the_first_sync_and_in_kube_proxys_form(server: HealthServer) -> None:
    status, body, content_type = get(server, "/healthz")
    assert (status, content_type) == (200, "application/json")
    assert set(body) == {"lastUpdated", "currentTime", "nodeEligible", "healthy", "status"}
    assert body["nodeEligible"] is True
    assert body["healthy"] is True
    families = body["status"]
    assert isinstance(families, dict)
    assert set(families) == {"IPv4", "IPv6"}


def test_probes_that_search_the_text_find_what_they_look_for(server: HealthServer) -> None:
    """kube-proxy's answer has no spaces, and scripts and load balancers search it as it is."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
        text = answer.read()
    assert text.startswith(b'{"lastUpdated":"')
    assert b'"nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"' in text


def test_an_unhealthy_proxy_reports_when_any_family_was_last_updated(
    world: World, server: HealthServer
) -> None:
    world.state.failed(Family.IPV6)
    world.now += 2 * PERIOD + 1
    world.state.updated(Family.IPV4)
    for path in ("/healthz", "/livez"):
        status, body, _ = get(server, path)
        families = body["status"]
        assert isinstance(families, dict)
        assert status == 503
        assert body["lastUpdated"] == families["IPv4"]["lastUpdated"] > families["IPv6"]["lastUpdated"]


def test_a_change_that_waits_two_periods_is_unhealthy(world: World, server: HealthServer) -> None:
    world.pending = world.now
    world.now += 2 * PERIOD
    assert get(server, "/healthz")[0] == 200
    world.now += 1
    assert get(server, "/healthz")[0] == 503
    assert get(server, "/livez")[0] == 503
    world.pending = None
    assert get(server, "/healthz")[0] == 200


def test_a_family_that_keeps_failing_is_unhealthy_until_it_succeeds(
    world: World, server: HealthServer
) -> None:
    world.state.failed(Family.IPV6)
    world.now += 2 * PERIOD + 1
    status, body, _ = get(server, "/livez")
    families = body["status"]
    assert status == 503
    assert isinstance(families, dict)
    assert (families["IPv4"]["healthy"], families["IPv6"]["healthy"]) == (True, False)
    world.state.updated(Family.IPV6)
    assert get(server, "/livez")[0] == 200


def test_a_family_answers_for_what_came_after_its_own_last_sync(world: World, server: HealthServer) -> None:
    world.pending = world.now
    world.state.failed(Family.IPV6)
    world.now += 2 * PERIOD
    world.state.updated(Family.IPV4)
    world.now += 1
    families = get(server, "/livez")[1]["status"]
    assert isinstance(families, dict)
    assert (families["IPv4"]["healthy"], families["IPv6"]["healthy"]) == (True, False)
    world.now += 2 * PERIOD
    families = get(server, "/livez")[1]["status"]
    assert isinstance(families, dict)
    assert (families["IPv4"]["healthy"], families["IPv6"]["healthy"]) == (False, False)


def test_a_backlog_that_progresses_is_healthy_and_one_that_does_not_is_not(
    world: World, server: HealthServer
) -> None:
    """A hundred slices of ten seconds, while the oldest change waits all the time; then the loop hangs."""
    world.pending = world.now
    for number in range(100):
        world.now += 10.0
        progress = world.state.updated if number % 2 else world.state.progressed
        for family in Family:
            progress(family)
        assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 200
    world.now += 2 * PERIOD
    assert get(server, "/livez")[0] == 200
    world.now += 1
    assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 503
    world.state.progressed(Family.IPV4)
    world.state.progressed(Family.IPV6)
    assert get(server, "/livez")[0] == 200


def test_a_family_that_writes_a_part_and_fails_each_time_is_unhealthy(
    world: World, server: HealthServer
) -> None:
    world.pending = world.now
    for _ in range(10):
        world.state.progressed(Family.IPV6)
        world.state.failed(Family.IPV6)
        world.state.updated(Family.IPV4)
        world.now += 7.0
    families = get(server, "/livez")[1]["status"]
    assert isinstance(families, dict)
    assert (families["IPv4"]["healthy"], families["IPv6"]["healthy"]) == (True, False)


@pytest.mark.parametrize("leaving", ["deleted", "tainted", "gone"])
def test_a_leaving_node_gets_no_new_traffic_but_its_proxy_lives(
    world: World, server: HealthServer, leaving: str
) -> None:
    gone: Node | None = None
    if leaving == "deleted":
        gone = node(deletionTimestamp="2026-01-01T00:00:00Z")
    elif leaving == "tainted":
        taints = {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}
        gone = msgspec.convert({"metadata": {"name": "a"}, "spec": taints}, Node)
    world.state.see_node(gone, known=True)
    status, body, _ = get(server, "/healthz")
    assert (status, body["nodeEligible"], body["healthy"]) == (503, False, True)
    told = {"deleted": "being deleted", "tainted": "ToBeDeletedByClusterAutoscaler", "gone": "not found"}
    assert told[leaving] in world.state.report().node_reason
    status, body, _ = get(server, "/livez")
    assert status == 200
    assert "nodeEligible" not in body
    world.state.see_node(node(), known=True)
    assert get(server, "/healthz")[0] == 200


def test_other_paths_are_not_found(server: HealthServer) -> None:
    assert get(server, "/metrics")[0] == 404


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.0.0.0:10256", ("0.0.0.0", 10256)), ("[::]:10256", ("::", 10256)), (":80", ("", 80))],
)
def test_addresses_are_split(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text) == expected


@pytest.mark.parametrize("text", ["10256", "host:", "host:70000", "host:x", ""])
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_host_port(text)


def test_what_never_arrived_or_never_was_applied_is_late_as_any_change(
    world: World, server: HealthServer
) -> None:
    """As the store tells it: before the first sync something waits from the start on."""
    world.pending = world.now
    world.now += 2 * PERIOD
    assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 200
    world.now += 1
    assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 503
    world.state.updated(Family.IPV4)
    assert get(server, "/livez")[0] == 503
    world.state.updated(Family.IPV6)
    world.pending = None
    assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 200
    world.now += 10_000
    assert get(server, "/livez")[0] == get(server, "/healthz")[0] == 200


def test_the_report_says_what_was_synced_how_far_it_is_behind_and_what_it_waits_for(world: World) -> None:
    world.state.wait_for("the pod CIDRs of the node")
    world.pending = world.now
    world.state.updated(Family.IPV4)
    world.now += 7
    report = world.state.report()
    assert (report.longest_wait, report.waits_for) == (2 * PERIOD, "the pod CIDRs of the node")
    assert [report.families[each].synced for each in Family] == [True, False]
    assert [report.families[each].behind for each in Family] == [7.0, 7.0]


def test_changes_may_wait_for_two_sync_periods_of_the_settings_in_force(world: World) -> None:
    world.pending = world.now
    for period in (PERIOD, 10.0):
        world.state.set_sync_period(period)
        assert world.state.report().longest_wait == 2 * period


def test_policies_answer_for_themselves_beside_services(world: World, server: HealthServer) -> None:
    late = {
        Family.IPV4: FamilyHealth(datetime(2026, 1, 10, tzinfo=UTC), healthy=True),
        Family.IPV6: FamilyHealth(datetime(2026, 1, 10, tzinfo=UTC), healthy=False),
    }
    world.state.policies = lambda: late
    for path in ("/healthz", "/livez"):
        status, body, _ = get(server, path)
        assert (status, body["healthy"]) == (503, False)
        policies: Any = body["networkPolicy"]
        assert {family: each["healthy"] for family, each in policies.items()} == {"IPv4": True, "IPv6": False}
        services: Any = body["status"]
        assert all(each["healthy"] for each in services.values())
