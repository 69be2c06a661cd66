"""nfacct objects: made once, read back, deleted; never a traceback on a kernel without them."""

from __future__ import annotations

import errno
import socket
import subprocess

import pytest

from kproxy.kernel import nfacct
from kproxy.kernel.netlink import nfnetlink
from tests.kernel.namespace import fresh_network


def _require() -> None:
    try:
        nfacct.read()
    except nfacct.NfacctUnsupportedError as error:
        pytest.skip(str(error))


@fresh_network
def test_an_object_is_created_once_and_deleted() -> None:
    _require()
    assert nfacct.read() == {}
    assert nfacct.ensure("ct_state_invalid_dropped_pkts")
    assert nfacct.ensure("ct_state_invalid_dropped_pkts")
    assert nfacct.ensure("x" * nfacct.NAME_MAX)
    assert nfacct.read() == {"ct_state_invalid_dropped_pkts": (0, 0), "x" * nfacct.NAME_MAX: (0, 0)}
    nfacct.delete("ct_state_invalid_dropped_pkts")
    nfacct.delete("ct_state_invalid_dropped_pkts")
    assert list(nfacct.read()) == ["x" * nfacct.NAME_MAX]


@fresh_network
def test_counters_are_read_and_a_used_object_is_not_deleted() -> None:
    _require()
    nfacct.ensure("seen")
    rules = b"*filter\n-A OUTPUT -m nfacct --nfacct-name seen\nCOMMIT\n"
    subprocess.run(["iptables-legacy-restore", "--noflush"], input=rules, check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sender.sendto(b"x" * 72, sender.getsockname())
    packets, octets = nfacct.read()["seen"]
    assert (packets, octets) == (1, 100)
    nfacct.ensure("seen")
    assert nfacct.read()["seen"] == (packets, octets)
    with pytest.raises(nfacct.NfacctError, match="seen"):
        nfacct.delete("seen")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_without_objects_is_reported_not_raised(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> list[dict[int, bytes]]:
        raise OSError(code, "no")

    monkeypatch.setattr(nfnetlink, "request", refuse)
    assert nfacct.ensure("name") is False
    with pytest.raises(nfacct.NfacctUnsupportedError):
        nfacct.read()
    nfacct.delete("name")


@pytest.mark.parametrize("name", ["", "x" * 32, "a\0b"])
def test_names_the_kernel_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 31"):
        nfacct.ensure(name)
