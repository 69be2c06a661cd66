"""The backend over the installed iptables: after every step the kernel holds what the stand-in holds."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.iptables.dump import parse_save
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from tests.backends.iptables_node import IptablesNode, WatchedXtables
from tests.builders import endpoint, endpoint_slice, port, service
from tests.kernel.namespace import fresh_network

LOCAL, REMOTE = endpoint("10.1.1.1", node="node1"), endpoint("10.1.2.1", node="node2")


class RealXtables(WatchedXtables):
    """The stand-in's face with the installed programs behind it."""

    def __init__(self, xtables: SubprocessXtables) -> None:
        super().__init__(xtables.family, xtables.variant)
        self.xtables = xtables

    def restore(self, text: bytes) -> None:
        self.restores.append(text)
        self.xtables.restore(text)

    def save(self, table: str | None = None) -> bytes:
        return self.xtables.save(table)

    def generation(self) -> Any:
        return self.xtables.generation()

    def edit(self, text: str) -> None:
        self.xtables.restore(text.encode())


def steps(cluster: IptablesNode) -> Any:
    """Change the objects or the rules; what follows each is a sync and a comparison."""
    for n in range(1, 6):
        cluster.put(
            service(f"svc{n}", f"10.96.0.{n}", type="NodePort", ports=[port(nodePort=30000 + n)]),
            endpoint_slice(f"10.1.1.{n}", f"10.1.2.{n}", service=f"svc{n}"),
        )
    yield
    cluster.put(None, endpoint_slice("10.1.1.7", "10.1.2.1", service="svc1"))
    yield
    cluster.put(None, endpoint_slice(service="svc2", address_type="IPv4"))
    cluster.put(service("svc3", "10.96.0.3", sessionAffinity="ClientIP", externalIPs=["203.0.113.1"]))
    yield
    exposed: dict[str, Any] = {
        "type": "LoadBalancer",
        "ingress": ["198.51.100.1"],
        "healthCheckNodePort": 32000,
    }
    local: dict[str, Any] = {"externalTrafficPolicy": "Local"}
    local["loadBalancerSourceRanges"] = ["203.0.113.0/24"]
    cluster.put(
        service("svc4", "10.96.0.4", **exposed, **local), endpoint_slice(LOCAL, REMOTE, service="svc4")
    )
    yield
    cluster.put(service("svc4", "10.96.0.4", **exposed), endpoint_slice(REMOTE, service="svc4"))
    cluster.drop("ns1/svc5")
    yield
    cluster.fake.edit("*nat\n-F KUBE-SERVICES\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\nCOMMIT\n")
    assert cluster.backend.check()
    yield
    for n in (1, 2, 3, 4):
        cluster.drop(f"ns1/svc{n}")
    cluster.start()
    yield


@pytest.mark.parametrize(
    ("variant", "piece"), [(Variant.LEGACY, None), (Variant.NFT, None), (Variant.NFT, 1), (Variant.NFT, 2)]
)
@fresh_network
def test_the_kernel_holds_what_the_stand_in_holds(variant: Variant, piece: int | None) -> None:
    try:
        tools = find_tools(Family.IPV4, variant, probe=False)
    except XtablesUnavailable as error:
        pytest.skip(error.reason)
    real = IptablesNode(piece=piece, fake=RealXtables(SubprocessXtables(Family.IPV4, tools)))
    fake = IptablesNode(variant, piece=piece)
    for _ in zip(steps(real), steps(fake), strict=True):
        reports = real.sync(), fake.sync()
        assert [(r.error, dict(r.failed)) for r in reports] == [(None, {}), (None, {})]
        assert real.fake.restores == fake.fake.restores
        assert parse_save(real.fake.save()) == fake.state()
        assert real.backend.check(full=True) == ()
        before = len(real.fake.restores)
        real.start()
        assert real.sync().changes == {}
        assert len(real.fake.restores) == before
        fake.start()
        fake.sync()
