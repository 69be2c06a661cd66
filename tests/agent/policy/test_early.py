"""Addresses of CNI results reach planning with the pod that they belong to, and with no other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kproxy.agent.policy.early import EarlyAddresses
from kproxy.sources.cni_cache import CniResult
from kproxy.state.policy_changes import PolicyChanges
from kproxy.state.policy_wire import Pod, PodIP, PodMeta, PodSpec, PodStatus

KEY = "shop/web"


def pod(
    *ips: str, uid: str = "u", node: str = "here", phase: str = "Pending", host_network: bool = False
) -> Pod:
    status = PodStatus(phase=phase, pod_ip=ips[0] if ips else None, pod_ips=tuple(PodIP(ip=ip) for ip in ips))
    return Pod(
        metadata=PodMeta(name="web", namespace="shop", uid=uid, labels={"a": "b"}),
        spec=PodSpec(node_name=node, host_network=host_network),
        status=status,
    )


def changes(**pods: Pod | None) -> PolicyChanges:
    return PolicyChanges(
        complete=True,
        pods={key.replace("_", "/"): each for key, each in pods.items()},
        namespaces={},
        policies={},
    )


def result(*ips: str, uid: str = "u", at: int = 1) -> CniResult:
    return CniResult(KEY, uid, ips, at=at)


class Node:
    """EarlyAddresses with results that a test replaces."""

    def __init__(self, **results: CniResult) -> None:
        self.results: Mapping[str, CniResult] = results
        self._early = EarlyAddresses("here", lambda: self.results)

    def addresses(self, given: PolicyChanges) -> dict[str, tuple[str, ...] | None]:
        found = self._early.amend(given).pods
        return {key: None if each is None else each.addresses for key, each in found.items()}


def test_a_pod_without_an_address_gets_that_of_its_result_whichever_comes_first() -> None:
    first = Node(x=result("10.0.0.1", "fd00::1"))
    assert first.addresses(changes(shop_web=pod())) == {KEY: ("10.0.0.1", "fd00::1")}
    second = Node()
    assert second.addresses(changes(shop_web=pod())) == {KEY: ()}
    second.results = {"x": result("10.0.0.1")}
    assert second.addresses(changes()) == {KEY: ("10.0.0.1",)}
    assert second.addresses(changes()) == {}


def test_everything_else_of_the_pod_stays() -> None:
    early = EarlyAddresses("here", lambda: {"x": result("10.0.0.1")})
    found = early.amend(changes(shop_web=pod())).pods[KEY]
    assert found is not None
    assert (found.metadata, found.spec) == (pod().metadata, pod().spec)
    assert found.status is not None
    assert found.status.phase == "Pending"


def test_the_address_of_the_api_stays_beside_another_one_and_is_not_repeated() -> None:
    node = Node(x=result("10.0.0.2", "fd00::1"))
    assert node.addresses(changes(shop_web=pod("10.0.0.1"))) == {KEY: ("10.0.0.1", "10.0.0.2", "fd00::1")}
    assert node.addresses(changes(shop_web=pod("10.0.0.2", "FD00::0001"))) == {
        KEY: ("10.0.0.2", "FD00::0001")
    }


def test_a_result_that_goes_takes_its_address_along() -> None:
    node = Node(x=result("10.0.0.1"))
    node.addresses(changes(shop_web=pod()))
    node.results = {}
    assert node.addresses(changes()) == {KEY: ()}


@pytest.mark.parametrize(
    "other",
    [pod(uid="v"), pod(node="there"), pod(host_network=True), pod(phase="Succeeded"), pod(phase="Failed")],
    ids=("another uid", "another node", "host network", "succeeded", "failed"),
)
def test_results_of_other_pods_are_not_used(other: Pod) -> None:
    node = Node(x=result("10.0.0.1"))
    assert node.addresses(changes(shop_web=other)) == {KEY: other.addresses}
    node.results = {**node.results}
    assert node.addresses(changes()) == {}


def test_names_decide_where_one_side_has_no_uid() -> None:
    assert Node(x=result("10.0.0.1", uid="")).addresses(changes(shop_web=pod())) == {KEY: ("10.0.0.1",)}
    two = Node(x=result("10.0.0.2", uid="v", at=2), y=result("10.0.0.1", at=1))
    assert two.addresses(changes(shop_web=pod(uid=""))) == {KEY: ("10.0.0.2",)}


def test_a_pod_that_is_gone_stays_gone() -> None:
    node = Node(x=result("10.0.0.1"))
    node.addresses(changes(shop_web=pod()))
    assert node.addresses(changes(shop_web=None)) == {KEY: None}
    node.results = {"x": result("10.0.0.3")}
    assert node.addresses(changes()) == {}


def test_without_results_changes_pass_as_they_are() -> None:
    given = changes(shop_web=pod("10.0.0.1"))
    assert EarlyAddresses("here").amend(given) == given
