"""Legacy rules are counted where python-iptables is there and cannot be run, by what the programs print."""

import sys
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.xtables import legacy_rules
from tests.cli.nodes import do
from tests.kernel.namespace import fresh_network

pytest.importorskip("iptc", reason="python-iptables is not installed")

RULES = "*nat\n:OWN - [0:0]\n-A OUTPUT -j OWN\n-A OWN -j RETURN\n-A OWN -j RETURN\nCOMMIT\n"


@fresh_network
def test_a_python_that_cannot_be_run_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    do("iptables-legacy-restore", stdin=RULES)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert legacy_rules.count(Family.IPV4) == {"nat": {"OUTPUT": 1, "OWN": 2}}
