"""sysctl: written only when different, and failures name the parameter."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.kernel import sysctl
from tests.kernel.namespace import fresh_network

ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


@fresh_network
def test_a_sysctl_of_the_namespace_is_set_once() -> None:
    assert sysctl.read(ROUTE_LOCALNET) == "0"
    assert sysctl.ensure(ROUTE_LOCALNET, 1) is True
    assert sysctl.ensure(ROUTE_LOCALNET, 1) is False
    assert sysctl.read(ROUTE_LOCALNET) == "1"


def test_a_missing_sysctl_is_named() -> None:
    with pytest.raises(sysctl.SysctlError, match="net/ipv4/no_such: No such file") as caught:
        sysctl.ensure("net/ipv4/no_such", 1)
    assert caught.value.name == "net/ipv4/no_such"


def test_a_value_that_is_right_needs_no_permission_to_write(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/x").write_text("1\n")
    (tmp_path / "net/x").chmod(0o444)
    assert sysctl.ensure("net/x", 1, tmp_path) is False


@pytest.mark.parametrize("name", ["../passwd", "net//x", "", "net/./x"])
def test_a_name_cannot_leave_the_tree(name: str) -> None:
    with pytest.raises(ValueError, match="not a sysctl name"):
        sysctl.read(name)
