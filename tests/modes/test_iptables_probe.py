"""What a kernel can do is told from what somebody else's writing prevents for a moment."""

import pytest

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel.xtables.legacy_counters import LegacyCounters
from kproxy.kernel.xtables.python_iptables import PythonIptablesError
from kproxy.kernel.xtables.types import Variant
from kproxy.modes.iptables.mode import IptablesMode, usable_layout
from tests.support.fake_xtables import FakeXtables

CONFIG = ProxyConfig(node_name="node-a")


@pytest.mark.parametrize(("attempts", "layout"), [(0, "auto"), (4, "auto"), (20, "standard")])
def test_a_lock_that_others_hold_is_no_missing_feature(attempts: int, layout: str) -> None:
    xtables = FakeXtables(Family.IPV4, Variant.LEGACY)
    xtables.lock_for(attempts)
    assert usable_layout(CONFIG, xtables) == layout
    assert "KPROXY-PROBE" not in xtables.save().decode()


def test_a_trial_without_an_end_is_no_missing_feature() -> None:
    xtables = FakeXtables(Family.IPV4, Variant.NFT)
    xtables.kill_after_tables(0)
    assert usable_layout(CONFIG, xtables) == "auto"
    assert "KPROXY-PROBE" not in xtables.save().decode()


def test_without_the_match_the_standard_layout_stays() -> None:
    xtables = FakeXtables(Family.IPV4, Variant.NFT)
    xtables.refuse_rules_matching("-m bpf")
    assert usable_layout(CONFIG, xtables) == "standard"


def test_counters_come_from_a_dump_where_the_library_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Family] = []

    def fail(*_: object) -> None:
        asked.append(Family.IPV4)
        raise PythonIptablesError("python-iptables ended with status -11: no reason given")

    monkeypatch.setattr(LegacyCounters, "__init__", lambda *_: None)
    monkeypatch.setattr(LegacyCounters, "read", fail)
    xtables = FakeXtables(Family.IPV4, Variant.LEGACY)
    xtables.edit(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAAA - [0:0]\n-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp "
        '-m comment --comment "ns/a:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAA\nCOMMIT\n'
    )
    mode = IptablesMode(CONFIG, {Family.IPV4: xtables})
    for _ in range(2):
        assert [each.name for each in mode.measure(Family.IPV4, traffic=True).traffic] == ["ns/a:http"]
    assert asked == [Family.IPV4]
