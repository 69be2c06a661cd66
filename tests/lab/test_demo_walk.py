"""The zero-trust walk of the demo: what is written down by hand is what kproxy's planner judges, too."""

from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.sources.manifests import load_manifests
from kproxy.state.kinds import Kind
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod
from kproxy_lab.demo import examples
from kproxy_lab.demo.examples import Json
from kproxy_lab.demo.walk import INTERNET, Step, Walk, compare, is_of, load_walk, named_wrong
from kproxy_lab.lab.topology import NODE, PEER
from tests.lab.test_demo_expectations import a_pod

OUTSIDE = "192.0.2.10"
PODS = [a_pod(NODE, i, local=True) for i in range(6)] + [a_pod(PEER, i, local=False) for i in range(3)]


@pytest.fixture(scope="module")
def walk() -> Walk:
    found = load_walk(examples.find(), PODS, OUTSIDE)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def planner(walk: Walk) -> PolicyPlanner:
    loaded = load_manifests(walk.objects.directory)
    assert loaded.problems == ()
    of = {kind: {each.key: each for each in found} for kind, found in loaded.objects.items()}
    return PolicyPlanner.full(
        "node-a",
        (Family.IPV4,),
        cast("dict[str, Pod]", of[Kind.POD]),
        cast("dict[str, Namespace]", of[Kind.NAMESPACE]),
        cast("dict[str, NetworkPolicy]", of[Kind.NETWORK_POLICY]),
    )


def ends(walk: Walk, step: Step) -> list[tuple[str, int]]:
    """The addresses and ports that a step reaches after the translation of service addresses."""
    if step.target == INTERNET or step.ip in {pod.ip4 for pod in walk.pods.values()}:
        return [(step.ip, step.port)]
    # kube-dns is among the other examples
    places = (walk.objects, examples.load(examples.find()))
    ((place, service),) = (
        (place, each)
        for place in places
        for each in place.services
        if each["spec"].get("clusterIP") == step.ip
    )
    (port,) = (
        each["targetPort"]
        for each in service["spec"]["ports"]
        if (each["port"], each["protocol"]) == (step.port, step.protocol)
    )
    return [(each["addresses"][0], port) for part in place.slices(service) for each in part["endpoints"]]


def test_every_step_is_judged_as_it_is_written_down(walk: Walk, planner: PolicyPlanner) -> None:
    assert [step.refused is None for step in walk.steps] == [True] * 4 + [False] * 3
    for step in walk.steps:
        source = walk.pods[step.source].ip4
        for ip, port in ends(walk, step):
            judged = planner.judge(Protocol(step.protocol), source, ip, port)
            assert judged.allowed is (step.refused is None), (step.title, judged)
            refusals = [each for each in judged.by if not each.allowed]
            if step.refused is not None:
                assert judged.reason
                first = refusals[0]
                assert (first.direction, first.pod) == (step.refused.direction, step.refused.pod)
                assert set(first.policies) == step.refused.policies


def test_a_walk_is_only_where_there_are_objects_for_it(tmp_path: Path) -> None:
    assert load_walk(tmp_path, PODS, OUTSIDE) is None


def test_a_pod_outside_the_lab_is_named(walk: Walk) -> None:
    with pytest.raises(examples.UnusableExamplesError, match=r"shop/database: 10\.244\.1\.15 is no pod"):
        load_walk(examples.find(), [pod for pod in PODS if pod.ip4 != "10.244.1.15"], OUTSIDE)


def test_outcomes_are_compared(walk: Walk) -> None:
    allowed, refused = walk.steps[0], walk.steps[-1]
    answered, silent = Counter({"local-3": 4}), Counter({"NoAnswer": 4})
    assert compare(allowed, answered, enforced=True) == ()
    assert compare(refused, silent, enforced=True) == ()
    assert compare(refused, Counter({"internet": 4}), enforced=False) == ()
    assert compare(refused, silent + Counter({"internet": 1}), enforced=True) == (
        "was to get no answer, but got internet",
    )
    assert compare(allowed, silent, enforced=True) == ("was to be answered, but got NoAnswer",)
    assert compare(refused, silent, enforced=False) == ("was to be answered, but got NoAnswer",)


def test_what_kproxy_names_is_compared(walk: Walk) -> None:
    step = walk.steps[-1]
    assert step.refused is not None
    right = {
        "source": {"ip": "10.244.1.15", "pod": "shop/database"},
        "wanted": {"ip": OUTSIDE, "port": 443},
        "direction": "egress",
        "policies": sorted(step.refused.policies),
        "nearest": "only DNS",
        "detail": "it is so",
    }
    assert is_of(right, step, walk)
    assert not any(is_of(right, other, walk) for other in walk.steps[:-1])
    assert named_wrong(step, [right]) == ()
    assert named_wrong(walk.steps[0], []) == ()
    assert named_wrong(step, []) == ("kproxy does not name it",)
    wrong: list[Json] = [{"direction": "ingress"}, {"policies": ["x/y"]}, {"detail": ""}, {"source": {}}]
    for bad in wrong:
        assert len(named_wrong(step, [right, right | bad])) == 1
