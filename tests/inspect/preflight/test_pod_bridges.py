"""What `kproxy check` says of bridges with pods, and of packets of pods that start."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kproxy.backends.policy.config import Unknown
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight import pod_bridges
from kproxy.inspect.preflight.pod_bridges import bridge_findings, unknown_findings
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.modes.findings import Level
from tests.kernel.namespace import fresh_network
from tests.sources.test_cni_cache import content


def make(*names: str) -> None:
    for name in names:
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, capture_output=True)


class Files:
    """The files that are looked at; `module` is there while br_netfilter is."""

    def __init__(self, directory: Path, *, loaded: bool) -> None:
        self.networks, self.results, self.module = (
            directory / name for name in ("net.d", "results", "module")
        )
        self.networks.mkdir()
        self.results.mkdir()
        if loaded:
            self.module.touch()

    def network(self, **plugin: object) -> None:
        plugins = {"name": "mynet", "plugins": [plugin, {"type": "portmap"}]}
        (self.networks / "10-mynet.conflist").write_text(json.dumps(plugins))

    def found(self) -> list[tuple[Level, str, str]]:
        findings = bridge_findings(self.networks, self.results, self.module)
        return [(each.level, each.found, each.remedy) for each in findings]


@fresh_network
def test_without_bridges_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert Files(tmp_path, loaded=False).found() == []


@fresh_network
def test_a_bridge_of_the_cni_needs_br_netfilter(tmp_path: Path) -> None:
    files = Files(tmp_path, loaded=False)
    make("mynet0", "docker0")
    ((level, text, remedy),) = files.found()
    assert (level, "docker0, mynet0" in text) == (Level.WARNING, True)
    assert "modprobe br_netfilter" in remedy
    files.network(type="bridge", bridge="mynet0")
    ((level, text, remedy),) = files.found()
    assert (level, text.startswith("mynet0: br_netfilter is not loaded")) == (Level.ERROR, True)
    assert "modprobe br_netfilter" in remedy
    files.module.touch()
    (level, text, _), (hairpin, without, remedy) = files.found()
    assert (level, text.startswith("mynet0; br_netfilter is loaded")) == (Level.OK, True)
    assert (hairpin, without.startswith("mynet0: hairpinMode is off")) == (Level.WARNING, True)
    assert "hairpinMode" in remedy
    files.network(type="bridge", bridge="mynet0", hairpinMode=True)
    assert [level for level, _, _ in files.found()] == [Level.OK]


@pytest.mark.parametrize("interface", ["mynet0", "veth1234"])
@fresh_network
def test_a_result_of_the_cni_names_the_bridge_or_a_port_of_it(tmp_path: Path, interface: str) -> None:
    files = Files(tmp_path, loaded=False)
    make("mynet0", "docker0")
    subprocess.run(["ip", "link", "add", "veth1234", "master", "mynet0", "type", "veth"], check=True)
    result = {"ips": [{"address": "10.244.1.7/24"}], "interfaces": [{"name": interface}]}
    (files.results / "mynet-c-eth0").write_bytes(content(result=result))
    ((level, text, _),) = files.found()
    assert (level, text.startswith("mynet0: ")) == (Level.ERROR, True)


@fresh_network
def test_a_kernel_that_cannot_hold_packets_drops_them(monkeypatch: pytest.MonkeyPatch) -> None:
    hold, allow = (
        ProxyConfig(node_name="n", network_policy_unknown_pods=each) for each in (Unknown.HOLD, Unknown.ALLOW)
    )
    assert list(unknown_findings(allow, NetlinkNft())) == []
    monkeypatch.setattr(pod_bridges, "holding", lambda _nft, config: config)
    assert [each.level for each in unknown_findings(hold, NetlinkNft())] == [Level.OK, Level.OK]
    monkeypatch.setattr(pod_bridges, "holding", lambda _nft, _config: None)
    found = list(unknown_findings(hold, NetlinkNft()))
    assert {(each.level, "modprobe nft_queue" in each.remedy) for each in found} == {(Level.WARNING, True)}
