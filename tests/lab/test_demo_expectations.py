"""The demo's second opinion on what should happen, and how it judges what did."""

from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.inspect.render import render_manifests
from kproxy.modes.registry import mode_registry
from kproxy_lab.demo import examples, offline
from kproxy_lab.demo.changes import Change, _Ask, _blur, _obeyed, planned, subject
from kproxy_lab.demo.compare import compare
from kproxy_lab.demo.examples import Examples, Json, UnusableExamplesError
from kproxy_lab.demo.expect import Asker, Outcome, Question, Source, listeners, topics
from kproxy_lab.lab import Answer, AskError, Namespace, Pod, Refused
from kproxy_lab.lab.topology import NODE, PEER, NodeAddresses

NODE_ADDRESSES = frozenset({"192.168.100.10", "10.244.1.1"})


def a_pod(own: NodeAddresses, index: int, *, local: bool) -> Pod:
    node_name, name = ("node-a", f"local-{index}") if local else ("node-b", f"remote-{index}")
    return Pod(name, *own.pod(index), node_name, local, cast("Namespace", None))


PODS = [a_pod(NODE, i, local=True) for i in range(3)] + [a_pod(PEER, i, local=False) for i in range(3)]


@pytest.fixture(scope="module")
def shipped() -> Examples:
    return examples.load(examples.find())


def asked(of: Examples) -> dict[tuple[str, Asker], Question]:
    return {(each.address, each.asker): each for topic in topics(of, PODS) for each in topic.questions}


def service(**spec: object) -> Json:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    spec = {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": ports, **spec}
    return {"kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": spec}


def objects(spec: Json, **conditions: Json) -> Examples:
    """A service with one endpoint for each pod named, `local_0={...}` its conditions."""
    by_name = {pod.name: pod for pod in PODS}
    endpoints = [
        {"addresses": [by_name[name.replace("_", "-")].ip4], "conditions": each}
        for name, each in conditions.items()
    ]
    metadata = {"name": "s-1", "namespace": "n", "labels": {examples.SERVICE_NAME: "s"}}
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    each = {"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4", "ports": ports}
    return Examples(Path(), (spec, {**each, "endpoints": endpoints}))


def answer(pod: str, saw: str, own: str = "192.0.2.10") -> Answer:
    return Answer(pod, saw, 40000, "10.244.1.10", 8080, own, 40000, "", 0.0, 0.0)


@pytest.mark.parametrize("family", Family)
def test_the_examples_are_flawless_for_kproxy(shipped: Examples, family: Family) -> None:
    config = ProxyConfig(node_name="node-a", manifests=shipped.directory, cluster_cidrs=offline.CLUSTER_CIDR)
    text, problems = render_manifests(config, family, mode_registry())
    assert problems == ()
    assert '"demo/web:http cluster IP"' in text
    assert "demo/search" not in text


def test_the_examples_show_every_kind_of_service(shipped: Examples) -> None:
    kinds = {question.kind for topic in topics(shipped, PODS) for question in topic.questions}
    assert kinds == {"ClusterIP", "NodePort", "LoadBalancer"}
    refused = {topic.service: topic.not_proxied for topic in topics(shipped, PODS) if topic.not_proxied}
    assert refused.keys() == {"demo/search", "demo/payments"}
    assert any(question.protocol == "UDP" for question in asked(shipped).values())
    assert any(":" in question.ip for question in asked(shipped).values())


def test_the_examples_have_the_answers_that_kubernetes_promises(shipped: Examples) -> None:
    by_address = asked(shipped)
    everybody = ("local-0", "local-1", "remote-0", "remote-1")
    assert by_address["10.96.0.80:80/TCP", Asker.POD].answers == dict.fromkeys(everybody, Source.OWN)
    hairpin = by_address["10.96.0.80:80/TCP", Asker.ENDPOINT].answers
    assert [name for name, source in hairpin.items() if source is Source.NODE] == ["local-0"]
    node_port = by_address["192.168.100.10:30080/TCP", Asker.CLIENT].answers
    assert node_port == dict.fromkeys(everybody, Source.NODE)
    local_only = by_address["203.0.113.80:80/TCP", Asker.CLIENT].answers
    assert local_only == dict.fromkeys(("local-0", "local-1"), Source.OWN)
    short_circuit = by_address["203.0.113.80:80/TCP", Asker.POD].answers
    assert short_circuit == dict.fromkeys(everybody, Source.OWN)
    assert by_address["203.0.113.90:80/TCP", Asker.CLIENTS].sticky
    nobody = by_address["10.96.0.100:80/TCP", Asker.POD]
    assert (nobody.answers, nobody.otherwise) == ({}, Outcome.REFUSED)


def test_draining_endpoints_answer_when_no_other_does() -> None:
    draining = {"ready": False, "serving": True, "terminating": True}
    both = objects(service(), local_0=draining, remote_0={"ready": True})
    alone = objects(service(), local_0=draining, remote_0={"ready": False})
    address = "10.96.0.1:80/TCP", Asker.POD
    assert set(asked(both)[address].answers) == {"remote-0"}
    assert set(asked(alone)[address].answers) == {"local-0"}


def test_local_policies_drop_where_others_could_answer_and_refuse_where_none_could() -> None:
    ready = {"ready": True}
    inside = objects(service(internalTrafficPolicy="Local"), remote_0=ready)
    assert asked(inside)["10.96.0.1:80/TCP", Asker.POD].otherwise is Outcome.DROPPED
    ports = [{"name": "http", "port": 80, "nodePort": 30000}]
    outside = service(type="NodePort", externalTrafficPolicy="Local", ports=ports)
    node_port = "192.168.100.10:30000/TCP", Asker.CLIENT
    assert asked(objects(outside, remote_0=ready))[node_port].otherwise is Outcome.DROPPED
    assert asked(objects(outside))[node_port].otherwise is Outcome.REFUSED


def test_services_of_other_proxies_are_not_asked() -> None:
    foreign = service()
    foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "cilium"}
    (topic,) = topics(objects(foreign, local_0={}), PODS)
    assert topic.questions == ()
    assert topic.not_proxied == "it is left to cilium"


def test_an_endpoint_outside_the_lab_is_named() -> None:
    strange = objects(service(), local_0={})
    strange.objects[1]["endpoints"][0]["addresses"] = ["10.0.0.1"]
    with pytest.raises(UnusableExamplesError, match=r"n/s-1: 10\.0\.0\.1 is no pod of the lab"):
        topics(strange, PODS)


def test_every_endpoint_is_served_once(shipped: Examples) -> None:
    served = [(each.pod.name, each.protocol, each.port) for each in listeners(shipped, PODS)]
    assert len(served) == len(set(served))
    assert {("local-1", "UDP", 53), ("local-1", "TCP", 53), ("remote-1", "TCP", 8081)} <= set(served)


@pytest.mark.parametrize(
    ("outcomes", "wrong"),
    [
        ([answer("a", "192.0.2.10"), answer("b", "192.168.100.10")] * 50, None),
        (
            [answer("a", "192.0.2.10"), answer("c", "192.168.100.10")] * 50,
            "got c 50 times; expected a, b only",
        ),
        ([answer("a", "192.168.100.10"), answer("b", "10.244.1.1")] * 50, "not the client's own"),
        ([answer("a", "192.0.2.10"), answer("b", "192.0.2.10")] * 50, "no address of the node"),
        ([answer("a", "192.0.2.10")] * 100, "b answered 0 of 100, a fair share is 50"),
        ([answer("a", "192.0.2.10"), answer("b", "10.244.1.1"), Refused("")] * 50, "got Refused 50 times"),
    ],
)
def test_answers_are_judged(outcomes: list[Answer | AskError], wrong: str | None) -> None:
    question = Question(
        "n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.CLIENT, {"a": Source.OWN, "b": Source.NODE}
    )
    finding = compare(question, outcomes, NODE_ADDRESSES)
    if wrong is None:
        assert finding.wrong == ()
        assert finding.counts == Counter(a=50, b=50)
        assert (finding.own, finding.node) == (("192.0.2.10",), ("192.168.100.10",))
    else:
        assert wrong in "; ".join(finding.wrong)


def test_a_client_with_affinity_must_not_move() -> None:
    answers = {"a": Source.OWN, "b": Source.OWN}
    question = Question("n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.CLIENTS, answers, sticky=True)
    keeps: list[Answer | AskError] = [answer("a", "192.0.2.10")] * 9
    assert compare(question, keeps, NODE_ADDRESSES).wrong == ()
    moved = compare(question, [*keeps, answer("b", "192.0.2.10")], NODE_ADDRESSES)
    assert moved.wrong == ("192.0.2.10 met a, b",)


def test_refusal_is_right_when_no_endpoint_is_ready() -> None:
    question = Question("n/s", "ClusterIP", "10.96.0.1", 80, "TCP", Asker.POD, {})
    assert compare(question, [Refused("")] * 3, NODE_ADDRESSES).wrong == ()
    assert compare(question, [answer("a", "10.244.1.12")], NODE_ADDRESSES).wrong != ()


def test_a_change_is_obeyed_when_the_newcomer_answers_or_the_leaver_no_longer_does() -> None:
    asks = [_Ask(float(i), pod, failed=False) for i, pod in enumerate("abacabbbb")]
    comes = Change("", PODS[0], comes=True, edit=lambda each: each["endpoints"])
    leaves = Change("", PODS[0], comes=False, edit=lambda each: each["endpoints"])
    named = [_Ask(a.began, "local-0" if a.answered_by == "a" else a.answered_by, a.failed) for a in asks]
    assert _obeyed(named[1:], comes) == 2.0
    assert _obeyed(named, leaves) == 5.0
    assert _obeyed(named[:5], leaves) is None
    assert _blur(named, 2.0, 2, comes) == 2.0
    assert _blur(named, 5.0, 3, leaves) == 3.0


def test_changes_keep_slices_of_both_families_in_step(shipped: Examples) -> None:
    about = subject(shipped, PODS)
    assert about is not None
    assert (about.ip, about.newcomer.name) == ("10.96.0.80", "remote-2")
    slices = shipped.slices(about.service)
    counts = []
    for change in planned(about):
        slices = examples.with_endpoints(slices, change.edit)
        ready = [[e for e in each["endpoints"] if e["conditions"]["ready"]] for each in slices]
        counts.append([len(each) for each in ready])
    assert counts == [[5, 5], [4, 4], [5, 5], [4, 4]]
