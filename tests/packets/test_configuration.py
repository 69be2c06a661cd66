"""The real program with a configuration file: as kubeadm writes it, changed while it runs, and broken."""

import signal
import sys
from pathlib import Path

import pytest

from kproxy_lab.lab import AskError
from kproxy_lab.lab.topology import NODE_IP4, NODE_IP6, Family
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.modes import Capability
from tests.packets.objects import FAMILIES, Port
from tests.packets.outcomes import names
from tests.packets.pages import get
from tests.packets.program import Kproxy

pytestmark = pytest.mark.root


@pytest.fixture
def file(spare: Cluster, tmp_path: Path) -> File:
    return File(tmp_path / "config.conf", spare)


def start(cluster: Cluster, file: File) -> Kproxy:
    return cluster.start("--config", str(file.path))


def written(cluster: Cluster) -> list[str]:
    """What the node has of kproxy: rules of iptables, tables of nftables."""
    found = [rule for family in FAMILIES for rule in cluster.rules(family) if "KUBE-" in rule]
    if Capability.NFTABLES in cluster.mode.capabilities:
        tables = cluster.lab.node.run(["nft", "list", "tables"]).stdout.splitlines()
        found += [table for table in tables if table.endswith(" kproxy")]
    return found


def test_a_file_as_kubeadm_writes_it_programs_the_node(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    pods = spare.lab.pods[:2]
    service = spare.publish(pods, type="NodePort")
    for family in FAMILIES:
        outside = spare.ask(spare.lab.client, service.ip(family), 80)
        assert (outside.pods, outside.sources) == (names(pods), spare.as_node(pods, family))
        address = (NODE_IP4, NODE_IP6)[FAMILIES.index(family)][0]
        assert spare.ask(spare.lab.client, address, service.node_port).pods == names(pods)
    ignored = program.wait_log("flags_ignored")
    assert "--cluster-cidr" in ignored
    assert "--hostname-override" not in ignored


def test_settings_change_under_traffic(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    asker, *pods = spare.lab.pods[:4]
    service = spare.publish(pods)

    def sources(family: Family) -> dict[str, set[str]]:
        return spare.ask(asker, service.ip(family), 80).sources

    own = {family: {pod.name: {asker.ip(family)} for pod in pods} for family in FAMILIES}
    assert {family: sources(family) for family in FAMILIES} == own
    hidden = {family: spare.as_node(pods, family) for family in FAMILIES}
    for wanted, expected in ((True, hidden), (False, own)):
        mark = program.mark()
        file.set(**{file.masquerading: {"masqueradeAll": wanted}})
        program.wait_log("configuration_reloaded", f"{file.masquerading}.masqueradeAll", since=mark)
        for family in FAMILIES:
            program.until(lambda family=family: sources(family), expected[family])  # type: ignore[misc]


def test_external_addresses_go_with_their_gate_and_come_back(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    pod, ips = spare.lab.local_pods[0], spare.external_ips()
    service = spare.publish([pod], externalIPs=[ips[family] for family in FAMILIES])

    def outcomes(family: Family) -> list[str]:
        client = spare.lab.client
        return [spare.outcome(client, ip, 80) for ip in (ips[family], service.ip(family))]

    for served in (True, False, True):
        file.set(featureGates={"AllowServiceExternalIPs": served})
        for family in FAMILIES:
            program.until(lambda family=family: outcomes(family)[0] == pod.name, served)  # type: ignore[misc]
            assert outcomes(family)[1] == pod.name


def test_profiling_is_answered_while_the_file_says_so(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    assert get(spare, "/debug/threads") == (404, b"enableProfiling is false\n")
    file.set(enableProfiling=True)
    program.until(lambda: get(spare, "/debug/threads")[0], 200)
    output = get(spare, "/debug/threads")[1].decode()
    assert {"thread MainThread:", "thread watch-service:"} <= set(output.splitlines())


def test_node_port_addresses_change_on_a_signal(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    pod = spare.lab.local_pods[0]
    service = spare.publish([pod], type="NodePort")

    def outcomes() -> list[str]:
        client = spare.lab.client
        return [spare.outcome(client, ip, service.node_port) for ip in (*NODE_IP4, *NODE_IP6)]

    everywhere = [pod.name] * len((*NODE_IP4, *NODE_IP6))
    primary = [pod.name if ip in {NODE_IP4[0], NODE_IP6[0]} else "Refused" for ip in (*NODE_IP4, *NODE_IP6)]
    by_default = primary if Capability.NFTABLES in spare.mode.capabilities else everywhere
    assert outcomes() == by_default
    file.set(nodePortAddresses=["0.0.0.0/0", "::/0"])
    program.send(signal.SIGHUP)
    program.until(outcomes, everywhere)
    file.set(nodePortAddresses=["primary"])
    program.send(signal.SIGHUP)
    program.until(outcomes, primary)
    file.set(nodePortAddresses=["0.0.0.0/0", "::/0"])
    program.until(outcomes, everywhere)
    file.set(nodePortAddresses=None)
    program.until(outcomes, by_default)


def test_datagrams_to_an_address_that_did_not_accept_node_ports_are_served(
    spare: Cluster, file: File, family: Family
) -> None:
    file.set(nodePortAddresses=["primary"])
    program = start(spare, file)
    pod, address = spare.lab.local_pods[0], (NODE_IP4 if family == 4 else NODE_IP6)[1]
    service = spare.publish([pod], type="NodePort", ports=[Port(53, "UDP")])
    with spare.lab.hold(spare.lab.client, address, service.node_port, "UDP") as held:

        def who() -> str:
            try:
                return held.exchange("who?", timeout=0.3).pod
            except AskError as error:
                return type(error).__name__

        assert who() == "Refused"
        file.set(nodePortAddresses=["0.0.0.0/0", "::/0"])
        program.until(who, pod.name)


@pytest.mark.needs(Capability.LOCALHOST_NODE_PORTS)
def test_node_ports_on_localhost_come_and_go(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    pod = spare.lab.local_pods[0]
    service = spare.publish([pod], type="NodePort")
    for wanted, expected in ((False, "Refused"), (True, pod.name)):
        file.set(iptables={"localhostNodePorts": wanted})
        program.until(lambda: spare.outcome(spare.lab.node, "127.0.0.1", service.node_port), expected)


def test_the_mark_and_the_way_to_tell_pods_change_under_traffic(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    asker, *pods = spare.lab.pods[:4]
    service = spare.publish(pods)
    for changes in (
        {file.masquerading: {"masqueradeBit": 20}},
        {"detectLocalMode": "NodeCIDR"},
        {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "mynet"}},
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "mynet0"}},
    ):
        mark = program.mark()
        file.set(**changes)
        program.wait_log("configuration_reloaded", since=mark)
        program.wait_log("synced", "family=IPv6", since=mark)
        for family in FAMILIES:
            own = {pod.name: {asker.ip(family)} for pod in pods}
            assert spare.ask(asker, service.ip(family), 80).sources == own
            outside = spare.ask(spare.lab.client, service.ip(family), 80)
            assert outside.sources == spare.as_node(pods, family)


@pytest.mark.needs(Capability.VIRTUAL_SERVERS)
def test_the_scheduler_of_virtual_servers_changes(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    service = spare.publish(spare.lab.pods[:2])
    node = spare.lab.node

    def scheduler() -> str:
        lines = node.run(["ipvsadm", "-Sn"]).stdout.splitlines()
        return next(line.split()[4] for line in lines if line.startswith(f"-A -t {service.ip(4)}:80 "))

    assert scheduler() == "rr"
    file.set(ipvs={"scheduler": "wlc", "tcpTimeout": "15m2s"})
    program.until(scheduler, "wlc")
    assert "902 120 300" in node.run(["ipvsadm", "-L", "--timeout"]).stdout
    for family in FAMILIES:
        assert spare.ask(spare.lab.client, service.ip(family), 80).pods == names(spare.lab.pods[:2])


def test_a_bad_file_and_what_needs_a_restart_leave_everything_as_it_is(spare: Cluster, file: File) -> None:
    program = start(spare, file)
    pods = spare.lab.pods[:2]
    service = spare.publish(pods)
    mark = program.mark()
    file.set(iptables={"syncPeriod": "3x", "foo": 1})
    output = program.wait_log("configuration_rejected", since=mark)
    assert "iptables.syncPeriod" in output
    assert "; iptables.foo: unknown field" in output or "unknown field; " in output
    assert "['" not in output
    mark = program.mark()
    file.unset("iptables", "foo")
    file.set(iptables={"syncPeriod": "20s"}, bindAddressHardFail=True)
    assert "'bindAddressHardFail'" in program.wait_log("restart_needed", since=mark)
    for family in FAMILIES:
        assert spare.ask(spare.lab.client, service.ip(family), 80).pods == names(pods)
    added = spare.publish(pods)
    for family in FAMILIES:
        assert spare.ask(spare.lab.client, added.ip(family), 80).pods == names(pods)


def test_a_signal_without_a_file_is_harmless(spare: Cluster) -> None:
    program = spare.start()
    program.send(signal.SIGHUP)
    program.wait_log("nothing_to_reload")
    pods = spare.lab.pods[:2]
    service = spare.publish(pods)
    assert spare.ask(spare.lab.client, service.ip(4), 80).pods == names(pods)


def test_kernel_parameters_of_the_file_are_set_and_follow_it(spare: Cluster, file: File) -> None:
    names_of = {
        "tcpEstablishedTimeout": "nf_conntrack_tcp_timeout_established",
        "udpStreamTimeout": "nf_conntrack_udp_timeout_stream",
    }

    def values() -> list[str]:
        return [spare.lab.node.sysctl(f"net.netfilter.{name}") for name in names_of.values()]

    file.set(conntrack={"tcpEstablishedTimeout": "2h", "udpStreamTimeout": "77s"})
    program = start(spare, file)
    assert values() == ["7200", "77"]
    file.set(conntrack={"tcpEstablishedTimeout": None, "udpStreamTimeout": "88s"})
    program.until(values, ["86400", "88"])


def test_preparing_sets_kernel_parameters_and_writes_no_rules(spare: Cluster, file: File) -> None:
    node = spare.lab.node
    node.run([sys.executable, "-m", "kproxy", "cleanup"])
    node.sysctl("net.ipv4.conf.all.route_localnet", 0)
    node.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", 60)
    node.run([sys.executable, "-m", "kproxy", "run", "--config", str(file.path), "--init-only"])
    assert node.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait") == "3600"
    localhost = Capability.LOCALHOST_NODE_PORTS in spare.mode.capabilities
    assert node.sysctl("net.ipv4.conf.all.route_localnet") == ("1" if localhost else "0")
    assert written(spare) == []
    node.sysctl("net.ipv4.conf.all.route_localnet", 0)
    for ranges in (["192.168.0.0/16"], ["primary"]):
        file.set(nodePortAddresses=ranges)
        node.run([sys.executable, "-m", "kproxy", "run", "--config", str(file.path), "--init-only"])
        assert node.sysctl("net.ipv4.conf.all.route_localnet") == "0"


def test_the_flag_cleanup_is_the_command(spare: Cluster, file: File) -> None:
    start(spare, file)
    spare.stop()
    assert written(spare) != []
    spare.lab.node.run([sys.executable, "-m", "kproxy", "run", "--cleanup"])
    assert written(spare) == []


def test_a_taken_health_port_leaves_the_rules_alone_unless_the_file_says_so(
    spare: Cluster, file: File
) -> None:
    with spare.lab.node.listen("0.0.0.0", 10256):
        program = start(spare, file)
        assert "10256" in program.wait_log("bind_failed")
        pods = spare.lab.pods[:2]
        service = spare.publish(pods)
        assert spare.ask(spare.lab.client, service.ip(4), 80).pods == names(pods)
        spare.stop()
        file.set(bindAddressHardFail=True)
        ended = spare.lab.node.run(
            [sys.executable, "-m", "kproxy", "run", "--config", str(file.path)], check=False
        )
    assert ended.returncode == 1
    assert "in use" in ended.stderr


def test_without_a_way_to_the_cluster_it_ends_with_the_reason_and_status_1(
    spare: Cluster, tmp_path: Path
) -> None:
    no_yaml, no_context = tmp_path / "no-yaml", tmp_path / "no-context"
    no_yaml.write_text("a: [")
    no_context.write_text("apiVersion: v1\nkind: Config\n")
    for flags, output in (
        ([f"--kubeconfig={no_yaml}"], f"Error: {no_yaml} cannot be used: it is not valid YAML (line 1)"),
        ([f"--kubeconfig={no_context}"], f"Error: {no_context} cannot be used: Invalid kube-config file."),
        ([], "Error: in-cluster configuration cannot be used: Service host/port is not set."),
    ):
        program = Kproxy(spare.lab.node, ["run", *spare.mode.flags(spare.lab), *flags])
        assert program.wait() == 1
        assert any(line.startswith(output) for line in program.log)
        assert not any("Traceback" in line for line in program.log)
