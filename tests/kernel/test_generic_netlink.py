"""Families of generic netlink, as this kernel numbers them."""

import contextlib
import errno
from collections.abc import Iterator

import pytest

from kproxy.kernel.netlink.generic import NETLINK_GENERIC, family_id
from kproxy.kernel.netlink.socket import NetlinkSocket

CONTROLLER = 0x10


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with contextlib.closing(NetlinkSocket(NETLINK_GENERIC)) as made:
        yield made


def test_the_controller_knows_its_own_number(sock: NetlinkSocket) -> None:
    assert family_id(sock, "nlctrl") == CONTROLLER


def test_a_family_that_the_kernel_does_not_have_is_an_error(sock: NetlinkSocket) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        family_id(sock, "KPROXY_NONE")
    assert caught.value.errno == errno.ENOENT
    assert family_id(sock, "nlctrl") == CONTROLLER
