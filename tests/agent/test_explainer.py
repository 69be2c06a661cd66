"""The running agent answers /explain and /changes from its store and plans, and keeps them as they are."""

import json
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode

from kproxy.addresses import Family
from kproxy.agent.changes import Changes
from kproxy.agent.explainer import Explainer
from kproxy.agent.family_sync import SyncOutcome
from kproxy.backends.core.base import SyncReport
from kproxy.config.model import ProxyConfig
from kproxy.modes.registry import mode_registry
from kproxy.node.facts import node_facts
from kproxy.plan.planner import Planner
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.state.wire import Node
from tests.builders import Json, as_service, as_slice, endpoint_slice, service
from tests.inspect.explain.clusters import NODE, PODS, pod

CONFIG = ProxyConfig(node_name="node1", proxy_mode="nftables", cluster_cidrs=(PODS,))
QUESTION = {"src": "10.244.1.10", "proto": "tcp", "dst": "ns1/svc1"}


class Rig:
    """A store, a planner and a ring as an agent has them; `sync` does what its loop does."""

    def __init__(self) -> None:
        self.store = ObjectStore(frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE}))
        self.planner = Planner(Family.IPV4)
        node = cast("Node", Kind.NODE.decoder.decode(json.dumps(NODE)))
        self.agent = SimpleNamespace(
            config=CONFIG,
            facts=node_facts(CONFIG, node, ["192.168.0.2"]),
            planner=lambda family: self.planner if family is Family.IPV4 else None,
            changes=Changes(),
        )
        self.explainer = Explainer(cast("Any", self.agent), self.store, mode_registry())
        self.store.replace(Kind.NODE, [node], ())

    def put(self, *objects: Json) -> None:
        """Complete lists of these objects."""
        slices = [as_slice(each) for each in objects if "addressType" in each]
        services = [as_service(each) for each in objects if "addressType" not in each]
        self.store.replace(Kind.SERVICE, services, ())
        self.store.replace(Kind.ENDPOINT_SLICE, slices, ())

    def sync(self) -> None:
        """Plan and commit everything that changed."""
        keys = [each.key for each in self.store.changed_services()]
        inputs = self.store.take(keys, ["IPv4"])
        plans = self.planner.update(inputs, self.agent.facts.view)
        before = dict.fromkeys(plans)
        outcomes = {Family.IPV4: SyncOutcome(plans, SyncReport(), 0, 0, before, 1, 2, 3)}
        self.agent.changes.note(outcomes, self.store.arrivals(keys, ["IPv4"]))
        self.store.commit({"IPv4": ()})

    def ask(self, **changes: str) -> tuple[int, Any]:
        """The status and the answer of /explain."""
        answer = self.explainer.answer(urlencode(QUESTION | changes))
        text = answer.body.decode()
        return answer.status, json.loads(text) if answer.status == 200 else text


def test_a_question_is_answered_from_the_objects_in_force() -> None:
    rig = Rig()
    rig.put(service(), endpoint_slice(pod("10.244.1.12", "web-1")))
    rig.sync()
    status, found = rig.ask()
    assert status == 200
    assert [each["endpoint"] for each in found["desired"]["outcomes"]] == ["10.244.1.12:80"]
    assert (found["mode"], found["node"], found["actual"]) == ("nftables", "node1", None)
    assert found["since"]["applied"] is not None


def test_a_change_that_no_sync_took_yet_is_desired_and_said_to_wait() -> None:
    rig = Rig()
    rig.put(service(), endpoint_slice(pod("10.244.1.12", "web-1")))
    rig.sync()
    rig.put(service(), endpoint_slice(pod("10.244.1.13", "web-2")))
    _, found = rig.ask()
    assert [each["endpoint"] for each in found["desired"]["outcomes"]] == ["10.244.1.13:80"]
    assert found["since"]["applied"] is None


def test_a_service_that_no_sync_took_yet_is_explained_by_its_name() -> None:
    rig = Rig()
    rig.put(service("two", "10.96.0.2"))
    rig.sync()
    rig.put(service("two", "10.96.0.2"), service(), endpoint_slice(pod("10.244.1.12", "web-1")))
    _, found = rig.ask()
    assert found["frontend"]["service"] == "ns1/svc1"
    assert found["since"]["applied"] is None
    assert rig.ask(dst="10.96.0.1:80")[1]["frontend"] is None


def test_the_revision_is_that_of_the_change_in_the_kernel() -> None:
    rig = Rig()
    rig.put(service())
    rig.sync()
    rig.store.upsert(Kind.ENDPOINT_SLICE, as_slice(endpoint_slice("10.244.1.12")), "48213")
    keys = [each.key for each in rig.store.changed_services()]
    rig.store.take(keys, ["IPv4"])
    rig.store.upsert(Kind.ENDPOINT_SLICE, as_slice(endpoint_slice("10.244.1.13")), "48214")
    assert [each.versions for each in rig.store.arrivals(keys, ["IPv4"]).values()] == [{"IPv4": "48213"}]
    rig.store.commit({"IPv4": ()})
    rig.sync()
    _, found = rig.ask()
    assert found["since"]["revision"] == "48214"
    rig.put(service(externalIPs=["198.51.100.7"]))
    rig.sync()
    assert rig.ask()[1]["since"]["revision"] == ""


def test_an_answer_changes_nothing() -> None:
    rig = Rig()
    rig.put(service(), endpoint_slice(pod("10.244.1.12", "web-1")), service("two", "10.96.0.2"))
    rig.sync()
    first = rig.ask(dst="10.96.0.1:80")
    assert first == rig.ask(dst="10.96.0.1:80")
    assert not rig.store.changed_services()


def test_questions_that_cannot_be_answered_are_refused_with_the_reason() -> None:
    rig = Rig()
    rig.put(service())
    rig.sync()
    assert rig.ask(dst="ns1/none") == (400, "Service ns1/none is not known\n")
    status, text = rig.ask(src="nowhere")
    assert (status, text.startswith("SRC 'nowhere'")) == (400, True)
    rig.agent.facts = None
    assert rig.ask()[0] == 503


def test_changes_are_listed_by_service_and_number() -> None:
    rig = Rig()
    rig.put(service(), endpoint_slice("10.244.1.12"), service("two", "10.96.0.2"))
    rig.sync()

    def changes(**query: str) -> Any:
        answer = rig.explainer.changes(urlencode(query))
        return json.loads(answer.body) if answer.status == 200 else answer.status

    assert [each["service"] for each in changes()["changes"]] == ["ns1/svc1", "ns1/two"]
    assert [each["number"] for each in changes(after="1")["changes"]] == [2]
    (only,) = changes(service="ns1/svc1")["changes"]
    assert only["added"] == ["10.244.1.12:80"]
    assert changes(after="x") == 400
