"""Sockets of real processes under the programs: where they connect, and which peer they see."""

import os
import select
import socket
import struct
import threading
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.bpf.socket_table import KernelSocketTable, network_namespace_cookie
from kproxy.kernel.bpf.types import BpfError
from tests.kernel.namespace import enter_new
from tests.support.bpf import (
    KIND,
    LOOPBACK,
    PORT,
    SERVICE,
    SMALL,
    answer_from,
    endpoint,
    key,
    serve,
    value,
    write_slot,
)

pytestmark = pytest.mark.root
_DISCONNECT = struct.pack("=H14x", socket.AF_UNSPEC)


@pytest.mark.parametrize("family", Family, ids=str)
def test_a_connection_reaches_the_endpoint_and_names_the_service_as_its_peer(
    family: Family, table: KernelSocketTable
) -> None:
    with endpoint(family) as port, socket.socket(KIND[family]) as client:
        serve(table, family, port)
        client.connect((SERVICE[family], PORT))
        assert client.getpeername()[:2] == (SERVICE[family], PORT)
        assert int(client.recv(10)) == port
        assert table.connections(5) == [0, 0, 0, 1, 0]


def test_an_ipv6_socket_reaches_an_ipv4_service(table: KernelSocketTable) -> None:
    with endpoint(Family.IPV4) as port, socket.socket(socket.AF_INET6) as client:
        serve(table, Family.IPV4, port)
        mapped = f"::ffff:{SERVICE[Family.IPV4]}"
        client.connect((mapped, PORT))
        assert client.getpeername()[:2] == (mapped, PORT)
        assert int(client.recv(10)) == port


def test_a_mapped_socket_that_becomes_an_ipv4_socket_keeps_its_peer(table: KernelSocketTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as client:
        serve(table, Family.IPV4, server.getsockname()[1])
        client.connect((f"::ffff:{SERVICE[Family.IPV4]}", PORT))
        client.setsockopt(socket.IPPROTO_IPV6, 1, socket.AF_INET)  # IPV6_ADDRFORM
        with socket.socket(fileno=os.dup(client.fileno())) as converted:
            assert converted.family == socket.AF_INET
            assert converted.getpeername() == (SERVICE[Family.IPV4], PORT)


@pytest.mark.parametrize("family", Family, ids=str)
def test_a_socket_that_connects_elsewhere_forgets_the_service(
    family: Family, table: KernelSocketTable
) -> None:
    with endpoint(family) as port, socket.socket(KIND[family]) as client:
        serve(table, family, port)
        client.connect((SERVICE[family], PORT))
        _disconnect(client)
        client.connect((LOOPBACK[family], port))
        assert client.getpeername()[:2] == (LOOPBACK[family], port)
        assert table.connections(4) == [0, 0, 0, 1]


def test_the_ports_of_a_service_are_services_of_their_own(table: KernelSocketTable) -> None:
    with endpoint(Family.IPV4) as one, endpoint(Family.IPV4) as other:
        write_slot(table, Family.IPV4, 1, "127.0.0.1", one)
        write_slot(table, Family.IPV4, 2, "127.0.0.1", other)
        service = SERVICE[Family.IPV4]
        table.fill(Family.IPV4, {key(service, 80): value(1, 1, 0), key(service, 443): value(2, 1, 1)})
        assert answer_from(service, 443) == other
        assert answer_from(service, 80) == one


@pytest.mark.parametrize("family", Family, ids=str)
def test_connections_spread_over_all_slots(family: Family, table: KernelSocketTable) -> None:
    with endpoint(family) as one, endpoint(family) as other:
        for number, port in enumerate((one, other, other)):
            write_slot(table, family, 10 + number, LOOPBACK[family], port)
        table.write_frontends(family, {key(SERVICE[family]): value(10, 3)})
        seen = [answer_from(SERVICE[family]) for _ in range(60)]
        # Each side misses the other's 60 draws with a probability below 10 ** -10.
        assert set(seen) == {one, other}
        assert table.connections(1) == [60]


@pytest.mark.parametrize("what", ["port 0", "no slots", "beyond the map"])
def test_without_a_usable_slot_the_socket_is_left_alone(what: str, table: KernelSocketTable) -> None:
    """The nftables table then decides; here a local server has the address that was asked."""
    with endpoint(Family.IPV4) as port:
        asked = key(LOOPBACK[Family.IPV4], port)
        write_slot(table, Family.IPV4, 1, LOOPBACK[Family.IPV4], 0 if what == "port 0" else 9)
        broken = {"port 0": value(1, 1), "no slots": value(1, 0), "beyond the map": value(10**6, 1)}[what]
        table.write_frontends(Family.IPV4, {asked: broken})
        assert answer_from(LOOPBACK[Family.IPV4], port) == port
        assert table.connections(1) == [0]


def test_udp_keeps_its_address(table: KernelSocketTable) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, endpoint(Family.IPV4) as port:
        serve(table, Family.IPV4, port, service=LOOPBACK[Family.IPV4])
        client.connect((LOOPBACK[Family.IPV4], PORT))
        assert client.getpeername() == (LOOPBACK[Family.IPV4], PORT)
        assert table.connections(4) == [0, 0, 0, 0]


def test_a_connection_that_does_not_wait_is_translated(table: KernelSocketTable) -> None:
    with endpoint(Family.IPV4) as port, socket.socket() as client:
        serve(table, Family.IPV4, port)
        client.setblocking(False)  # noqa: FBT003
        client.connect_ex((SERVICE[Family.IPV4], PORT))
        assert select.select([], [client], [], 10)[1] == [client]
        assert client.getpeername() == (SERVICE[Family.IPV4], PORT)


def test_a_connection_that_sends_at_once_is_translated(table: KernelSocketTable) -> None:
    """TCP Fast Open connects by sendto(2)."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        serve(table, Family.IPV4, server.getsockname()[1])
        client.sendto(b"at once", socket.MSG_FASTOPEN, (SERVICE[Family.IPV4], PORT))
        assert client.getpeername() == (SERVICE[Family.IPV4], PORT)
        with server.accept()[0] as accepted:
            accepted.settimeout(10)
            assert accepted.recv(10) == b"at once"


def test_a_server_sees_the_real_addresses_of_its_clients(table: KernelSocketTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        serve(table, Family.IPV4, server.getsockname()[1])
        client.connect((SERVICE[Family.IPV4], PORT))
        with server.accept()[0] as accepted:
            assert accepted.getpeername() == client.getsockname()
            assert accepted.getsockname() == server.getsockname()


def test_only_the_namespace_of_the_cookie_is_served(cgroup: Path, bpffs: Path) -> None:
    """The server and this thread are in one namespace, the other thread in a new one without a route."""
    cookie = _cookie()
    table = KernelSocketTable.open(cgroup, bpffs / "kproxy", SMALL, netns_cookie=cookie)
    try:
        table.publish()
        with endpoint(Family.IPV4) as port:
            serve(table, Family.IPV4, port)
            assert answer_from(SERVICE[Family.IPV4]) == port
            other = _Elsewhere()
            assert other.error is not None
            assert other.cookie not in {0, cookie}
            assert table.connections(4) == [0, 0, 0, 1]
    finally:
        table.remove()


def test_without_a_cookie_every_namespace_is_served(table: KernelSocketTable) -> None:
    with endpoint(Family.IPV4) as port:
        serve(table, Family.IPV4, port)
        _Elsewhere()
        assert table.connections(4) == [0, 0, 0, 1]


class _Elsewhere:
    """Connects to the service from a new network namespace; what came of it."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.cookie = 0
        self._skipped: BaseException | None = None
        thread = threading.Thread(target=self._run)
        thread.start()
        thread.join()
        if self._skipped is not None:
            raise self._skipped

    def _run(self) -> None:
        try:
            enter_new()
            self.cookie = _cookie()
            with socket.socket() as client:
                client.connect((SERVICE[Family.IPV4], PORT))
        except OSError as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
            self._skipped = error


def _cookie() -> int:
    try:
        return network_namespace_cookie()
    except BpfError as error:
        pytest.skip(str(error))


def _disconnect(client: socket.socket) -> None:
    """connect(2) to no address, which the socket module cannot write."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), _DISCONNECT, len(_DISCONNECT)) == 0
