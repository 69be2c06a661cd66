"""A dummy device that holds service addresses, so that the kernel takes their packets for its own.

Making the device is pyroute2's work. Addresses come by the thousand, so their messages are our own: layouts
of include/uapi/linux/if_addr.h and rtnetlink.h.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Mapping

from kproxy.addresses import Family, is_link_local, parse_ip
from kproxy.kernel.addresses import DeviceError
from kproxy.kernel.netlink.messages import NLM_F_CREATE, NLM_F_REPLACE, attribute, attributes
from kproxy.kernel.netlink.socket import NetlinkSocket

_NETLINK_ROUTE = 0
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_ALREADY = frozenset({errno.EEXIST})
_GONE = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})


class DummyDevice:
    """A dummy device by name, in the network namespace of the thread that uses it first.

    It is never set up: addresses of a device that is down are local all the same, and nothing is sent
    through it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket: NetlinkSocket | None = None

    def ensure(self) -> bool:
        """Create the device if there is none; True if it was created. Raises DeviceError."""
        kind = self._kind()
        if kind == "dummy":
            return False
        if kind is not None:
            raise DeviceError(f"interface {self.name} exists and is of type {kind or 'unknown'}, not dummy")
        self._change("add", kind="dummy")
        return True

    def exists(self) -> bool:
        """Whether there is such a device. Raises DeviceError."""
        return self._kind() is not None

    def delete(self) -> None:
        """Delete the device; one that does not exist is no error. Raises DeviceError."""
        if self._kind() == "dummy":
            self._change("del")

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family, without IPv6 link-local ones; none without the device."""
        index = self._index()
        if index is None:
            return frozenset()
        header = _IFADDRMSG.pack(_AF[family], 0, 0, 0, index)
        try:
            answers = self._open().dump(_RTM_GETADDR, header)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return frozenset()
            raise self._failed("list addresses", error) from error
        found = set()
        for answer in answers:
            if _IFADDRMSG.unpack_from(answer)[4] != index:
                continue
            held = attributes(answer[_IFADDRMSG.size :])
            packed = held.get(_IFA_LOCAL, held.get(_IFA_ADDRESS, b""))
            found.add(parse_ip(socket.inet_ntop(_AF[family], packed))[1])
        return frozenset(ip for ip in found if not is_link_local(ip))

    def add(self, addresses: Iterable[str]) -> Mapping[str, int]:
        """Add host addresses; the errno of each refused one. Raises DeviceError."""
        return self._apply(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, addresses, _ALREADY)

    def remove(self, addresses: Iterable[str]) -> Mapping[str, int]:
        """Remove addresses; the errno of each refused one. Raises DeviceError."""
        return self._apply(_RTM_DELADDR, 0, addresses, _GONE)

    def _apply(
        self, kind: int, flags: int, addresses: Iterable[str], fine: frozenset[int]
    ) -> Mapping[str, int]:
        wanted = list(addresses)
        if not wanted:
            return {}
        index = self._index()
        if index is None:
            if kind == _RTM_DELADDR:
                return {}
            raise DeviceError(f"there is no interface {self.name}")
        sock = self._open()
        try:
            failures = sock.batch([(kind, flags, _payload(ip, index)) for ip in wanted])
        except OSError as error:
            raise self._failed("change addresses", error) from error
        return {wanted[n]: code for n, code in failures.items() if code not in fine}

    def _index(self) -> int | None:
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return None

    def _kind(self) -> str | None:
        """The type of the interface of this name; None if there is none, "" if it has no type."""
        index = self._index()
        if index is None:
            return None
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            with IPRoute() as route:
                found = list(route.get_links(index))
        except (NetlinkError, OSError) as error:
            raise DeviceError(f"interface {self.name}: {error}") from error
        if not found:
            return None
        info = found[0].get("IFLA_LINKINFO")
        return str(info.get("IFLA_INFO_KIND") or "") if info else ""

    def _change(self, what: str, **settings: str) -> None:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            with IPRoute() as route:
                if what == "add":
                    route.link("add", ifname=self.name, **settings)
                elif (index := self._index()) is not None:
                    route.link("del", index=index)
        except (NetlinkError, OSError) as error:
            code = getattr(error, "code", None) or getattr(error, "errno", None)
            told = (
                "this kernel has no dummy devices (tried: modprobe dummy)"
                if code == errno.EOPNOTSUPP
                else error
            )
            raise DeviceError(f"interface {self.name}: cannot {what} it: {told}") from error

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(_NETLINK_ROUTE)
        return self._socket

    def _failed(self, what: str, error: OSError) -> DeviceError:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return DeviceError(f"interface {self.name}: cannot {what}: {error.strerror or error}")


def _payload(ip: str, index: int) -> bytes:
    if ":" in ip:
        packed = socket.inet_pton(socket.AF_INET6, ip)
        header = _IFADDRMSG.pack(socket.AF_INET6, 128, _IFA_F_NODAD, 0, index)
    else:
        packed = socket.inet_aton(ip)
        header = _IFADDRMSG.pack(socket.AF_INET, 32, 0, 0, index)
    return header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
