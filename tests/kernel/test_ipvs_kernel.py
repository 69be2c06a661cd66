"""The real IPVS and dummy device, in network namespaces of their own, seen through ipvsadm and ip too."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
import time

import pytest

from kproxy.addresses import Family
from kproxy.kernel import links
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipvs.netlink import NetlinkIpvs
from kproxy.kernel.ipvs.types import (
    PERSISTENT,
    Command,
    DestinationId,
    DestinationState,
    IpvsError,
    Request,
    ServerId,
    Statistics,
    Timeouts,
    VirtualServer,
)
from kproxy.kernel.netlink.socket import NetlinkLost, NetlinkSocket
from tests.kernel.namespace import fresh_network
from tests.support.fake_ipvs import FakeIpvs

pytestmark = [pytest.mark.root, pytest.mark.ipvs]

RR = VirtualServer("rr")


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def up() -> None:
    """Without a local routing table, the kernel takes no IPv4 destination for reachable."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def server(ip: str = "10.0.0.1", protocol: str = "TCP", port: int = 80) -> ServerId:
    return ServerId(protocol, ip, port)


@pytest.mark.parametrize("ips", [("10.0.0.1", "10.1.0.1"), ("fd00::1", "fd00:1::1")], ids=["v4", "v6"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
@fresh_network
def test_what_is_written_is_there(ips: tuple[str, str], protocol: str) -> None:
    up()
    ipvs, one = NetlinkIpvs(), server(ips[0], protocol)
    settings = VirtualServer("wlc", PERSISTENT, 99)
    destination = DestinationId(ips[1], 8080)
    assert (
        ipvs.apply(
            [
                Request(Command.NEW_SERVICE, one, settings),
                Request(Command.NEW_DEST, one, destination=destination, weight=7),
            ]
        )
        == {}
    )
    assert ipvs.servers(one.family) == {one: settings}
    assert ipvs.destinations(one) == {destination: DestinationState(7)}
    assert " -s wlc -p 99" in printed("ipvsadm", "-Sn")
    assert " -m -w 7" in printed("ipvsadm", "-Sn")
    ipvs.apply([Request(Command.SET_SERVICE, one, RR), Request(Command.SET_DEST, one, None, destination, 0)])
    assert ipvs.servers(one.family) == {one: RR}
    assert ipvs.destinations(one) == {destination: DestinationState(0)}
    ipvs.apply([Request(Command.DEL_DEST, one, None, destination), Request(Command.DEL_SERVICE, one)])
    assert ipvs.servers(one.family) == {}


@fresh_network
def test_every_refusal_belongs_to_its_request_and_stops_no_other() -> None:
    up()
    ipvs = NetlinkIpvs()
    requests = [Request(Command.NEW_SERVICE, server(port=1 + n // 2), RR) for n in range(300)]
    failures = ipvs.apply(requests)
    assert failures == dict.fromkeys(range(1, 300, 2), errno.EEXIST)
    assert len(ipvs.servers(Family.IPV4)) == 150


@fresh_network
def test_the_kernel_in_memory_refuses_as_the_real_one() -> None:
    up()
    one, other = server(), server("10.0.0.2")
    destination = DestinationId("10.1.0.1", 80)
    requests = [
        Request(Command.DEL_SERVICE, one),
        Request(Command.NEW_DEST, one, None, destination, 1),
        Request(Command.NEW_SERVICE, one, VirtualServer("no-such")),
        Request(Command.NEW_SERVICE, one, RR),
        Request(Command.NEW_SERVICE, one, RR),
        Request(Command.SET_DEST, one, None, destination, 1),
        Request(Command.NEW_DEST, one, None, destination, 1),
        Request(Command.NEW_DEST, one, None, destination, 1),
        Request(Command.SET_SERVICE, other, RR),
        Request(Command.DEL_DEST, other, None, destination),
        Request(Command.DEL_DEST, one, None, destination),
        Request(Command.DEL_DEST, one, None, destination),
        Request(Command.DEL_SERVICE, one),
    ]
    assert NetlinkIpvs().apply(requests) == FakeIpvs().apply(requests)


@fresh_network
def test_a_scheduler_is_there_or_not() -> None:
    ipvs = NetlinkIpvs()
    assert ipvs.has_scheduler("rr")
    assert ipvs.has_scheduler("mh")
    assert not ipvs.has_scheduler("no-such")
    assert ipvs.servers(Family.IPV4) == {}


@pytest.mark.parametrize("scheduler", ["rr", "wlc", "no-such"])
@fresh_network
def test_what_a_killed_trial_left_is_used_up_and_what_serves_is_not(scheduler: str) -> None:
    up()
    ipvs, trial = NetlinkIpvs(), ServerId("TCP", "198.51.100.0", 20000)
    ipvs.apply([Request(Command.NEW_SERVICE, trial, RR)])
    assert ipvs.has_scheduler(scheduler) is (scheduler != "no-such")
    assert ipvs.servers(Family.IPV4) == {}
    ipvs.apply([Request(Command.NEW_SERVICE, trial, RR)])
    ipvs.apply([Request(Command.NEW_DEST, trial, destination=DestinationId("10.1.0.1", 80), weight=1)])
    with pytest.raises(IpvsError, match="taken"):
        ipvs.has_scheduler(scheduler)
    assert ipvs.servers(Family.IPV4) == {trial: RR}


@fresh_network
def test_timeouts_that_are_not_given_stay() -> None:
    ipvs = NetlinkIpvs()
    before = ipvs.timeouts()
    ipvs.set_timeouts(Timeouts(tcp_fin=33))
    assert ipvs.timeouts() == Timeouts(before.tcp, 33, before.udp)


@fresh_network
def test_lost_acknowledgements_are_an_error_and_not_a_success() -> None:
    ipvs = NetlinkIpvs()
    ipvs.servers(Family.IPV4)
    kind = ipvs._family_id
    requests = [Request(Command.NEW_SERVICE, server(port=1 + n), RR) for n in range(100)]
    small = NetlinkSocket(16, receive_buffer=1)
    from kproxy.kernel.ipvs import codec

    with pytest.raises(NetlinkLost, match="lost"):
        small.batch([(kind, 0, codec.encode(request)) for request in requests])
    assert len(ipvs.servers(Family.IPV4)) == 100


@fresh_network
def test_addresses_on_the_device_are_local_though_it_is_down() -> None:
    device = DummyDevice("kube-ipvs0")
    assert device.addresses(Family.IPV4) == frozenset()
    assert (device.ensure(), device.ensure()) == (True, False)
    assert device.add(["10.0.0.1", "fd00::1", "10.0.0.1"]) == {}
    assert device.addresses(Family.IPV4) == {"10.0.0.1"}
    assert device.addresses(Family.IPV6) == {"fd00::1"}
    assert printed("ip", "route", "get", "10.0.0.1").startswith("local")
    assert printed("ip", "-6", "route", "get", "fd00::1").startswith("local")
    assert links.local_addresses(exclude={"kube-ipvs0"}) == ()
    assert device.remove(["10.0.0.1", "10.0.0.9"]) == {}
    assert device.addresses(Family.IPV4) == frozenset()
    device.delete()
    device.delete()
    assert "kube-ipvs0" not in printed("ip", "-o", "link")


@fresh_network
def test_an_interface_of_another_type_is_not_touched() -> None:
    subprocess.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"], check=True)
    from kproxy.kernel.addresses import DeviceError

    with pytest.raises(DeviceError, match="bridge"):
        DummyDevice("kube-ipvs0").ensure()


def news_until(events: links.AddressEvents, wanted: links.AddressNews) -> links.AddressNews:
    """All news until there are those, or none for ten seconds: the kernel tells of IPv6 addresses later."""
    seen = links.AddressNews()
    while seen != wanted and select.select([events], [], [], 10.0)[0]:
        more = events.drain()
        seen = links.AddressNews(
            seen.elsewhere or more.elsewhere, {**seen.device, **more.device}, seen.lost or more.lost
        )
    return seen


@fresh_network
def test_news_of_the_device_is_distinguished() -> None:
    device = DummyDevice("kube-ipvs0")
    with links.address_events("kube-ipvs0") as events:
        device.ensure()
        device.add(["10.0.0.1", "fd00::1"])
        wanted = links.AddressNews(device={"10.0.0.1": True, "fd00::1": True})
        assert news_until(events, wanted) == wanted
        device.remove(["10.0.0.1"])
        wanted = links.AddressNews(device={"10.0.0.1": False})
        assert news_until(events, wanted) == wanted
        device.remove(["fd00::1"])
        device.add(["fd00::1"])
        subprocess.run(["ip", "address", "add", "10.9.9.9/32", "dev", "lo"], check=True)
        wanted = links.AddressNews(elsewhere=True, device={"fd00::1": True})
        assert news_until(events, wanted) == wanted
        device.delete()
        device.ensure()
        wanted = links.AddressNews(device={"fd00::1": False})
        assert news_until(events, wanted) == wanted


@fresh_network
def test_the_end_of_a_device_that_was_there_before_is_news_of_the_device() -> None:
    device = DummyDevice("kube-ipvs0")
    device.ensure()
    device.add(["10.0.0.1", "fd00::1"])
    with links.address_events("kube-ipvs0") as events:
        device.delete()
        wanted = links.AddressNews(device={"10.0.0.1": False, "fd00::1": False})
        assert news_until(events, wanted) == wanted


@fresh_network
def test_news_that_did_not_fit_are_reported_as_lost() -> None:
    device = DummyDevice("kube-ipvs0")
    device.ensure()
    with links.address_events("kube-ipvs0") as events:
        for _ in range(20):
            device.add([f"10.0.{n // 250}.{n % 250 + 1}" for n in range(1000)])
            device.remove([f"10.0.{n // 250}.{n % 250 + 1}" for n in range(1000)])
        seen = events.drain()
        assert seen.lost
        assert seen.elsewhere


@fresh_network
def test_counters_of_a_virtual_server_count_its_connections() -> None:
    up()
    ipvs, one = NetlinkIpvs(), server("127.0.0.1", "UDP", 5353)
    other = server("127.0.0.2", "UDP", 5353)
    destination = DestinationId("127.0.0.3", 5353)
    requests = [Request(Command.NEW_SERVICE, each, RR) for each in (one, other)]
    assert ipvs.apply([*requests, Request(Command.NEW_DEST, one, destination=destination, weight=1)]) == {}
    for _ in range(3):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x" * 72, ("127.0.0.1", 5353))
    deadline = time.monotonic() + 30
    while not (found := ipvs.statistics(Family.IPV4))[one].connections:
        assert time.monotonic() < deadline  # the kernel adds up every two seconds
    assert found[other] == Statistics()
    assert (found[one].connections, found[one].packets_in, found[one].bytes_in) == (3, 3, 300)


@pytest.mark.parametrize("family", list(Family), ids=str)
@fresh_network
def test_a_mark_leads_to_the_node_itself_and_that_of_others_stays(family: Family) -> None:
    up()
    six = ("-6",) if family is Family.IPV6 else ()
    pod = "10.1.0.1:0" if family is Family.IPV4 else "[fd00::1]:0"
    subprocess.run(["ipvsadm", "-A", "-f", "7", *six, "-s", "rr"], check=True)
    subprocess.run(["ipvsadm", "-a", "-f", "7", *six, "-r", pod, "-m"], check=True)
    others = printed("ipvsadm", "-Sn")
    ipvs = NetlinkIpvs()
    assert ipvs.add_local_mark(family, 0x306B, "rr")
    assert not ipvs.add_local_mark(family, 0x306B, "rr")
    assert not ipvs.add_local_mark(family, 7, "rr")
    assert ipvs.servers(family) == {}
    assert ipvs.marks(family) == {7, 0x306B}
    node = "127.0.0.1:0" if family is Family.IPV4 else "[::1]:0"
    assert f"-r {node} -g -w 1" in printed("ipvsadm", "-Sn")
    ipvs.remove_local_mark(family, 0x306B)
    ipvs.remove_local_mark(family, 7)
    assert printed("ipvsadm", "-Sn") == others


@fresh_network
def test_a_mark_whose_making_was_cut_short_is_completed() -> None:
    up()
    subprocess.run(["ipvsadm", "-A", "-f", str(0x306B), "-s", "rr"], check=True)
    assert NetlinkIpvs().add_local_mark(Family.IPV4, 0x306B, "rr")
    assert "-r 127.0.0.1:0 -g -w 1" in printed("ipvsadm", "-Sn")
