"""Attacks on what the kernel can do: services that it refuses, a family that is broken, a full set."""

import errno
import socket
import struct
from pathlib import Path

import pytest

from kproxy_lab.lab import Namespace
from tests.packets.modes import Capability
from tests.packets.objects import Port
from tests.suite import mounts
from tests.support.faultinjection import BrokenTools, Sandbox, ToolFault
from tests.support.faultinjection.control_files import customise, replace
from tests.tenants import netlink_refusals
from tests.tenants.attacker import Attacker
from tests.tenants.objects import SPACE, cluster_ip, endpoint, ports, service, slice_of
from tests.tenants.rig import TenantRig
from tests.tenants.selection import EXCESS_MS, FULL, modes

pytestmark = pytest.mark.root

REFUSED = 300 if FULL else 20
"""Services that the kernel refuses."""

HOLD = 20.0 if FULL else 1.0
"""Seconds for which refusals go on."""

DATAGRAMS = 132_000 if FULL else 2_000

FIRST_REFUSED = 77 * 256 + 65536
"""Number of a service whose cluster IP is 10.101.77.0; no other has one in this range or the next."""

ROUTED = "10.96.250.1"
"""A cluster IP to which the lab's routers have a route."""

RUNS = 40
"""Limit of programs run for the refused services of a small attack, for each family."""

LOG_KB = 100


class Refusals:
    """Makes the kernel refuse the attacker's rules, in any mode; or everything of IPv6."""

    def __init__(self, directory: Path) -> None:
        self.tools = BrokenTools(directory / "tools")
        self._sockets = directory / "sockets"
        customise(self._sockets, netlink_refusals)
        self.sandbox = Sandbox(tools=self.tools.directory, sockets=self._sockets)

    def of_attacker(self) -> None:
        words = ["".join(f"{int(part):02x}" for part in ip.split(".")[:3]) for ip in _ranges()]
        replace(self._sockets / "refuse", f"{errno.EOPNOTSUPP}\t0\t{','.join(words)}")
        self.tools.enable(ToolFault.REFUSE, words=[f"{SPACE}/"])

    def of_ipv6(self, program: str) -> None:
        replace(self._sockets / "refuse", f"{errno.ENOMEM}\t{socket.AF_INET6}\t0a")
        self.tools.uninstall(program)

    def end(self) -> None:
        (self._sockets / "refuse").unlink(missing_ok=True)
        self.tools.disable()
        self.tools.install()


def _ranges() -> list[str]:
    return [cluster_ip(FIRST_REFUSED), cluster_ip(FIRST_REFUSED + 256)]


@pytest.fixture
def refusals(rig: TenantRig, tmp_path: Path) -> Refusals:
    mounts.needed()
    return Refusals(tmp_path)


@modes("nft", "legacy", "nftables")
def test_services_that_the_kernel_refuses(rig: TenantRig, refusals: Refusals) -> None:
    def work(attacker: Attacker) -> None:
        listed = ports(1)
        for n in range(REFUSED):
            made = service(
                f"refused-{n}", FIRST_REFUSED + n, listed, sessionAffinity="ClientIP",
                externalIPs=[cluster_ip(FIRST_REFUSED + 512 + n)],
            )  # fmt: skip
            attacker.write(made, slice_of(f"refused-{n}", [endpoint("10.128.0.9")], listed))
        attacker.pause(HOLD)

    rig.start(sandbox=refusals.sandbox)
    refusals.of_attacker()
    counts = rig.suffer("services that the kernel refuses", work)
    refused = refusals.tools.injected[ToolFault.REFUSE]
    refusals.end()
    rig.stop()
    assert counts.lost == 0
    assert counts.unwell == 0, "a probe was not answered with 200"
    assert counts.same, rig.differences[:5]
    if FULL:
        assert counts.excess <= EXCESS_MS
    else:
        assert refused <= RUNS
        assert counts.log_kb <= LOG_KB


@modes("nft", "nftables")
def test_a_family_that_is_broken(rig: TenantRig, refusals: Refusals) -> None:
    def work(attacker: Attacker) -> None:
        listed = ports(2)
        attacker.write(service("moving", attacker.number(), listed))
        for n in range(int(HOLD * 50)):
            attacker.write(slice_of("moving", [endpoint(f"10.128.3.{n % 200 + 1}")], listed))
            attacker.pause(0.02)

    rig.start(sandbox=refusals.sandbox)
    rig.victim.only(4)
    refusals.of_ipv6(rig.cluster.mode.program(6, "restore"))
    # The first change of IPv6 that fails; it stays for the length of the attack.
    rig.victim.write(6, 1)
    counts = rig.suffer("IPv6 is broken for good", work, returns=False)
    rig.cluster.running.wait_log("sync_failed", "family=IPv6")
    refusals.end()
    rig.victim.only(4, 6)
    rig.victim.write(6, 0)
    rig.stop()
    assert counts.lost == 0
    if FULL:
        assert counts.excess <= EXCESS_MS
    assert counts.peak_mb - counts.before_mb <= 20


@modes("nftables", never=("nft", "legacy", "scalable", "ipvs"))
@pytest.mark.needs(Capability.NFTABLES)
def test_datagrams_of_many_clients_to_one_service_with_affinity(rig: TenantRig) -> None:
    lab = rig.cluster.lab

    def work(attacker: Attacker) -> None:
        listed = [{"name": "p", "port": 53, "protocol": "UDP", "targetPort": 53}]
        made = service("flood", attacker.number(), listed, sessionAffinity="ClientIP")
        made["spec"] |= {"clusterIP": ROUTED, "clusterIPs": [ROUTED]}
        attacker.write(made, slice_of("flood", [endpoint("10.128.0.1"), endpoint("10.128.0.2")], listed))
        rig.cluster.settle()
        _flood(lab.fabric, ROUTED, DATAGRAMS)

    rig.start()
    faithful = rig.cluster.service("faithful", ports=[Port(81)], sessionAffinity="ClientIP")
    rig.cluster.slices(faithful, lab.local_pods[:3])
    rig.cluster.settle()
    counts = rig.suffer("datagrams to one service with affinity", work, returns=False)
    seen = [
        rig.cluster.ask(lab.client, faithful.ip(4), 81, n=10, source_ips=[ip]).pods
        for ip in lab.spec.client_ip4[1:9]
    ]
    rig.cluster.delete(faithful)
    assert counts.lost == 0
    assert [len(pods) for pods in seen] == [1] * 8, "another service has lost its clients' affinity"


def _flood(place: Namespace, ip: str, count: int) -> None:
    """Send one datagram from each of many addresses."""
    payload = struct.pack("!HHHH", 4000, 53, 9, 0) + b"x"
    with place.open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.settimeout(10)
        for n in range(count):
            source = struct.pack("!I", (172 << 24 | 16 << 16) + n)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 64, socket.IPPROTO_UDP, 0)
            raw.sendto(header + source + socket.inet_aton(ip) + payload, (ip, 0))
