"""What `kproxy check` says about other programs that enforce policies, and about hidden sources."""

import json
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.foreign_proxies import NodeInventory
from kproxy.inspect.preflight.policies import enforcer_findings, hazard_findings
from kproxy.modes.findings import Level

CONFIG = ProxyConfig(node_name="n1", network_policy=True)
OWN = NodeInventory(
    chains=frozenset({"KUBE-SERVICES", "KUBE-FIREWALL", "CNI-HOSTPORT-DNAT", "FLANNEL-FWD"}),
    links=frozenset({"lo", "eth0", "cni0", "flannel.1"}),
    tables=frozenset({(Family.IPV4, "kproxy-policy"), (Family.IPV4, "kproxy")}),
    processes={1: "systemd", 7: "kubelet", 8: "kproxy", 9: "flanneld"},
)


@pytest.mark.parametrize(
    ("seen", "name", "found"),
    [
        (NodeInventory(processes={70: "calico-felix"}), "Calico", "process 70"),
        (NodeInventory(chains=frozenset({"cali-FORWARD"})), "Calico", "chain cali-FORWARD"),
        (NodeInventory(tables=frozenset({(Family.IPV6, "calico")})), "Calico", "table calico"),
        (NodeInventory(links=frozenset({"cilium_host"})), "Cilium", "interface cilium_host"),
        (NodeInventory(chains=frozenset({"KUBE-NWPLCY-DEFAULT"})), "kube-router", "KUBE-NWPLCY-DEFAULT"),
        (NodeInventory(chains=frozenset({"KUBE-POD-FW-ABC"})), "kube-router", "KUBE-POD-FW-ABC"),
        (NodeInventory(processes={5: "antrea-agent"}), "Antrea", "process 5"),
        (NodeInventory(processes={5: "kube-network-po"}), "kube-network-policies", "process 5"),
        (
            NodeInventory(inet_tables=frozenset({"kube-network-policies"})),
            "kube-network-policies",
            "table kube-network-policies",
        ),
        (NodeInventory(processes={5: "weave-npc"}), "Weave Net's policy controller", "process 5"),
    ],
)
def test_another_enforcer_is_named_with_what_shows_it(seen: NodeInventory, name: str, found: str) -> None:
    (finding,) = enforcer_findings(seen)
    assert (finding.level, finding.subject) == (Level.WARNING, name)
    assert found in finding.found
    assert finding.remedy


def test_a_node_of_flannel_and_kproxy_has_no_other_enforcer(tmp_path: Path) -> None:
    assert list(enforcer_findings(OWN)) == []
    assert list(hazard_findings(CONFIG, OWN, tmp_path)) == []


def test_what_hides_the_source_is_named(tmp_path: Path) -> None:
    config = ProxyConfig(node_name="n1", network_policy=True, masquerade_all=True)
    assert [each.subject for each in hazard_findings(config, OWN, tmp_path)] == ["--masquerade-all"]
    for seen in (
        NodeInventory(chains=frozenset({"CNI-0123456789abcdef01234567"})),
        NodeInventory(inet_tables=frozenset({"cni_plugins_masquerade"})),
    ):
        assert [each.subject for each in hazard_findings(CONFIG, seen, tmp_path)] == ["ipMasq of the CNI"]


@pytest.mark.parametrize(
    ("network", "masquerades"),
    [
        ({"name": "mynet", "type": "bridge", "ipMasq": True}, True),
        ({"name": "mynet", "plugins": [{"type": "bridge", "ipMasq": True}, {"type": "portmap"}]}, True),
        ({"name": "mynet", "type": "bridge", "ipMasq": False}, False),
        ({"name": "mynet", "plugins": [{"type": "ptp"}]}, False),
        ({"name": "mynet", "plugins": 7}, False),
        ([1, 2], False),
        ("not JSON", False),
    ],
)
def test_a_network_that_masquerades_is_read_from_its_file(
    tmp_path: Path, network: object, masquerades: bool
) -> None:
    text = network if isinstance(network, str) else json.dumps(network)
    (tmp_path / "10-mynet.conflist").write_text(text)
    (tmp_path / "README").write_text(json.dumps({"name": "no", "ipMasq": True}))
    found = list(hazard_findings(CONFIG, OWN, tmp_path))
    assert bool(found) == masquerades
    assert not found or "network mynet of 10-mynet.conflist" in found[0].found


def test_no_directory_of_networks_is_no_finding(tmp_path: Path) -> None:
    assert list(hazard_findings(CONFIG, OWN, tmp_path / "none")) == []
