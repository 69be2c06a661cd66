"""The kernels in memory refuse what the real ones refuse, and fail in the ways a test orders."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable

import pytest

from kproxy.addresses import Family
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.ipset.types import (
    Entry,
    EntryChange,
    Ipset,
    IpsetError,
    IpsetUnavailable,
    SetKind,
    SetSpec,
)
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    SCHED2,
    Command,
    DestinationId,
    IpvsError,
    IpvsUnavailable,
    Request,
    ServerId,
    VirtualServer,
)
from tests.kernel.namespace import fresh_network, kernel_sets
from tests.support.fake_ipvs import FakeDevice, FakeIpset, FakeIpvs, Faults

RR, WRR, SH = VirtualServer("rr"), VirtualServer("wrr"), VirtualServer("sh", SCHED2)
STICKY = VirtualServer("rr", PERSISTENT, 60)
ONE, OTHER = ServerId("TCP", "10.0.0.1", 80), ServerId("UDP", "10.0.0.1", 80)
SIX = ServerId("SCTP", "fd00::1", 80)
A, B = DestinationId("10.1.0.1", 8080), DestinationId("10.1.0.2", 8080)
TOO_MUCH = 1 << 31


def new(server: ServerId = ONE, settings: VirtualServer | None = RR) -> Request:
    return Request(Command.NEW_SERVICE, server, settings)


def edit(server: ServerId = ONE, settings: VirtualServer | None = RR) -> Request:
    return Request(Command.SET_SERVICE, server, settings)


def delete(server: ServerId = ONE) -> Request:
    return Request(Command.DEL_SERVICE, server)


def add(destination: DestinationId | None = A, weight: int = 1, server: ServerId = ONE) -> Request:
    return Request(Command.NEW_DEST, server, None, destination, weight)


def weigh(destination: DestinationId = A, weight: int = 1, server: ServerId = ONE) -> Request:
    return Request(Command.SET_DEST, server, None, destination, weight)


def remove(destination: DestinationId = A, server: ServerId = ONE) -> Request:
    return Request(Command.DEL_DEST, server, None, destination)


SEQUENCES = {
    "nothing there": [edit(), delete(), add(), weigh(), remove()],
    "twice": [new(), new(), new(OTHER), add(), add(), delete(), delete()],
    "settings kept": [new(), add(A, 3), add(B, 0), edit(ONE, WRR), edit(ONE, STICKY), edit(ONE, SH)],
    "destinations go too": [new(), add(), delete(), new(), weigh(), add(A, 5)],
    "destinations": [new(), weigh(), remove(), add(), weigh(A, 0), remove(), remove(), add(A, 9)],
    "scheduler": [
        new(ONE, VirtualServer("no-such")),
        new(ONE, VirtualServer("x" * 15)),
        new(ONE, VirtualServer("x" * 16)),
        new(),
        new(ONE, VirtualServer("no-such")),
        edit(ONE, VirtualServer("no-such")),
        edit(OTHER, VirtualServer("no-such")),
        edit(ONE, VirtualServer("x" * 16)),
    ],
    "no settings": [new(ONE, None), edit(ONE, None), new(), new(ONE, None), edit(ONE, None)],
    "no destination": [new(), add(None), add(None, server=OTHER)],
    "weights": [
        new(),
        add(A, TOO_MUCH),
        weigh(A, TOO_MUCH),
        add(A, TOO_MUCH - 1),
        add(A, TOO_MUCH),
        weigh(A, TOO_MUCH),
        weigh(A, 65536),
        weigh(B, TOO_MUCH, OTHER),
    ],
    "ports": [new(ServerId("TCP", "10.0.0.1", 0)), new(), add(DestinationId("10.1.0.1", 0))],
    "where no packet can go": [
        new(),
        new(SIX),
        *(add(DestinationId(ip, 80)) for ip in ("224.0.0.1", "0.0.0.0", "255.255.255.255")),
        *(add(DestinationId(ip, 80), server=SIX) for ip in ("ff02::1", "::", "fe80::1", "fd00::9")),
        remove(DestinationId("224.0.0.1", 80)),
    ],
}


@pytest.mark.ipvs
@pytest.mark.parametrize("requests", SEQUENCES.values(), ids=SEQUENCES.keys())
@fresh_network
def test_virtual_servers_are_refused_and_kept_as_in_the_real_kernel(requests: list[Request]) -> None:
    # Without a local routing table, the kernel takes no IPv4 destination for reachable.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    real, fake = NetlinkIpvs(), FakeIpvs()
    assert dict(fake.apply(requests)) == dict(real.apply(requests))
    for family in Family:
        standing = real.servers(family)
        assert fake.servers(family) == standing
        for server in standing:
            assert fake.destinations(server) == real.destinations(server)


IPS, PORTS = SetSpec("ips", SetKind.IP, Family.IPV4), SetSpec("ports", SetKind.IP_PORT, Family.IPV4)
NETS, SIXES = SetSpec("nets", SetKind.IP_PORT_NET, Family.IPV4), SetSpec("six", SetKind.IP, Family.IPV6)
WEB = Entry("10.0.0.1", "TCP", 80)


def put(spec: SetSpec, entry: Entry) -> EntryChange:
    return EntryChange(spec, entry, add=True)


def take(spec: SetSpec, entry: Entry) -> EntryChange:
    return EntryChange(spec, entry, add=False)


CHANGES = {
    "no such set": [
        put(SetSpec("none", SetKind.IP, Family.IPV4), Entry("10.0.0.1")),
        take(SetSpec("none", SetKind.IP, Family.IPV4), Entry("10.0.0.1")),
        put(IPS, Entry("10.0.0.1")),
    ],
    "done already": [put(PORTS, WEB), put(PORTS, WEB), take(PORTS, WEB), take(PORTS, WEB)],
    "what cannot be stored": [
        put(IPS, Entry("0.0.0.0")),
        put(SIXES, Entry("::")),
        put(NETS, Entry("10.0.0.1", "TCP", 80, "0.0.0.0/0")),
        put(NETS, Entry("10.0.0.1", "TCP", 80, "0.0.0.0/1")),
        put(PORTS, Entry("10.0.0.1", "TCP", 0)),
    ],
    "a set of another type": [
        put(SetSpec("ports", SetKind.IP, Family.IPV4), Entry("10.0.0.1")),
        put(SetSpec("ips", SetKind.IP, Family.IPV6), Entry("fd00::1")),
        take(SetSpec("ports", SetKind.IP, Family.IPV4), Entry("10.0.0.1")),
    ],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
@fresh_network
def test_entries_are_refused_and_kept_as_in_the_real_kernel(changes: list[EntryChange]) -> None:
    outcomes = []
    for ipset in (kernel_sets(), FakeIpset()):
        for spec in (IPS, PORTS, NETS, SIXES):
            ipset.create(spec)
        refused = dict(ipset.apply(changes))
        outcomes.append((refused, [ipset.entries(spec) for spec in (IPS, PORTS, NETS, SIXES)]))
    assert outcomes[0] == outcomes[1]


SETS: dict[str, Callable[[Ipset], object]] = {
    "create again": lambda ipset: ipset.create(IPS),
    "create as another type": lambda ipset: ipset.create(SetSpec("ips", SetKind.IP_PORT, Family.IPV4)),
    "create for another family": lambda ipset: ipset.create(SetSpec("ips", SetKind.IP, Family.IPV6)),
    "read as another type": lambda ipset: ipset.entries(SetSpec("ips", SetKind.IP_PORT, Family.IPV4)),
    "read for another family": lambda ipset: ipset.entries(SetSpec("ips", SetKind.IP, Family.IPV6)),
    "read none": lambda ipset: ipset.entries(SetSpec("none", SetKind.IP, Family.IPV6)),
    "destroy": lambda ipset: ipset.destroy("ips"),
    "destroy none": lambda ipset: ipset.destroy("none"),
}


@pytest.mark.parametrize("name", SETS)
@fresh_network
def test_sets_are_refused_and_kept_as_in_the_real_kernel(name: str) -> None:
    outcomes = []
    for ipset in (kernel_sets(), FakeIpset()):
        for spec in (IPS, PORTS, SIXES):
            ipset.create(spec)
        try:
            SETS[name](ipset)
        except IpsetError:
            refused = True
        else:
            refused = False
        outcomes.append((refused, ipset.headers()))
    assert outcomes[0] == outcomes[1]


def test_a_full_set_refuses_what_is_new_and_takes_what_it_has() -> None:
    ipset = FakeIpset()
    ipset.limit = 1
    ipset.create(IPS)
    one, two = put(IPS, Entry("10.0.0.1")), put(IPS, Entry("10.0.0.2"))
    assert ipset.apply([one, two, one]) == {1: 4352}


def test_a_set_that_is_held_stays() -> None:
    ipset = FakeIpset()
    ipset.create(IPS)
    ipset.held.add("ips")
    with pytest.raises(IpsetError, match="in use"):
        ipset.destroy("ips")
    assert ipset.headers()["ips"].references == 1


def test_the_change_that_is_ordered_to_fail_fails_whichever_it_is() -> None:
    faults = Faults()
    ipvs, ipset, device = FakeIpvs(faults), FakeIpset(faults), FakeDevice(faults)
    ipset.create(IPS)
    device.ensure()
    ipvs.apply([new()])
    faults.fail_soon(1, errno.ENOMEM)
    faults.fail_soon(3, errno.ENOBUFS)
    faults.fail_soon(5, errno.EPERM)
    assert ipvs.apply([add(A), add(B)]) == {1: errno.ENOMEM}
    assert ipset.apply([put(IPS, Entry("10.0.0.1")), put(IPS, Entry("10.0.0.2"))]) == {1: errno.ENOBUFS}
    assert device.add(["10.0.0.1", "10.0.0.2"]) == {"10.0.0.2": errno.EPERM}
    assert ipvs.apply([add(B)]) == {}
    assert set(ipvs.destinations(ONE)) == {A, B}
    assert ipset.entries(IPS) == {Entry("10.0.0.1")}
    assert device.addresses(Family.IPV4) == {"10.0.0.1"}


def test_what_was_carried_out_before_an_answer_got_lost_stays() -> None:
    faults = Faults()
    ipvs = FakeIpvs(faults)
    faults.lose_soon(1)
    with pytest.raises(IpvsError, match="lost"):
        ipvs.apply([new(), add(A), add(B)])
    assert set(ipvs.destinations(ONE)) == {A}
    assert ipvs.sent == [new(), add(A)]


def test_while_unavailable_nothing_is_read_or_changed() -> None:
    faults = Faults()
    ipvs, ipset, device = FakeIpvs(faults), FakeIpset(faults), FakeDevice(faults)
    ipset.create(IPS)
    device.ensure()
    faults.unavailable = "no such thing"
    for ask in (
        lambda: ipvs.apply([new()]),
        lambda: ipvs.servers(Family.IPV4),
        lambda: ipvs.destinations(ONE),
    ):
        with pytest.raises(IpvsUnavailable, match="no such thing"):
            ask()
    for ask_set in (ipset.headers, lambda: ipset.apply([]), lambda: ipset.destroy("ips")):
        with pytest.raises(IpsetUnavailable, match="no such thing"):
            ask_set()
    for ask_device in (
        device.ensure,
        lambda: device.add(["10.0.0.1"]),
        lambda: device.addresses(Family.IPV4),
    ):
        with pytest.raises(DeviceError, match="no such thing"):
            ask_device()
    faults.unavailable = ""
    assert (ipvs.servers(Family.IPV4), set(ipset.headers()), device.addresses(Family.IPV4)) == (
        {},
        {"ips"},
        frozenset(),
    )
