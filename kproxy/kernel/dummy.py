"""A dummy device that holds service addresses, so that the kernel delivers their packets locally.

pyroute2 creates the device; its thousands of addresses are sent in batches over a netlink socket.
"""

import errno
import socket
from collections.abc import Iterable, Mapping

from kproxy.addresses import Family, is_link_local
from kproxy.kernel.addresses import DeviceError, DeviceMissing
from kproxy.kernel.netlink import addresses
from kproxy.kernel.netlink.messages import NLM_F_CREATE, NLM_F_REPLACE
from kproxy.kernel.netlink.socket import NetlinkSocket

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_ALREADY = frozenset({errno.EEXIST})
_GONE = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})


class DummyDevice:
    """A dummy device by name, in the network namespace of the thread that uses it first.

    It stays down: addresses of a device that is down are local nevertheless, and no packet is sent through
    it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket: NetlinkSocket | None = None

    def ensure(self) -> bool:
        """Create the device if there is none; True if it was created. Raises DeviceError."""
        kind = self.kind()
        if kind == "dummy":
            return False
        if kind is not None:
            raise DeviceError(f"interface {self.name} exists and is of type {kind or 'unknown'}, not dummy")
        self._change("add", kind="dummy")
        return True

    def delete(self) -> None:
        """Delete the device; one that does not exist is no error. Raises DeviceError."""
        if self.kind() == "dummy":
            self._change("del")

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family, without IPv6 link-local ones; empty if there is no device."""
        index = self._index()
        if index is None:
            return frozenset()
        try:
            found = {ip for _, ip in addresses.dump(self._open(), _AF[family], index)}
        except OSError as error:
            if error.errno == errno.ENODEV:
                return frozenset()
            raise self._failed("list addresses", error) from error
        return frozenset(ip for ip in found if not is_link_local(ip))

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add host addresses; return the errno of each refused one. Raises DeviceError."""
        return self._apply(addresses.RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, wanted, _ALREADY)

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove addresses; return the errno of each refused one. Raises DeviceError."""
        return self._apply(addresses.RTM_DELADDR, 0, wanted, _GONE)

    def _apply(self, kind: int, flags: int, ips: Iterable[str], fine: frozenset[int]) -> Mapping[str, int]:
        wanted = list(ips)
        if not wanted:
            return {}
        index = self._index()
        if index is None:
            if kind == addresses.RTM_DELADDR:
                return {}
            raise DeviceMissing(f"there is no interface {self.name}")
        sock = self._open()
        try:
            failures = sock.batch([(kind, flags, addresses.payload(ip, index)) for ip in wanted])
        except OSError as error:
            raise self._failed("change addresses", error) from error
        return {wanted[n]: code for n, code in failures.items() if code not in fine}

    def _index(self) -> int | None:
        try:
            return socket.if_nametoindex(self.name)
        except OSError:
            return None

    def kind(self) -> str | None:
        """The type of the interface of this name; None if there is none, "" if it has no type.

        Raises DeviceError.
        """
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
            reason = (
                "this kernel has no dummy devices (tried: modprobe dummy)"
                if code == errno.EOPNOTSUPP
                else error
            )
            raise DeviceError(f"interface {self.name}: cannot {what} it: {reason}") from error

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(addresses.NETLINK_ROUTE)
        return self._socket

    def _failed(self, what: str, error: OSError) -> DeviceError:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return DeviceError(f"interface {self.name}: cannot {what}: {error.strerror or error}")
