"""What a software flowtable saves: kproxy's nftables table alone, and with a flowtable beside it.

Needs root and a kernel with CONFIG_NF_FLOW_TABLE and CONFIG_NFT_FLOW_OFFLOAD; where the running one has none:

    python -m benchmarks.emulated --kernel KERNEL -- .venv/bin/python -m benchmarks.flowtables

A client, a node and a pod are network namespaces in a row. The node has one Service in kproxy's own table.
All three use the same core, so elapsed time is the work of all three. In the column "routed" the client names
the pod's address and the node has no rules: so much of the work is not the proxy's.
"""

import contextlib
import os
import re
import select
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from benchmarks import cluster
from benchmarks.row_of_networks import CLIENT, GATEWAY, POD, Network, run
from benchmarks.sync_phases import new_backend
from benchmarks.syncs import Given, Node
from kproxy.addresses import Family
from kproxy.kernel.conntrack.netlink import NetlinkConntrack
from kproxy.state.kinds import Kind

NEXT_POD = "10.128.0.3"
SOURCE_PORT: Final = 4000
VARIANTS = ("routed", "kproxy", "kproxy and a flowtable")

FLOWTABLE = """table ip bypass {
  flowtable services { hook ingress priority 0; devices = { to-client, to-pod }; }
  chain forward {
    type filter hook forward priority 0
    ct state established ct status dnat flow add @services
  }
}"""
DROP = """table netdev sink {
  chain pod { type filter hook ingress device eth0 priority 0; udp dport 8080 drop; }
}"""
POLICY = """table ip foreign {
  chain forward {
    type filter hook forward priority -10
    udp dport 8080 drop
  }
}"""


def _objects(pod: str = POD) -> list[Given]:
    """One Service with a TCP and a UDP port, whose endpoint is a pod."""
    service, slice_ = cluster.service(0), cluster.endpoint_slice(0, 1)
    service["spec"]["ports"] = [
        {**service["spec"]["ports"][0], "name": name, "protocol": name.upper()} for name in ("tcp", "udp")
    ]
    slice_["ports"] = [{"name": name, "port": 8080, "protocol": name.upper()} for name in ("tcp", "udp")]
    slice_["endpoints"][0]["addresses"] = [pod]
    return [(Kind.SERVICE, service), (Kind.ENDPOINT_SLICE, slice_)]


class Bench:
    """One variant: the node's rules, and the address by which the client reaches the pod."""

    def __init__(self, network: Network, variant: str) -> None:
        self.network = network
        self.target = (POD, 8080) if variant == "routed" else (cluster.cluster_ip(0), 80)
        with network.inside("node"):
            if variant != "routed":
                self.node = Node(new_backend("nftables"), "elements", lambda _: 0, time.process_time)
                self.node.push(*_objects())
            if variant == "kproxy and a flowtable":
                run("nft -f -", FLOWTABLE)
        with network.inside("pod"):
            self.server = socket.create_server((POD, 8080), backlog=100)

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """A new connection: the client's end and the pod's."""
        with self.network.inside("client"):
            client = socket.create_connection(self.target)
        server, _ = self.server.accept()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server

    def bulk(self, seconds: float) -> float:
        """Nanoseconds for each KB that the client sends."""
        client, server = self.connected()
        received = 0

        def receive() -> None:
            nonlocal received
            buffer = bytearray(1 << 20)
            while count := server.recv_into(buffer):
                received += count

        receiver = threading.Thread(target=receive)
        receiver.start()
        block, began = bytes(1 << 18), time.perf_counter()
        while time.perf_counter() - began < seconds:
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        receiver.join()
        spent = time.perf_counter() - began
        client.close()
        server.close()
        return spent / (received / 1024) * 1e9

    def round_trips(self, count: int) -> float:
        """Microseconds of a byte there and a byte back over one connection."""
        client, server = self.connected()

        def once() -> None:
            client.send(b"x")
            server.recv(1)
            server.send(b"y")
            client.recv(1)

        spent = _each(once, count)
        client.close()
        server.close()
        return spent * 1e6

    def connections(self, count: int) -> float:
        """Microseconds of a connection with one byte there and one back."""

        def once() -> None:
            client, server = self.connected()
            client.send(b"x")
            server.recv(1)
            server.send(b"y")
            client.recv(1)
            client.close()
            server.close()

        return _each(once, count) * 1e6

    def established(self) -> tuple[socket.socket, socket.socket]:
        """A UDP flow that has seen packets in both directions: the client's socket and the pod's."""
        with self.network.inside("pod"):
            receiver = socket.socket(type=socket.SOCK_DGRAM)
            receiver.bind((POD, 8080))
        with self.network.inside("client"):
            sender = socket.socket(type=socket.SOCK_DGRAM)
            sender.bind((CLIENT, SOURCE_PORT))
        for end in (receiver, sender):
            end.settimeout(1)
        for _ in range(3):
            sender.sendto(b"x", self.target)
            _, peer = receiver.recvfrom(10)
            receiver.sendto(b"y", peer)
            sender.recv(10)
        return sender, receiver

    def small_packets(self, count: int) -> float:
        """Nanoseconds of a UDP packet of 64 bytes of an established flow, dropped at the pod."""
        self.established()
        with self.network.inside("pod"):
            run("nft -f -", DROP)
        with self.network.inside("client"):
            return statistics.median(_pktgen(self.target, count) for _ in range(3))


def _each(once: Callable[[], None], count: int) -> float:
    for _ in range(20):
        once()
    samples = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count // 5):
            once()
        samples.append((time.perf_counter() - began) / (count // 5))
    return statistics.median(samples)


def _pktgen(target: tuple[str, int], count: int) -> float:
    """Send packets from the client's device with the kernel's generator; nanoseconds for each."""
    shown = subprocess.run(
        ["ip", "neigh", "show", GATEWAY], capture_output=True, text=True, check=True
    ).stdout
    mac = shown.split("lladdr ")[1].split()[0]
    folder = Path("/proc/net/pktgen")
    _tell(folder / "kpktgend_0", "rem_device_all", "add_device eth0")
    address, port = target
    settings = (f"count {count}", "clone_skb 0", "pkt_size 64", "delay 0", f"dst_mac {mac}", f"dst {address}")
    ports = (
        f"udp_src_min {SOURCE_PORT}",
        f"udp_src_max {SOURCE_PORT}",
        f"udp_dst_min {port}",
        f"udp_dst_max {port}",
    )
    _tell(folder / "eth0", *settings, *ports, f"src_min {CLIENT}", f"src_max {CLIENT}")
    _tell(folder / "pgctrl", "start")
    result = re.search(r"Result: OK: (\d+)\(", (folder / "eth0").read_text())
    if result is None:
        raise click.ClickException("pktgen has no result")
    return int(result[1]) * 1000 / count


def _tell(file: Path, *lines: str) -> None:
    for line in lines:
        file.write_text(f"{line}\n")


def measure(variant: str, seconds: float) -> dict[str, float]:
    """All figures of one variant."""
    network = Network()
    try:
        bench = Bench(network, variant)
        found = {"TCP, large packets, ns/KB": bench.bulk(seconds)}
        network.packets(whole=False)
        found["TCP, packets of the MTU, ns/KB"] = bench.bulk(seconds)
        network.packets(whole=True)
        found["TCP round trip us"] = bench.round_trips(1000)
        found["TCP connection us"] = bench.connections(500)
        found["UDP, 64 bytes, ns/packet"] = bench.small_packets(20_000)
    finally:
        network.close()
    return found


def policy_passes(variant: str) -> int:
    """Return how many of 20 packets of an established flow pass a rule that came later and drops them."""
    network = Network()
    try:
        bench = Bench(network, variant)
        sender, receiver = bench.established()
        with network.inside("node"):
            run("nft -f -", POLICY)
        receiver.settimeout(0.1)
        passed = 0
        for _ in range(20):
            sender.sendto(b"x", bench.target)
            with contextlib.suppress(TimeoutError):
                passed += len(receiver.recv(1))
        return passed
    finally:
        network.close()


def stale(variant: str) -> tuple[float, int]:
    """Move the endpoint of an established UDP flow and delete its entry, as kproxy does.

    Returns the milliseconds until a packet reaches the new pod, and how many reached the old one by then.
    """
    network = Network()
    try:
        bench = Bench(network, variant)
        sender, old = bench.established()
        with network.inside("pod"):
            run(f"ip addr add {NEXT_POD}/24 dev eth0")
            new = socket.socket(type=socket.SOCK_DGRAM)
            new.bind((NEXT_POD, 8080))
        with network.inside("node"):
            bench.node.push(*_objects(NEXT_POD))
            conntrack = NetlinkConntrack()
            conntrack.delete(Family.IPV4, conntrack.udp_flows(Family.IPV4, [80]))
        began, late = time.perf_counter(), 0
        while time.perf_counter() - began < 10:
            sender.sendto(b"x", bench.target)
            ready, _, _ = select.select([old, new], [], [], 0.1)
            if new in ready:
                break
            if old in ready:
                late += len(old.recv(1))
            threading.Event().wait(0.001)
        return (time.perf_counter() - began) * 1000, late
    finally:
        network.close()


@click.command()
@click.option("--seconds", default=1.0, show_default=True, help="How long each bulk transfer takes.")
def main(seconds: float) -> None:
    """Measure in this kernel."""
    for module in ("nft_flow_offload", "nf_flow_table_inet", "pktgen", "veth"):
        subprocess.run(["modprobe", "-q", module], check=False)
    rows = {variant: measure(variant, seconds) for variant in VARIANTS}
    table = Table(title=f"Linux {os.uname().release}")
    for title in ("", *rows, "saved"):
        table.add_column(title, justify="right" if title else "left")
    for name, routed in rows["routed"].items():
        without, with_ = (rows[variant][name] for variant in VARIANTS[1:])
        table.add_row(
            name, *(f"{value:,.0f}" for value in (routed, without, with_)), f"{1 - with_ / without:.0%}"
        )
    Console(width=120).print(table)
    for variant in VARIANTS[1:]:
        milliseconds, late = stale(variant)
        print(
            f"{variant}: a UDP flow reaches its new endpoint after {milliseconds:.1f} ms, {late} packets late"
        )
        print(f"{variant}: {policy_passes(variant)} of 20 packets pass a later rule that drops them")


if __name__ == "__main__":
    main()
