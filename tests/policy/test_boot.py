"""The table of a node's boot: it closes pods until kproxy's first sync, and never stays longer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy_lab.lab import Lab, LabSpec
from kproxy_lab.lab.flows import Flow, FlowProtocol, FlowTester, ends_of
from tests.packets.objects import FAMILIES
from tests.packets.program import Kproxy
from tests.policy.node import PORT, Node, running

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
FILES = ROOT / "manifests" / "boot"
TABLE = "kproxy-policy-boot"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    with running(tmp_path, LabSpec(local_pods=2, remote_pods=1)) as made:
        for pod in made.lab.pods:
            made.pod(pod, app=pod.name)
        yield made


@pytest.fixture
def tester(node: Node) -> Iterator[FlowTester]:
    ends = {**ends_of(node.lab.pods), **ends_of([node.lab.node_pod])}
    with FlowTester(ends, {"TCP": (PORT,), "UDP": (PORT,)}) as made:
        yield made


def load(node: Node) -> None:
    node.lab.node.run(["nft", "-f", str(FILES / f"{TABLE}.nft")])


def loaded(node: Node) -> bool:
    return TABLE in node.lab.node.run(["nft", "list", "tables"]).stdout


def flows(node: Node) -> dict[Flow, bool]:
    """Flows, and whether the table lets them pass: only the node's own."""
    first, second, remote = node.lab.pods
    host = node.lab.node_pod
    ways = ((first, second), (second, remote), (remote, first), (first, host), (host, first))
    protocols: tuple[FlowProtocol, ...] = ("TCP", "UDP")
    return {
        Flow(source.namespace, target.ip(family), protocol, PORT): source is host
        for source, target in ways
        for family in FAMILIES
        for protocol in protocols
    }


def tried(tester: FlowTester, wanted: dict[Flow, bool]) -> dict[Flow, bool]:
    return {each.flow: each.open for each in tester.attempt(wanted, list(wanted.values()))}


def test_pods_are_closed_until_the_first_sync(node: Node, tester: FlowTester) -> None:
    load(node)
    closed = flows(node)
    opened = dict.fromkeys(closed, True)
    assert tried(tester, closed) == closed
    program = node.start()
    for family in ("IPv4", "IPv6"):
        program.wait_log("boot_table_removed", family)
    assert tried(tester, opened) == opened
    load(node)  # again, by mistake
    since = program.mark()
    node.policy("first", {"app": node.lab.pods[0].name}, ingress=[])
    program.wait_log("policy_synced", "IPv6", since=since)
    program.until(lambda: loaded(node), expected=False)


def test_it_goes_where_policies_are_not_enforced_and_with_a_cleanup(node: Node) -> None:
    load(node)
    node.clean_up()
    assert not loaded(node)
    load(node)
    program = Kproxy(node.lab.node, [*node.run, "--proxy-mode", "nftables"])
    program.wait_log("removed", TABLE)
    program.end()


def test_the_service_names_the_file_that_it_loads_and_runs_before_kubelet() -> None:
    unit = (FILES / f"{TABLE}.service").read_text()
    (path,) = re.findall(r"^ExecStart=/usr/sbin/nft -f (\S+)$", unit, re.MULTILINE)
    assert Path(path).name == f"{TABLE}.nft"
    assert f" {path}\n" in unit
    assert re.search(r"^Before=kubelet\.service\b", unit, re.MULTILINE)
