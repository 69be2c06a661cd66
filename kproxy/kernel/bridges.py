"""Linux bridges, and whether the frames that they forward pass the rules of IP, over rtnetlink.

A bridge forwards a frame between two of its ports without the hooks of IP. Only the module br_netfilter takes
such frames there: those of every bridge, if the node's sysctl net.bridge.bridge-nf-call-iptables is 1, or
those of the bridges with a flag of their own. This module reads and sets the flags of single bridges, so
that other bridges stay as they are.

Layouts are those of include/uapi/linux/if_link.h and rtnetlink.h. A kernel that was built without
br_netfilter does not report the flags; one whose module is not loaded stores them without effect.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.addresses import NETLINK_ROUTE
from kproxy.kernel.netlink.messages import attribute, attributes, each_message, nested
from kproxy.kernel.netlink.socket import NetlinkLost, NetlinkSocket

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_IFINFOMSG = struct.Struct("=BxHiII")
"""family, type, index, flags, change"""
_NAME, _MASTER, _LINKINFO = 3, 10, 18  # IFLA_*
_KIND, _DATA = 1, 2  # IFLA_INFO_*
_CALL = {Family.IPV4: 36, Family.IPV6: 37}
"""IFLA_BR_NF_CALL_IPTABLES and IFLA_BR_NF_CALL_IP6TABLES."""
_BRIDGE = b"bridge\0"
_NUMBER = struct.Struct("=I")
_RTMGRP_LINK = 1
_RECEIVE_BYTES = 1 << 16
_MOST_DATAGRAMS = 1000
"""Greatest number of events per read, so that a read ends while events keep coming."""

FLAGS = {Family.IPV4: "nf_call_iptables", Family.IPV6: "nf_call_ip6tables"}
"""The names of the flags in `ip link set BRIDGE type bridge`."""

BR_NETFILTER = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
"""Exists where br_netfilter is loaded, in the network namespace of the thread that looks."""


class BridgeError(Exception):
    """Bridges cannot be read or changed; the message names the reason."""


class Bridge(msgspec.Struct, frozen=True):
    """A bridge. `filtered`: the families whose flag is set; None if the kernel has no such flags."""

    index: int
    name: str
    filtered: frozenset[Family] | None


def loaded(file: Path = BR_NETFILTER) -> bool:
    """Whether br_netfilter is there, so that the flags have an effect."""
    return file.exists()


def read() -> Mapping[int, Bridge]:
    """The bridges of the calling thread's network namespace by their index. Raises BridgeError."""
    wanted = nested(_LINKINFO, attribute(_KIND, _BRIDGE))
    with _opened("read bridges") as sock:
        answers = sock.dump(_RTM_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + wanted)
    found = filter(None, map(_bridge, answers))
    return {bridge.index: bridge for bridge in found}


def master(name: str) -> int | None:
    """The index of the bridge, or other master, that an interface is a port of. Raises BridgeError.

    None if it is a port of none, or if there is no such interface.
    """
    named = attribute(_NAME, name.encode() + b"\0")
    with _opened(f"read interface {name}") as sock:
        try:
            answers = sock.ask(_RTM_GETLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + named)
        except NetlinkLost:
            raise
        except OSError as error:
            if error.errno in {errno.ENODEV, errno.ERANGE, errno.EINVAL}:
                return None
            raise
    packed = attributes(answers[0][_IFINFOMSG.size :]).get(_MASTER) if answers else None
    return None if packed is None else int(_NUMBER.unpack(packed)[0])


def set_filtered(bridge: Bridge, families: Mapping[Family, bool]) -> None:
    """Set the flags of these families, and leave everything else of the bridge. Raises BridgeError."""
    flags = (attribute(_CALL[family], bytes((on,))) for family, on in families.items())
    info = nested(_LINKINFO, attribute(_KIND, _BRIDGE), nested(_DATA, *flags))
    with _opened(f"change bridge {bridge.name}") as sock:
        sock.ask(_RTM_NEWLINK, 0, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, bridge.index, 0, 0) + info)


class BridgeEvents:
    """Events of bridges that are made, changed or removed; `fileno` is readable when there are events."""

    def __init__(self, events: socket.socket) -> None:
        self._events = events

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._events.fileno()

    def changed(self) -> bool:
        """Whether any pending event is about a bridge; never blocks. Raises OSError.

        Lost events count as one.
        """
        found = False
        for _ in range(_MOST_DATAGRAMS):
            try:
                datagram = self._events.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            found |= any(
                kind in {_RTM_NEWLINK, _RTM_DELLINK} and _is_bridge(content)
                for kind, _, _, content in each_message(datagram)
            )
        return found


@contextlib.contextmanager
def events() -> Iterator[BridgeEvents]:
    """Subscribe to events of bridges in the calling thread's network namespace. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE) as sock:
        sock.bind((0, _RTMGRP_LINK))
        yield BridgeEvents(sock)


def _is_bridge(content: bytes) -> bool:
    info = attributes(attributes(content[_IFINFOMSG.size :]).get(_LINKINFO, b""))
    return info.get(_KIND, b"").rstrip(b"\0") == _BRIDGE.rstrip(b"\0")


def _bridge(content: bytes) -> Bridge | None:
    index = _IFINFOMSG.unpack_from(content)[2]
    held = attributes(content[_IFINFOMSG.size :])
    if not _is_bridge(content):
        return None
    data = attributes(attributes(held[_LINKINFO]).get(_DATA, b""))
    flags = {family: data[kind] for family, kind in _CALL.items() if kind in data}
    return Bridge(
        index,
        held[_NAME].rstrip(b"\0").decode("utf-8", "replace"),
        frozenset(family for family, flag in flags.items() if any(flag)) if flags else None,
    )


@contextlib.contextmanager
def _opened(what: str) -> Iterator[NetlinkSocket]:
    try:
        with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as sock:
            yield sock
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or errno.EIO)
        raise BridgeError(f"cannot {what}: {reason}") from error
