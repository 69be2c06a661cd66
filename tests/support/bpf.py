"""A bpffs, a cgroup and endpoints for tests of programs at sockets; skips where BPF is not allowed."""

import contextlib
import ctypes
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf import pins
from kproxy.kernel.bpf.socket_table import KernelSocketTable
from kproxy.kernel.bpf.types import SLOT_WORDS, BpfError, Capacity, Sizes, SocketMaps
from kproxy_lab.lab.cgroups import CgroupUnavailableError, NodeCgroup, visiting
from kproxy_lab.lab.owners import owned_prefix

SMALL = Sizes(Capacity(64, 256), Capacity(64, 256), 64)
LARGER = Sizes(Capacity(200, 1000), Capacity(64, 256), 64)
SERVICE = {Family.IPV4: "10.96.77.1", Family.IPV6: "fd00:96:77::1"}
"""Addresses that lead nowhere unless a program replaces them."""
LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
KIND = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
PORT = 80
_LAZY = 2  # MNT_DETACH


@contextlib.contextmanager
def private_bpffs() -> Iterator[Path]:
    """A bpffs at a temporary directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a bpffs")
    with tempfile.TemporaryDirectory() as directory:
        try:
            pins.mount_bpffs(Path(directory))
        except BpfError as error:
            pytest.skip(f"no bpffs can be mounted: {error}")
        try:
            yield Path(directory)
        finally:
            ctypes.CDLL(None).umount2(os.fsencode(directory), _LAZY)


@contextlib.contextmanager
def child_cgroup(name: str) -> Iterator[Path]:
    """A cgroup with the calling thread in it, so that no program is put on other threads or processes.

    Children and threads that this thread starts are in it too. Threads of a lab stay in their own cgroups.
    """
    try:
        made = NodeCgroup(owned_prefix(name))
    except (CgroupUnavailableError, OSError) as error:
        pytest.skip(f"no cgroup can be made: {error}")
    with made, visiting(made.path):
        yield made.path


def reopened(cgroup: Path, bpffs: Path) -> KernelSocketTable:
    """The table of a process that starts, over what a former one left."""
    return KernelSocketTable.open(cgroup, bpffs / "kproxy", SMALL)


@contextlib.contextmanager
def endpoint(family: Family) -> Iterator[int]:
    """The port of a server at the loopback address, which answers each connection with its own port."""
    try:
        server = socket.create_server((LOOPBACK[family], 0), family=KIND[family], backlog=1000)
    except OSError as error:
        pytest.skip(f"no {family} on the loopback interface: {error}")
    port = int(server.getsockname()[1])

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                with server.accept()[0] as connection, contextlib.suppress(OSError):
                    connection.sendall(str(port).encode())

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield port
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def answer_from(ip: str, port: int = PORT) -> int:
    """Connect, and return the port of the endpoint that answers."""
    with socket.create_connection((ip, port), timeout=10) as client:
        return int(client.recv(10))


def key(ip: str, port: int = PORT) -> bytes:
    """The key of a frontend; a slot has the same layout."""
    kind = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.inet_pton(kind, ip) + struct.pack("!HH", port, 0)


def value(first: int, count: int, counter: int = 0) -> bytes:
    """The value of a frontend."""
    return struct.pack("=III", first, count, counter)


def write_slot(maps: SocketMaps, family: Family, number: int, ip: str, port: int) -> None:
    """Write one slot, in as many stores as it has words."""
    words = SLOT_WORDS[family]
    packed = struct.unpack(f"={words}Q", key(ip, port).ljust(words * 8, b"\0"))
    for offset, word in enumerate(packed):
        maps.slots(family)[number * words + offset] = word


def serve(maps: SocketMaps, family: Family, port: int, service: str = "") -> None:
    """Make a service lead to one port of the loopback address, by slot 1 and counter 3."""
    write_slot(maps, family, 1, LOOPBACK[family], port)
    maps.write_frontends(family, {key(service or SERVICE[family]): value(1, 1, 3)})
