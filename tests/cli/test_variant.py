"""A kernel whose nf_tables has no nat, as the user-mode kernel's: kproxy serves through the legacy tables."""

from __future__ import annotations

import pytest

from tests.cli.nodes import FLAGS, do, kproxy
from tests.kernel.namespace import fresh_network


@pytest.mark.ipvs
@fresh_network
def test_without_nat_in_nf_tables_the_legacy_variant_serves_unasked() -> None:
    first = kproxy("diff", *FLAGS)
    assert (first.returncode, first.stderr) == (2, "")
    done = kproxy("run", "--once", "--healthz-bind-address", "", *FLAGS)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stderr.splitlines() if "event=iptables_found" in line]
    assert [("variant=legacy" in line, "TABLE_ADD failed" in line) for line in found] == [(True, True)] * 2
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        assert ":KUBE-SERVICES " in do(program, "-t", "nat")
    again = kproxy("diff", *FLAGS)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
