"""A long sync shows progress after each batch, in every mode, and a sync without work shows none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.kernel.xtables.types import Variant
from tests.backends.iptables_node import IptablesNode
from tests.backends.ipvs_node import IpvsNode
from tests.backends.nftables_node import NftablesNode
from tests.backends.node import Node
from tests.builders import endpoint_slice, service


@pytest.mark.parametrize(
    "make",
    [
        lambda: IptablesNode(Variant.NFT, piece=2),
        lambda: IptablesNode(Variant.LEGACY),
        lambda: IptablesNode(Variant.NFT, piece=2, layout=ScalableLayout),
        IpvsNode,
        NftablesNode,
    ],
    ids=["iptables", "legacy", "scalable", "ipvs", "nftables"],
)
def test_a_sync_shows_progress_while_it_works_and_none_when_it_writes_nothing(
    make: Callable[[], Node[Any, Any]],
) -> None:
    node = make()
    marks = 0

    def progress() -> None:
        nonlocal marks
        marks += 1

    node.backend.on_progress = progress
    for number in range(20):
        node.put(service(f"s{number}", f"10.96.1.{number}"))
        node.put(None, endpoint_slice("10.1.0.1", "10.1.0.2", service=f"s{number}"))
    node.done()
    assert marks >= 4
    marks = 0
    node.done()
    assert marks == 0
