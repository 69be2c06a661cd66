"""What the lab does to its machine: namespaces come and go, programs and sockets live inside them."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kproxy_lab.lab import Lab, LabSpec, NotSupportedError
from kproxy_lab.lab.namespaces import RUN_DIR, sweep
from kproxy_lab.lab.sctp import INIT, Packet, build, crc32c, parse
from kproxy_lab.lab.wiring import Wiring

SMALL = LabSpec(local_pods=1, remote_pods=1, client_addresses=1)


@pytest.fixture(scope="module")
def possible() -> None:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))


@pytest.fixture(scope="module")
def lab(possible: None) -> Iterator[Lab]:
    with Lab(SMALL) as made:
        yield made


def namespaces_of(pid: int) -> set[str]:
    return {path.name for path in RUN_DIR.iterdir() if path.name.startswith(f"kplab-{pid}-")}


def network_of(path: str) -> int:
    return Path(path).stat().st_ino


@pytest.mark.root
def test_nothing_is_left_after_close(possible: None) -> None:
    before, links = namespaces_of(os.getpid()), socket.if_nameindex()
    threads = set(threading.enumerate())
    with Lab(SMALL) as lab:
        assert len(namespaces_of(os.getpid()) - before) == 6
        lab.serve(lab.pods[0])
        lab.hold(lab.client, lab.pods[0].ip4, 8080)
        process = lab.node.popen(["sleep", "600"])
    assert namespaces_of(os.getpid()) == before
    assert socket.if_nameindex() == links
    assert process.returncode == -signal.SIGTERM
    assert set(threading.enumerate()) <= threads
    lab.close()


@pytest.mark.root
def test_nothing_is_left_when_the_body_raises(possible: None) -> None:
    before = namespaces_of(os.getpid())
    with pytest.raises(KeyboardInterrupt), Lab(SMALL):
        raise KeyboardInterrupt
    assert namespaces_of(os.getpid()) == before


@pytest.mark.root
def test_nothing_is_left_when_the_wiring_fails(possible: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no such luck")

    before = namespaces_of(os.getpid())
    monkeypatch.setattr(Wiring, "route", fail)
    with pytest.raises(OSError, match="no such luck"):
        Lab(SMALL)
    assert namespaces_of(os.getpid()) == before


@pytest.mark.root
def test_what_a_killed_process_left_is_swept_up(lab: Lab) -> None:
    program = (
        "from kproxy_lab.lab import Lab, LabSpec\n"
        "lab = Lab(LabSpec(local_pods=1, remote_pods=0, client_addresses=1))\n"
        "print(lab.node.popen(['sleep', '600']).pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        orphan = os.pidfd_open(int(child.stdout.readline()))
        own, left = namespaces_of(os.getpid()), namespaces_of(child.pid)
        sweep()
        assert namespaces_of(child.pid) == left  # its owner lives
        child.kill()
        child.wait()
        sweep()
    try:
        assert len(left) == 5
        assert namespaces_of(child.pid) == set()
        assert namespaces_of(os.getpid()) == own
        assert select.select([orphan], [], [], 10)[0] == [orphan]  # readable: it has ended
    finally:
        os.close(orphan)


@pytest.mark.root
def test_two_labs_have_the_same_addresses_and_do_not_meet(lab: Lab) -> None:
    with Lab(SMALL) as other:
        lab.serve(lab.pods[0], "TCP", 8001)
        other.serve(other.pods[1], "TCP", 8002)
        assert lab.ask_many(lab.client, lab.pods[0].ip4, 8001, 1) == {"local-0": 1}
        assert other.ask_many(other.client, lab.pods[0].ip4, 8001, 1) == {"Refused": 1}
        assert other.ask_many(other.client, other.pods[1].ip6, 8002, 1) == {"remote-0": 1}


@pytest.mark.root
def test_a_lab_without_pods_is_a_lab(possible: None) -> None:
    with Lab(LabSpec(local_pods=0, remote_pods=0, client_addresses=1)) as lab:
        lab.serve(lab.node_pod, "TCP", 80)
        assert lab.ask(lab.client, lab.node_pod.ip6, 80).pod == "node-a"


@pytest.mark.root
def test_programs_run_inside_and_their_failure_is_raised(lab: Lab) -> None:
    assert "10.244.1.1/24" in lab.node.run(["ip", "-br", "address", "show", "mynet0"]).stdout
    assert lab.node.run(["cat"], stdin="through").stdout == "through"
    assert lab.node.run(["false"], check=False).returncode == 1
    with pytest.raises(subprocess.CalledProcessError) as caught:
        lab.node.run(["ip", "link", "show", "nosuchlink"])
    assert "nosuchlink" in "".join(caught.value.__notes__)


@pytest.mark.root
def test_a_started_program_is_the_process_itself(lab: Lab) -> None:
    process = lab.node.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(b"through", timeout=10)
    assert (out, process.returncode) == (b"through", 0)
    sleeper = lab.node.popen(["sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE)
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == b"ready\n"
    assert network_of(f"/proc/{sleeper.pid}/ns/net") == network_of(str(lab.node.path))
    sleeper.send_signal(signal.SIGINT)
    sleeper.communicate(timeout=10)
    assert sleeper.returncode != 0


@pytest.mark.root
def test_a_thread_enters_and_leaves_and_the_main_thread_never_does(lab: Lab) -> None:
    def visit() -> tuple[int, int]:
        with lab.pods[0].namespace.enter():
            inside = network_of("/proc/thread-self/ns/net")
        return inside, network_of("/proc/thread-self/ns/net")

    with ThreadPoolExecutor(1) as pool:
        inside, after = pool.submit(visit).result()
    home = network_of("/proc/self/ns/net")
    assert (inside, after) == (network_of(str(lab.pods[0].namespace.path)), home)
    assert lab.node.call(network_of, "/proc/thread-self/ns/net") == network_of(str(lab.node.path))
    with pytest.raises(RuntimeError), lab.node.enter():
        pass
    assert network_of("/proc/thread-self/ns/net") == home


@pytest.mark.root
def test_the_node_forwards_and_filters_no_source(lab: Lab) -> None:
    assert lab.node.sysctl("net.ipv4.ip_forward") == "1"
    assert lab.node.sysctl("net.ipv6.conf.all.forwarding") == "1"
    assert lab.node.sysctl("net.ipv4.conf.mynet0.rp_filter") == "0"
    assert lab.node.sysctl("net.ipv4.conf.all.route_localnet", 1) == "1"
    assert lab.client.sysctl("net.ipv4.ip_forward") == "0"


@pytest.mark.root
def test_ipv6_addresses_are_usable_at_once(possible: None) -> None:
    with Lab(SMALL) as lab:
        for namespace in (lab.node, lab.peer, lab.client, *(pod.namespace for pod in lab.pods)):
            assert "tentative" not in namespace.run(["ip", "-6", "address", "show", "scope", "global"]).stdout


@pytest.mark.root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_inside_serves_from_outside(lab: Lab, host: str) -> None:
    program = "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(9))"
    with lab.node.listen(host) as listener:
        listener.settimeout(10)
        inside = lab.node.popen(
            ["python3", "-c", program, host, str(listener.getsockname()[1])], stdout=subprocess.PIPE
        )
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"welcome")
        assert inside.communicate(timeout=10)[0] == b"b'welcome'\n"


@pytest.fixture
def outside() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


def connect_inside(lab: Lab, port: int) -> socket.socket:
    connection = lab.node.open_socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


def read_all(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read()


@pytest.mark.root
def test_a_published_port_carries_large_volumes_both_ways_and_half_closes(
    lab: Lab, outside: socket.socket
) -> None:
    port = lab.publish(outside.getsockname()[1])
    up, down = os.urandom(8 << 20), os.urandom(8 << 20)
    with connect_inside(lab, port) as near, outside.accept()[0] as far, ThreadPoolExecutor(2) as pool:
        far.settimeout(10)
        sending = pool.submit(near.sendall, up)
        answering = pool.submit(far.sendall, down)
        received = bytearray()
        while len(received) < len(up):
            received += far.recv(1 << 16)
        sending.result()
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        assert bytes(received) == up
        head = bytearray()
        while len(head) < len(down):
            head += near.recv(1 << 16)
        answering.result()
        far.sendall(b"said after the other side had finished")
        far.shutdown(socket.SHUT_WR)
        assert bytes(head) == down
        assert read_all(near) == b"said after the other side had finished"


@pytest.mark.root
def test_a_published_port_is_a_stream_that_waits_for_events(lab: Lab, outside: socket.socket) -> None:
    port = lab.publish(outside.getsockname()[1], at=("127.0.0.1", 6443))
    assert port == 6443
    with connect_inside(lab, port) as near, outside.accept()[0] as far:
        for number in range(50):
            far.sendall(f"event {number}\n".encode())
            assert near.recv(100) == f"event {number}\n".encode()


@pytest.mark.root
def test_a_published_port_closes_without_a_server_and_when_it_leaves(
    lab: Lab, outside: socket.socket
) -> None:
    port = lab.publish(outside.getsockname()[1])
    with connect_inside(lab, port) as near:
        outside.accept()[0].close()
        assert near.recv(1) == b""
    outside.close()
    with connect_inside(lab, port) as near:
        assert near.recv(1) == b""


@pytest.mark.root
def test_sctp_sockets_are_used_where_the_kernel_has_them(lab: Lab) -> None:
    if Lab.supports("SCTP"):
        lab.serve(lab.pods[0], "SCTP", 8080)
        assert lab.ask(lab.client, lab.pods[0].ip4, 8080, "SCTP").pod == "local-0"
    else:
        with pytest.raises(NotSupportedError, match="no SCTP sockets"):
            lab.serve(lab.pods[0], "SCTP", 8080)
        with pytest.raises(NotSupportedError, match="no SCTP sockets"):
            lab.ask(lab.client, lab.pods[0].ip4, 8080, "SCTP")


def test_missing_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Lab.missing() == ["not root"]
    with pytest.raises(NotSupportedError, match="not root"):
        Lab()


def test_a_lab_of_impossible_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="local_pods"):
        LabSpec(local_pods=1000)


def test_crc32c_is_the_castagnoli_crc() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C in RFC 3720, B.4 and elsewhere


def test_sctp_packets_are_read_back_and_damaged_ones_are_not() -> None:
    packet = Packet(INIT, 1000, 2000, 0, 0xDEADBEEF)
    data = build(packet)
    assert parse(data) == packet
    assert parse(data[:-1]) is None
    assert parse(data[:2] + b"\x00\x00" + data[4:]) is None
