"""Pods on one plain bridge: judged as others are, with services and hairpins; other bridges stay alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.addresses import Family
from kproxy.kernel import bridges
from kproxy_lab.lab import Lab, LabSpec
from kproxy_lab.lab.flows import Flow, FlowProtocol, FlowTester, ends_of
from kproxy_lab.lab.topology import BRIDGE
from tests.policy.node import PORT, SERVICE_IPS, Node, running

pytestmark = pytest.mark.root
BOTH, NONE = frozenset(Family), frozenset[Family]()
PROTOCOLS: tuple[FlowProtocol, ...] = ("TCP", "UDP", "SCTP")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    spec = LabSpec(local_pods=3, remote_pods=0, plain_bridge=True)
    with running(tmp_path_factory.mktemp("node"), spec) as made:
        lab = made.lab
        if not lab.node.call(bridges.loaded):
            pytest.skip("this kernel has no br_netfilter")
        for name in ("iptables", "ip6tables"):
            lab.node.sysctl(f"net.bridge.bridge-nf-call-{name}", 0)
        lab.node.run(["ip", "link", "add", "other0", "type", "bridge"])
        for pod, app in zip(lab.pods, ("server", "client", "other"), strict=True):
            made.pod(pod, app=app)
        made.service(lab.pods[0])
        yield made


@pytest.fixture(scope="module")
def tester(node: Node) -> Iterator[FlowTester]:
    with FlowTester(ends_of(node.lab.pods), {"TCP": (PORT,), "UDP": (PORT,)}) as made:
        yield made


@pytest.fixture
def policy(node: Node) -> Iterator[None]:
    """The server answers itself and one other pod."""
    peers = [
        {"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["client"]}]}}
    ]
    node.policy("server", {"app": "server"}, ingress=[{"from": peers}])
    yield
    node.delete("NetworkPolicy", "server")
    node.clean_up()


def flags(node: Node) -> dict[str, frozenset[Family] | None]:
    found = node.lab.node.call(bridges.read)
    return {bridge.name: bridge.filtered for bridge in found.values()}


def flows(node: Node) -> dict[Flow, bool]:
    """Flows between the pods, and whether each is allowed."""
    server, client, other = node.lab.pods
    found = {
        Flow(source.namespace, ip, protocol, PORT): allowed
        for source, target, allowed in (
            (client, server, False),
            (other, server, True),
            (server, client, True),
        )
        for ip in (target.ip4, target.ip6)
        for protocol in PROTOCOLS
    }
    for ip in SERVICE_IPS:
        found |= {
            Flow(source.namespace, ip, "TCP", PORT): source is not client
            for source in (server, client, other)
        }
    return found


def tried(tester: FlowTester, wanted: dict[Flow, bool]) -> dict[Flow, bool]:
    found = tester.attempt(wanted, list(wanted.values()))
    return {each.flow: each.open for each in found}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.usefixtures("policy")
def test_pods_of_one_bridge_are_judged_and_reach_services(node: Node, tester: FlowTester, mode: str) -> None:
    direct = {flow: True for flow in flows(node) if flow.ip not in SERVICE_IPS}
    assert tried(tester, direct) == direct  # nothing judges them
    program = node.start(mode=mode)
    program.wait_log("policy_synced", "IPv6")
    for flag in ("nf_call_iptables", "nf_call_ip6tables"):
        program.wait_log("bridge_judged", f"bridge={BRIDGE}", flag)
    for family in Family:
        program.wait_log("synced", family.value)
    wanted = flows(node)
    assert tried(tester, wanted) == wanted
    assert flags(node) == {BRIDGE: BOTH, "other0": NONE}


@pytest.mark.usefixtures("policy")
def test_flags_that_others_clear_are_drift_and_the_former_ones_come_back(
    node: Node, tester: FlowTester
) -> None:
    program = node.start()
    program.wait_log("bridge_judged", "nf_call_ip6tables")
    since = program.mark()
    node.lab.node.run(["ip", "link", "set", BRIDGE, "type", "bridge", "nf_call_iptables", "0"])
    program.wait_log("policy_drift_found", f"bridge {BRIDGE}", since=since)
    program.wait_log("bridge_judged", "nf_call_iptables", since=since)
    program.wait_log("policy_synced", "IPv6")
    wanted = flows(node)
    program.until(lambda: tried(tester, wanted), wanted)
    node.close()
    assert flags(node)[BRIDGE] == BOTH  # policies stay in force
    node.clean_up()
    assert flags(node) == {BRIDGE: NONE, "other0": NONE}
    tables = node.lab.node.run(["nft", "list", "tables"], check=False)
    assert "kproxy-" not in tables.stdout


@pytest.mark.usefixtures("policy")
def test_a_single_run_sets_them_too(node: Node, tester: FlowTester) -> None:
    assert node.start("--once").wait() == 0
    assert flags(node) == {BRIDGE: BOTH, "other0": NONE}
    wanted = flows(node)
    assert tried(tester, wanted) == wanted
