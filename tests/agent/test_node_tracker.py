"""The facts of a node as its object comes, changes and goes; and what a single sync waits for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent.node_tracker import NodeTracker
from kproxy.agent.once import OnceTimeout, waits_for
from kproxy.config.model import ProxyConfig
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.telemetry.http.health import HealthState
from kproxy.telemetry.status import Watch

CONFIG = ProxyConfig(node_name="node-a", detect_local_mode="NodeCIDR")


class World:
    """A node whose object the test stores."""

    def __init__(self) -> None:
        self.store = ObjectStore(frozenset({Kind.NODE}))
        self.health = HealthState(30.0, lambda: 0.0, lambda: None)
        self.servers: frozenset[tuple[str, int]] = frozenset()
        self.tracker = NodeTracker(self.store, self.health, lambda: ("192.168.1.5",), lambda: self.servers)

    def node(self, **fields: Any) -> None:
        document = {"metadata": {"name": "node-a"}, **fields}
        self.store.upsert(Kind.NODE, decode(Kind.NODE, json.dumps(document).encode()))

    def refresh(self, config: ProxyConfig = CONFIG) -> tuple[bool, list[str]]:
        """Whether the facts may differ, and what is logged."""
        with capture_logs() as logs:
            changed = self.tracker.refresh(config)
        return changed, [each["event"] for each in logs]


@pytest.fixture
def world() -> World:
    return World()


def test_facts_may_differ_when_an_input_has_changed_and_when_asked_to_look(world: World) -> None:
    world.node()
    assert world.refresh() == (True, [])
    assert world.refresh() == (False, [])
    world.servers = frozenset({("192.168.1.1", 6443)})
    assert world.refresh() == (True, [])
    assert world.refresh() == (False, [])
    world.node(spec={"podCIDRs": ["10.244.1.0/24"]})
    assert world.refresh() == (True, [])
    world.tracker.invalidate()
    assert world.refresh() == (True, [])
    assert world.refresh() == (False, [])
    facts = world.tracker.facts(CONFIG)
    assert facts is not None
    assert facts.view.outside.api_servers == world.servers
    assert facts.view.outside.local == {"192.168.1.5"}


def test_a_missing_node_is_logged_once_each_time_and_healthz_says_so(world: World) -> None:
    assert world.refresh() == (True, ["node_missing"])
    assert not world.health.report().node_eligible
    world.tracker.invalidate()
    assert world.refresh() == (True, [])
    world.node()
    assert world.refresh() == (True, [])
    assert world.health.report().node_eligible
    world.store.delete(Kind.NODE, "node-a")
    assert world.refresh() == (True, ["node_missing"])


def test_manifests_need_no_node(world: World) -> None:
    assert world.refresh(msgspec.structs.replace(CONFIG, manifests=Path("/"))) == (True, [])


def test_without_pod_cidrs_the_facts_are_waited_for(world: World) -> None:
    world.node()
    world.refresh()
    with capture_logs() as logs:
        assert world.tracker.facts_or_wait(CONFIG) is None
    assert [each["event"] for each in logs] == ["waiting_for_pod_cidrs"]
    assert world.health.report().waits_for == "the pod CIDRs of the node"
    world.node(spec={"podCIDRs": ["10.244.1.0/24"]})
    world.refresh()
    assert world.tracker.facts_or_wait(CONFIG) is not None
    assert world.health.report().waits_for is None
    world.store.delete(Kind.NODE, "node-a")
    world.refresh()
    assert world.tracker.facts_or_wait(CONFIG) is not None


def watch(kind: Kind, error: str | None) -> Watch:
    return Watch(kind.name, synced=False, connected_since=None, consecutive_failures=1, last_error=error)


@pytest.mark.parametrize(
    ("missing", "errors", "knows_node", "said"),
    [
        ((), {}, True, ["a first sync"]),
        ((), {}, False, ["the node's pod CIDRs (spec.podCIDRs of its Node object)"]),
        (
            (Kind.SERVICE, Kind.NODE),
            {},
            False,
            ["the list of Services (connection refused)", "the list of Nodes (this one's alone)"],
        ),
        (
            (),
            {Family.IPV6: "no such chain"},
            True,
            ["IPv6 rules to be written (no such chain)"],
        ),
    ],
)
def test_a_single_sync_says_what_it_waits_for(
    missing: tuple[Kind, ...], errors: dict[Family, str], *, knows_node: bool, said: list[str]
) -> None:
    watches = [watch(Kind.SERVICE, "connection refused"), watch(Kind.NODE, None)]
    found = waits_for(missing, watches, errors, knows_node=knows_node)
    assert found == said
    assert str(OnceTimeout(2.5, found)) == f"--timeout: not done within 2.5 s, waiting for {'; '.join(said)}"
