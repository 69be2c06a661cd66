"""How many clients session affinity remembers, by service port, and how that is exported."""

from __future__ import annotations

from typing import cast

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import Measurement, PortAffinity
from kproxy.backends.nftables import names
from kproxy.kernel.netlink.messages import attributes
from kproxy.kernel.nft import dump
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.modes.base import Mode
from kproxy.telemetry import series
from kproxy.telemetry.collection import readers
from tests.backends.nftables_node import CONFIG, NftablesNode
from tests.builders import endpoint_slice, port, service
from tests.kernel import nft_oracle
from tests.kernel.namespace import fresh_network

PORTS = [port(80, "web"), port(53, "dns", "UDP")]
OBJECTS = (
    service(ports=PORTS, sessionAffinity="ClientIP"),
    endpoint_slice("10.1.0.1", "10.1.0.2", ports=PORTS),
)
PLAIN = (service("plain", "10.96.0.2"), endpoint_slice("10.1.0.3", service="plain", name="plain-1"))


def started(nft: NetlinkNft | None = None) -> NftablesNode:
    node = NftablesNode(nft=nft)
    node.put(*OBJECTS)
    node.put(*PLAIN)
    node.done()
    return node


def found(node: NftablesNode) -> dict[str, int]:
    measured = node.backend.affinity()
    assert {each.limit for each in measured} <= {names.AFFINITY_SIZE}
    return {f"{each.name} {each.protocol}": each.clients for each in measured}


def test_only_ports_with_affinity_have_clients() -> None:
    node = started()
    assert found(node) == {"ns1/svc1:web TCP": 0, "ns1/svc1:dns UDP": 0}
    node.put(service(ports=PORTS))
    node.done()
    assert found(node) == {}


@pytest.mark.root
@pytest.mark.parametrize("tells", [True, False], ids=["kernel counts", "elements are read"])
def test_clients_in_the_kernel_are_counted(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not tells:
        monkeypatch.setattr(dump, "attributes", lambda data: {**attributes(data), dump._SET_COUNT: None})
    _counted_in_the_kernel()


@fresh_network
def _counted_in_the_kernel() -> None:
    nft = NetlinkNft()
    assert nft.sizes(CONFIG.family, "kproxy", lambda _: True) == {}
    node = started(nft)
    assert set(found(node).values()) == {0}
    sets = sorted(nft.sizes(CONFIG.family, "kproxy", names.is_affinity))
    for number, name in enumerate(sets, 1):
        clients = ", ".join(f"192.0.2.{n} . 7 timeout 1h" for n in range(number * 100))
        nft_oracle.nft("add", "element", "ip", "kproxy", name, f"{{ {clients} }}")
    assert sorted(found(node).values()) == [100, 200]


class Measured:
    """A mode whose affinity sets are so full."""

    families = (Family.IPV4,)

    def __init__(self, *ports: PortAffinity) -> None:
        self._ports = ports

    def measure(self, _: Family, *, traffic: bool) -> Measurement:
        return Measurement(affinity=self._ports if traffic else ())


def test_the_fullest_are_exported_with_the_limit() -> None:
    mode = Measured(
        PortAffinity("ns1/a:web", "TCP", 10, 65536),
        PortAffinity("ns1/b:web", "TCP", 65536, 65536),
        PortAffinity("ns2/c", "UDP", 700, 65536),
    )
    read = dict(readers(lambda: cast("Mode", mode), None, None, None, 2))["kernel"]  # type: ignore[arg-type]
    samples = [each for each in read() if each.series in (series.AFFINITY_CLIENTS, series.AFFINITY_LIMIT)]
    assert [(each.series.name, each.labels, each.value) for each in samples] == [
        ("kproxy_affinity_clients", ("IPv4", "ns1", "b", "web", "TCP"), 65536),
        ("kproxy_affinity_clients", ("IPv4", "ns2", "c", "", "UDP"), 700),
        ("kproxy_affinity_clients_limit", ("IPv4",), 65536),
    ]
