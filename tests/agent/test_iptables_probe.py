"""What a kernel can do is told from what somebody else's writing prevents for a moment."""

import pytest

from kproxy.addresses import Family
from kproxy.agent.config import ProxyConfig
from kproxy.agent.iptables_mode import usable_layout
from kproxy.kernel.xtables.types import Variant
from kproxy.testing.fake_xtables import FakeXtables

CONFIG = ProxyConfig(node_name="node-a")


@pytest.mark.parametrize(("attempts", "layout"), [(0, "auto"), (4, "auto"), (20, "standard")])
def test_a_lock_that_others_hold_is_no_missing_feature(attempts: int, layout: str) -> None:
    xtables = FakeXtables(Family.IPV4, Variant.LEGACY)
    xtables.lock_for(attempts)
    assert usable_layout(CONFIG, xtables) == layout
    assert "KPROXY-PROBE" not in xtables.save().decode()


def test_without_the_match_the_standard_layout_stays() -> None:
    xtables = FakeXtables(Family.IPV4, Variant.NFT)
    xtables.refuse_rules_matching("-m bpf")
    assert usable_layout(CONFIG, xtables) == "standard"
