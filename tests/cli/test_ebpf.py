"""The eBPF mode as an operator meets it: where BPF runs, where it does not, and what is left at the end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel import nft_tables
from tests.cli.nodes import EXAMPLES, FLAGS, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network
from tests.support.bpf import child_cgroup, private_bpffs

pytestmark = pytest.mark.root

FILE = """apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.244.0.0/16
hostnameOverride: node-a
conntrack: {{maxPerCore: 0}}
---
apiVersion: kproxy.io/v1alpha1
kind: KproxyConfiguration
mode: "{mode}"
manifests: {examples}
ebpf: {{cgroupRoot: {cgroup}, pinDirectory: {pins}}}
"""


@pytest.fixture
def places() -> Iterator[tuple[Path, Path]]:
    """A cgroup of this process, and the pins."""
    with private_bpffs() as bpffs, child_cgroup("cli") as cgroup:
        yield cgroup, bpffs / "kproxy"


@fresh_network
def test_the_table_comes_and_goes_with_the_mode_while_the_process_runs(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    do("ip", "link", "set", "lo", "up")
    cgroup, pins = places
    file = tmp_path / "config.conf"

    def write(mode: str) -> None:
        file.write_text(FILE.format(mode=mode, examples=EXAMPLES, cgroup=cgroup, pins=pins))

    write("")
    with Running("--config", str(file), objects=()) as running:
        running.ready()
        assert not pins.exists()
        write("ebpf")
        planned = running.wait("mode_switch_planned", "to=ebpf")
        assert "afterwards=nothing" in planned
        running.wait("socket_table_serves")
        running.wait("mode_switched", "mode=ebpf")
        assert (pins / "link-connect4").exists()
        status = json.loads(kproxy("status", "-o", "json").stdout)
        assert (status["mode"], status["healthy"], status["conditions"]) == ("ebpf", True, [])
        write("")
        running.wait("mode_switched", "mode=nftables")
        running.wait("removed", f"socket_table={pins}")
        assert not pins.exists()
        write("ebpf")
        running.wait("mode_switched", "mode=ebpf", times=2)
        assert kproxy("cleanup", "--stop").returncode == 0
        assert running.status() == 0
    assert not pins.exists()
    assert "kproxy" not in nft_tables.tables(Family.IPV4)


@fresh_network
def test_without_a_bpffs_every_service_is_served_and_the_node_is_healthy_with_a_finding(
    tmp_path: Path,
) -> None:
    do("ip", "link", "set", "lo", "up")
    flags = ("--proxy-mode=ebpf", f"--ebpf-pin-directory={tmp_path / 'pins'}")
    with Running(*flags) as running:
        assert "is on no bpffs" in running.wait("socket_table_degraded", "level=warning")
        running.ready()
        running.wait("health_changed", "state=healthy")
        assert "kproxy" in nft_tables.tables(Family.IPV4)
        done = kproxy("status", "-o", "json")
        status = json.loads(done.stdout)
        assert (done.returncode, status["healthy"], status["state"]) == (3, True, "healthy")
        (condition,) = status["conditions"]
        assert condition["reason"] == "EbpfDegraded"
        assert "is on no bpffs" in condition["message"]
        assert running.end(signal.SIGTERM) == 0
    checked = kproxy("check", "--output", "json", *flags, *FLAGS)
    found = {each["subject"]: each for each in json.loads(checked.stdout)["findings"]}
    assert (checked.returncode, found["bpffs"]["level"]) == (0, "warning")


def test_render_and_a_file_of_kube_proxy(tmp_path: Path) -> None:
    flags = ("--proxy-mode=ebpf", f"--manifests={EXAMPLES}", "--cluster-cidr=10.244.0.0/16")
    done = kproxy("render", *flags, "--node=node-a")
    assert done.returncode == 0, done.stderr
    table, _, frontends = done.stdout.partition("# socket table\n")
    assert "add element ip kproxy services" in table
    assert all("/TCP -> " in line for line in frontends.splitlines())
    assert frontends
    file = tmp_path / "config.conf"
    file.write_text(FILE.partition("---")[0].format().replace("nftables", "ebpf"))
    refused = kproxy("run", "--config", str(file))
    assert refused.returncode == 1
    assert "set it as `mode` of KproxyConfiguration" in refused.stderr
