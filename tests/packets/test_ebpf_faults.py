"""A socket table that is damaged, taken away, or cannot be had: nothing is lost, and each cause is named."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy.kernel.bpf import links
from kproxy.kernel.bpf.layout import Layout
from kproxy.kernel.bpf.maps import HashMap
from kproxy.kernel.bpf.pins import open_pin
from kproxy.kernel.bpf.programs import HOOKS
from kproxy_lab.lab import Lab, Namespace, Pod
from tests.faults.selection import EVERYTHING
from tests.packets.cluster import Cluster
from tests.packets.modes import Capability, pins
from tests.packets.objects import FAMILIES, Port, Service
from tests.packets.outcomes import Traffic, names
from tests.packets.pages import scrape, status, value
from tests.packets.program import DEADLINE, Kproxy
from tests.packets.socket_table import Crowd, at_sockets, degraded, echoing, programs
from tests.packets.switching import remains
from tests.support.bpf import private_bpffs

pytestmark = [pytest.mark.root, pytest.mark.needs(Capability.SOCKET_TABLE)]

CONNECTIONS = int(os.environ.get("KPROXY_CONNECTIONS", "15000" if EVERYTHING else "300"))
"""Open connections during a restart."""
ECHO = 9095
UNCAPABLE = ("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin")
CHECKED = ("--iptables-sync-period=2s",)
"""Drift of what no event tells is found by the next check."""


@pytest.fixture(autouse=True)
def _no_former_table(spare: Cluster) -> None:
    """Remove what the process of the test before left; the kernel frees links some moments later."""
    shutil.rmtree(pins(spare.lab), ignore_errors=True)
    wait_without_programs(spare.lab)


def wait_without_programs(lab: Lab) -> None:
    deadline = time.monotonic() + DEADLINE
    while programs(lab):
        assert time.monotonic() < deadline, "programs stay attached"


def asked(cluster: Cluster, service: Service) -> list[tuple[Namespace | Pod, str, int]]:
    lab = cluster.lab
    sources: tuple[Namespace | Pod, ...] = (lab.local_pods[1], lab.node, lab.client)
    return [(source, service.ip(family), 80) for family in FAMILIES for source in sources]


def serves(cluster: Cluster, service: Service) -> bool:
    """Whether connections of a pod are translated at the socket, in both families; each is answered."""
    return all(at_sockets(cluster, cluster.lab.local_pods[2], service.ip(family)) for family in FAMILIES)


def obeys(cluster: Cluster, service: Service, pods: list[Pod]) -> None:
    """Give a service other endpoints: they are in force at once, for every client."""
    cluster.scale(service, pods)
    for source, ip, port in asked(cluster, service):
        assert cluster.ask(source, ip, port, n=8).pods <= names(pods)


@contextlib.contextmanager
def crowded(cluster: Cluster, pods: list[Pod]) -> Iterator[list[Crowd]]:
    """Open connections of a pod and of the node to a service, and new ones all the time: none may fail."""
    lab = cluster.lab
    each = CONNECTIONS // 2
    with echoing(pods, ECHO, CONNECTIONS):
        service = cluster.publish(pods, ports=[Port(80, target=ECHO)])
        targets = [(service.ip(family), 80) for family in FAMILIES]
        clients = [
            Crowd(place, "hold", targets=targets, count=each)
            for place in (lab.local_pods[2].namespace, lab.node)
        ]
        assert [crowd.first()["open"] for crowd in clients] == [each, each]
        yield clients
        for crowd in clients:
            crowd.wait()
        said = [crowd.end() for crowd in clients]
        assert [(found["kept"], found["failed"]) for found in said] == [(each, [])] * 2
        assert all(found["fresh"] > 0 for found in said)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_no_connection_notices_a_restart_with_other_programs(spare: Cluster, end: signal.Signals) -> None:
    """Each start loads its programs anew, so that a restart is an upgrade too."""
    lab = spare.lab
    program = spare.start()
    with crowded(spare, lab.local_pods[:2]) as clients:
        before = programs(lab)
        assert len(before) == len(HOOKS)
        program.end(end)
        for crowd in clients:
            crowd.wait(2)
        assert programs(lab) == before
        spare.start()
        spare.running.wait_log("socket_table_serves")
        for crowd in clients:
            crowd.wait(2)
        after = programs(lab)
        assert after.keys() == before.keys()
        assert all(after[name] != before[name] for name in before)
        assert degraded(spare) == []


def test_what_changed_while_it_was_down_is_caught_up_before_it_is_said(spare: Cluster) -> None:
    """A table that a killed process left serves on; the next process adopts it, and knows of no other."""
    spare.start()
    lab = spare.lab
    one, other = lab.local_pods[:2]
    gone, stays = spare.publish([one]), spare.publish([one])
    spare.running.end(signal.SIGKILL)
    assert serves(spare, stays)
    spare.delete(gone)
    spare.slices(stays, [other])
    fresh = spare.service()
    spare.slices(fresh, [one])
    spare.start()
    for source, ip, port in asked(spare, stays):
        assert spare.ask(source, ip, port, n=4).pods == {other.name}
    for family in FAMILIES:
        assert spare.outcome(lab.local_pods[2], gone.ip(family), 80) == spare.mode.unserved
    assert serves(spare, fresh)


def detach(lab: Lab) -> None:
    for name in HOOKS:
        link = open_pin(Layout(pins(lab)).link(name))
        links.detach(link, name)
        os.close(link)


def unpin_links(lab: Lab) -> None:
    for name in HOOKS:
        Layout(pins(lab)).link(name).unlink()


def remove_pins(lab: Lab) -> None:
    subprocess.run(["rm", "-r", *pins(lab).iterdir()], check=True)


DAMAGE: dict[str, Callable[[Lab], None]] = {
    "links detached": detach,
    "pins of links removed": unpin_links,
    "all pins removed": remove_pins,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_taken_away_is_named_and_put_back(spare: Cluster, name: str) -> None:
    lab = spare.lab
    program = spare.start(*CHECKED)
    service = spare.publish(lab.local_pods[:2])
    before = sorted(each.relative_to(pins(lab)) for each in pins(lab).rglob("*"))
    with Traffic(lab, asked(spare, service)) as traffic:
        began = program.mark()
        DAMAGE[name](lab)
        program.wait_log("drift_found", "link", since=began)
        program.until(lambda: sorted(each.relative_to(pins(lab)) for each in pins(lab).rglob("*")), before)
        program.until(lambda: len(programs(lab)), len(HOOKS))
        traffic.flow()
        program.until(lambda: serves(spare, service), expected=True)
    assert traffic.failures == []
    obeys(spare, service, lab.local_pods[:1])
    assert serves(spare, service)
    assert spare.running.end(signal.SIGKILL) == -signal.SIGKILL
    assert serves(spare, service)


def test_entries_changed_by_hand_are_put_back(spare: Cluster) -> None:
    lab = spare.lab
    program = spare.start(*CHECKED)
    service = spare.publish(lab.local_pods[:1])
    (pinned,) = pins(lab).rglob("frontends4")
    descriptor = open_pin(pinned)
    try:
        table = HashMap("frontends4", descriptor)
        before = table.read()
        assert len(before) == 2
        table.delete(before)
        began = program.mark()
        program.wait_log("drift_found", since=began)
        program.until(lambda: serves(spare, service), expected=True)
        assert table.read().keys() == before.keys()
    finally:
        os.close(descriptor)


def assert_degraded(cluster: Cluster, word: str) -> None:
    """Everything is served by packets, and the reason is named in status and metrics; it is healthy."""
    lab = cluster.lab
    service = cluster.publish(lab.local_pods[:2], type="NodePort")
    for source, ip, port in asked(cluster, service):
        assert cluster.ask(source, ip, port, n=8).pods <= names(lab.local_pods[:2])
    assert not serves(cluster, service)
    (message,) = degraded(cluster)
    assert word in message
    assert cluster.running.wait_log("socket_table_degraded")
    found = status(cluster)
    assert (found["healthy"], found["mode"]) == (True, "ebpf")
    assert value(scrape(cluster), "kproxy_ebpf_socket_table", state="degraded") == 1
    obeys(cluster, service, lab.local_pods[:1])


def test_without_the_capability_nftables_serves(spare: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "prefix", UNCAPABLE)
    spare.start()
    assert_degraded(spare, "CAP_BPF")
    assert programs(spare.lab) == {}


def test_without_a_bpffs_nftables_serves(spare: Cluster, tmp_path: Path) -> None:
    spare.start("--ebpf-pin-directory", str(tmp_path / "kproxy"))
    assert_degraded(spare, "bpffs")


def test_without_the_cgroup_nftables_serves(spare: Cluster, tmp_path: Path) -> None:
    spare.start("--ebpf-cgroup-root", str(tmp_path))
    assert_degraded(spare, "cgroup")


def test_without_writing_to_the_bpffs_nftables_serves(spare: Cluster) -> None:
    assert spare.lab.cgroup is not None
    with spare.lab.cgroup.read_only():
        spare.start()
        assert_degraded(spare, "ead-only")


def test_a_bpffs_that_becomes_read_only_disturbs_nothing(spare: Cluster) -> None:
    lab = spare.lab
    spare.start(*CHECKED)
    service = spare.publish(lab.local_pods[:2])
    assert lab.cgroup is not None
    with lab.cgroup.read_only(), Traffic(lab, asked(spare, service)) as traffic:
        obeys(spare, service, lab.local_pods[:1])
        others = [spare.publish(lab.local_pods[:2]) for _ in range(3)]
        assert serves(spare, others[-1])
        traffic.flow()
    assert traffic.failures == []
    obeys(spare, service, lab.local_pods[1:2])


def test_without_the_capability_a_former_table_is_kept_up_to_date(
    spare: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs serve on, over maps that need no capability to be written."""
    spare.start()
    service = spare.publish(spare.lab.local_pods[:2])
    spare.stop()
    monkeypatch.setattr(spare, "prefix", UNCAPABLE)
    with Traffic(spare.lab, asked(spare, service)) as traffic:
        spare.start()
        obeys(spare, service, spare.lab.local_pods[:1])
        obeys(spare, service, spare.lab.local_pods[1:2])
    assert traffic.failures == []
    assert len(degraded(spare)) == 1


@pytest.mark.parametrize("shares", [True, False], ids=["same pins", "other pins"])
def test_of_two_instances_one_serves_at_sockets(spare: Cluster, shares: bool, tmp_path: Path) -> None:
    """Two in one network namespace are refused anyway; another one may have the same cgroup by mistake."""
    lab = spare.lab
    spare.start()
    service = spare.publish(lab.local_pods[:2])
    other = str(pins(lab) if shares else pins(lab).with_name("another"))
    flags = ("--manifests", str(tmp_path), *spare.mode.flags(lab), "--ebpf-pin-directory", other)
    with Traffic(lab, asked(spare, service)) as traffic:
        second = Kproxy(lab.peer, ["run", "--hostname-override", "node-b", *flags])
        assert "another" in second.wait_log("socket_table_degraded")
        second.wait_log("synced")
        traffic.flow()
        obeys(spare, service, lab.local_pods[:1])
        assert serves(spare, service)
        assert second.end() == 0
        assert serves(spare, service)
        obeys(spare, service, lab.local_pods[1:2])
    assert traffic.failures == []
    assert degraded(spare) == []


def test_what_is_cleaned_up_at_the_end_cuts_nothing(spare: Cluster) -> None:
    """It looks for pins on every bpffs that is mounted; that of a lab is not."""
    lab = spare.lab
    with private_bpffs() as directory:
        program = spare.start("--cleanup-on-exit", "--ebpf-pin-directory", str(directory / "kproxy"))
        service = spare.publish(lab.local_pods[:1])
        assert serves(spare, service)
        with lab.hold(lab.local_pods[2], service.ip(4), 80) as held:
            spare.stop()
            assert list(directory.glob("kproxy*")) == []
            assert held.exchange().pod == lab.local_pods[0].name
        assert [line for line in program.log if "event=removed socket_table=" in line]
    wait_without_programs(lab)
    assert remains(spare, but="") == []
