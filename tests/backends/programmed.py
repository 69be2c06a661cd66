"""A few services in the kernel's memory, as the tests of the iptables backend begin with."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.backends.core import hashes
from kproxy.backends.iptables import names
from kproxy.kernel.xtables.types import Variant
from tests.backends.iptables_node import IptablesNode, config_with
from tests.builders import endpoint_slice, port, service

both_variants = pytest.mark.parametrize("variant", list(Variant))
ways = pytest.mark.parametrize(
    ("variant", "piece"), [(Variant.LEGACY, None), (Variant.NFT, None), (Variant.NFT, 1), (Variant.NFT, 2)]
)
SVC1 = "KUBE-SVC-" + hashes.port_hash("ns1/svc1:p80", "tcp")
SEP1 = names.endpoint_chain("ns1/svc1:p80", "tcp", "10.1.1.1:8080")


def pods_of(name: str, *pods: Any) -> dict[str, Any]:
    return endpoint_slice(*pods, service=name, ports=[port(8080)], address_type="IPv4")


def programmed(
    variant: Variant = Variant.NFT, piece: int | None = None, count: int = 3, **config: Any
) -> IptablesNode:
    """Services svc1 ... with two endpoints each, programmed."""
    cluster = IptablesNode(variant, piece=piece, config=config_with(**config))
    for n in range(1, count + 1):
        cluster.put(
            service(f"svc{n}", f"10.96.0.{n}", type="NodePort", ports=[port(nodePort=30000 + n)]),
            pods_of(f"svc{n}", f"10.1.{n}.1", f"10.1.{n}.2"),
        )
    done(cluster)
    return cluster


def done(cluster: IptablesNode) -> None:
    report = cluster.sync()
    assert (report.error, dict(report.failed)) == (None, {})


def written(cluster: IptablesNode, since: int) -> str:
    return b"".join(cluster.fake.restores[since:]).decode()
