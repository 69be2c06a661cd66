"""Run a test's body in a network namespace of its own that ends with it.

A namespace belongs to a thread, so the body runs in a new one; programs it starts inherit the namespace.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import pytest

from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetUnavailable

P = ParamSpec("P")
_CLONE_NEWNET = 0x40000000
_PARAMETER = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


def fresh_network(test: Callable[P, None]) -> Callable[P, None]:
    """Decorate a test with a network namespace of its own; skips where none can be made."""

    @pytest.mark.root
    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root to make a network namespace")
        failures: list[BaseException] = []

        def body() -> None:
            try:
                enter_new()
                test(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  (re-raised in the test's own thread)
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    return wrapper


def enter_new() -> None:
    """Put the calling thread in a new network namespace; skips the test where the kernel refuses.

    A new namespace takes over the machine's parameters below conf (net.core.devconf_inherit_init_net); on a
    node with a proxy, route_localnet is set.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        pytest.skip(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
    try:
        _PARAMETER.write_text("0")
    except OSError as error:
        pytest.skip(f"kernel parameters cannot be set: {error}")


def kernel_sets() -> NetlinkIpset:
    """The sets of the caller's namespace; skips the test where there can be none."""
    ipset = NetlinkIpset()
    try:
        ipset.headers()
    except IpsetUnavailable as error:
        pytest.skip(str(error))
    return ipset


def without_capabilities() -> None:
    """Take all capabilities from the calling thread, and from no other."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    nothing = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, nothing) == 0, os.strerror(ctypes.get_errno())
