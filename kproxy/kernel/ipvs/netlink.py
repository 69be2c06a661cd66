"""The kernel's IPVS, in the network namespace of the thread that uses it first."""

import errno
import os
from collections.abc import Mapping, Sequence

from kproxy.addresses import Family
from kproxy.kernel.ipvs import codec
from kproxy.kernel.ipvs.types import (
    Command,
    DestinationId,
    DestinationState,
    IpvsError,
    IpvsUnavailable,
    Request,
    ServerId,
    Statistics,
    Timeouts,
    VirtualServer,
)
from kproxy.kernel.netlink.generic import NETLINK_GENERIC, family_id
from kproxy.kernel.netlink.socket import NetlinkSocket

_PROBE = ServerId("TCP", "198.51.100.0", 20000)
"""The virtual server that probes schedulers: an address for documentation (RFC 5737), as in kube-proxy."""

_NO_SUCH_SERVER = frozenset({errno.ESRCH, errno.ENOENT})


class NetlinkIpvs:
    """IPVS over generic netlink; the socket is opened, and the kernel module loaded, on first use.

    Virtual servers are read repeatedly for drift checks and rarely differ: the last result is kept, and
    answers with the same digest are not decoded.
    """

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None
        self._family_id = 0
        self._digest = b""
        self._servers: dict[Family, dict[ServerId, VirtualServer]] = {}
        self._marks: dict[Family, frozenset[int]] = {}

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Apply the requests in order; return the errno of each refused one by index. Raises IpvsError."""
        if not requests:
            return {}
        return self._batch("change virtual servers", [codec.encode(request) for request in requests])

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """All virtual servers of a family that are keyed by address. Raises IpvsError."""
        answers = self._dump("list virtual servers", codec.header(codec.CMD_GET_SERVICE))
        if (digest := codec.digest(answers)) != self._digest:
            self._servers = {each: {} for each in Family}
            marks: dict[Family, set[int]] = {each: set() for each in Family}
            for answer in answers:
                if (decoded := codec.decode_service(answer)) is not None:
                    self._servers[decoded[0].family][decoded[0]] = decoded[1]
                elif (marked := codec.decode_mark(answer)) is not None:
                    marks[marked[0]].add(marked[1])
            self._marks = {each: frozenset(found) for each, found in marks.items()}
            self._digest = digest
        return dict(self._servers[family])

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of all virtual servers of a family. Raises IpvsError."""
        answers = self._dump("read counters", codec.header(codec.CMD_GET_SERVICE))
        found = (decoded for answer in answers if (decoded := codec.decode_statistics(answer)) is not None)
        return {server: counters for server, counters in found if server.family is family}

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of one virtual server; empty if there is none. Raises IpvsError."""
        answers = self._dump("list destinations", codec.encode_destinations_of(server))
        return dict(codec.decode_destination(answer, server.family) for answer in answers)

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has a scheduler or can load it; probed by a virtual server that uses it.

        An existing one without destinations was left by an interrupted probe; it is used and removed.
        """
        left = _PROBE in self.servers(Family.IPV4)
        if left and self.destinations(_PROBE):
            raise IpvsError(
                f"{_PROBE.ip} port {_PROBE.port} is taken by a virtual server: no room for a trial"
            )
        wanted = VirtualServer(name)
        failures = self.apply([Request(Command.SET_SERVICE if left else Command.NEW_SERVICE, _PROBE, wanted)])
        if failures and failures[0] != errno.ENOENT:
            raise IpvsError(f"cannot try scheduler {name}: {os.strerror(failures[0])}")
        try:
            return not failures and self.servers(Family.IPV4).get(_PROBE) == wanted
        finally:
            if left or not failures:
                self.apply([Request(Command.DEL_SERVICE, _PROBE)])

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set the timeouts that are not 0. Raises IpvsError."""
        now = self.timeouts()
        wanted = Timeouts(timeouts.tcp or now.tcp, timeouts.tcp_fin or now.tcp_fin, timeouts.udp or now.udp)
        self._ask("set timeouts", codec.encode_timeouts(wanted))

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks of virtual servers, as the last `servers` read them."""
        return self._marks.get(family, frozenset())

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:
        """See Ipvs.add_local_mark. Raises IpvsError."""
        exists = mark in self._read_marks(family)
        if exists and self._destinations_of_mark(family, mark):
            return False
        requests = [codec.encode_mark(Command.NEW_DEST, family, mark)]
        if not exists:
            requests.insert(0, codec.encode_mark(Command.NEW_SERVICE, family, mark, scheduler))
        failures = self._batch("make the virtual server of a mark", requests)
        failed = [code for code in failures.values() if code != errno.EEXIST]
        if failed:
            raise IpvsError(f"cannot make the virtual server of mark {mark:#x}: {os.strerror(failed[0])}")
        return True

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Remove the virtual server of a mark that leads to the node itself. Raises IpvsError."""
        if mark not in self._read_marks(family):
            return
        if self._destinations_of_mark(family, mark) <= {codec.local_destination(family)}:
            self._batch(
                "remove the virtual server of a mark", [codec.encode_mark(Command.DEL_SERVICE, family, mark)]
            )

    def _read_marks(self, family: Family) -> frozenset[int]:
        self.servers(family)
        return self.marks(family)

    def _destinations_of_mark(self, family: Family, mark: int) -> set[DestinationId]:
        answers = self._dump("list destinations", codec.encode_destinations_of_mark(family, mark))
        return {codec.decode_destination(answer, family)[0] for answer in answers}

    def _batch(self, what: str, payloads: Sequence[bytes]) -> Mapping[int, int]:
        sock = self._open()
        try:
            return sock.batch([(self._family_id, 0, payload) for payload in payloads])
        except OSError as error:
            raise self._failed(what, error) from error

    def timeouts(self) -> Timeouts:
        """IPVS' own connection timeouts. Raises IpvsError."""
        answers = self._ask("read timeouts", codec.header(codec.CMD_GET_CONFIG))
        return codec.decode_timeouts(answers[0]) if answers else Timeouts()

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            try:
                sock = NetlinkSocket(NETLINK_GENERIC)
            except OSError as error:
                raise IpvsUnavailable(f"no netlink socket for IPVS: {error.strerror}") from error
            try:
                self._family_id = family_id(sock, codec.FAMILY_NAME)
            except OSError as error:
                sock.close()
                if error.errno == errno.ENOENT:
                    raise IpvsUnavailable("this kernel has no IPVS (tried: modprobe ip_vs)") from error
                raise self._failed("be asked for", error) from error
            self._socket = sock
        return self._socket

    def _dump(self, what: str, payload: bytes) -> list[bytes]:
        sock = self._open()
        try:
            return sock.dump(self._family_id, payload)
        except OSError as error:
            if error.errno in _NO_SUCH_SERVER:
                return []
            raise self._failed(what, error) from error

    def _ask(self, what: str, payload: bytes) -> list[bytes]:
        sock = self._open()
        try:
            return sock.ask(self._family_id, 0, payload)
        except OSError as error:
            raise self._failed(what, error) from error

    def _failed(self, what: str, error: OSError) -> IpvsError:
        """Close the socket, which may still receive answers to failed requests, and return the error."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        kind = IpvsUnavailable if error.errno in {errno.EPERM, errno.EACCES} else IpvsError
        return kind(f"IPVS: cannot {what}: {error.strerror or error}")
