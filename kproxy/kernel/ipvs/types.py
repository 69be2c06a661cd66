"""IPVS objects as values, and the interface to IPVS.

Backends use virtual servers and destinations only through these types, so that the kernel and models in
memory are interchangeable.
"""

import enum
import errno
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from kproxy.addresses import Family

PERSISTENT = 0x1
"""IP_VS_SVC_F_PERSISTENT (include/uapi/linux/ip_vs.h): a client keeps its destination for `timeout`."""
SCHED1 = 0x8
"""IP_VS_SVC_F_SCHED1: sh-fallback, mh-fallback."""
SCHED2 = 0x10
"""IP_VS_SVC_F_SCHED2: sh-port, mh-port."""
SETTABLE_FLAGS = PERSISTENT | SCHED1 | SCHED2
"""The flags that kproxy sets; the kernel has further flags (HASHED, ONEPACKET) in the same word."""

MASQUERADE = 0
"""IP_VS_CONN_F_MASQ, the only forwarding method that a service proxy can use."""
DIRECT_ROUTING = 3
"""IP_VS_CONN_F_DROUTE: to a local address, packets go to the node's own sockets as they are."""


class ServerId(msgspec.Struct, frozen=True, order=True, gc=False):
    """The kernel's key of a virtual server: `protocol` TCP, UDP or SCTP, canonical address, port."""

    protocol: str
    ip: str
    port: int

    @property
    def family(self) -> Family:
        """The family of its address."""
        return Family.IPV6 if ":" in self.ip else Family.IPV4


class VirtualServer(msgspec.Struct, frozen=True, gc=False):
    """A virtual server's settings. `timeout` (seconds) is used with PERSISTENT only; else it is 0."""

    scheduler: str
    flags: int = 0
    timeout: int = 0


class DestinationId(msgspec.Struct, frozen=True, order=True, gc=False):
    """The kernel's key of a destination of a virtual server."""

    ip: str
    port: int


class DestinationState(msgspec.Struct, frozen=True, gc=False):
    """A destination as the kernel reports it; `active` and `inactive` count its connections."""

    weight: int
    forwarding: int = MASQUERADE
    active: int = 0
    inactive: int = 0

    @property
    def connections(self) -> int:
        """Number of connections, including closing ones, which count as inactive."""
        return self.active + self.inactive


class Statistics(msgspec.Struct, frozen=True, gc=False):
    """Counters of a virtual server since it was made (struct ip_vs_kstats); `in` is from clients.

    The kernel adds them up every two seconds (ip_vs_est.c), so they are up to two seconds old.
    """

    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Command(enum.Enum):
    """The modifying requests; the values are IPVS_CMD_* of include/uapi/linux/ip_vs.h."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7


class Request(msgspec.Struct, frozen=True, gc=False):
    """One change. `settings`: for NEW_SERVICE and SET_SERVICE; `destination`: for the *_DEST commands.

    `weight`: for NEW_DEST and SET_DEST.
    """

    command: Command
    server: ServerId
    settings: VirtualServer | None = None
    destination: DestinationId | None = None
    weight: int = 0


class Timeouts(msgspec.Struct, frozen=True):
    """IPVS' own connection timeouts in seconds, as of `ipvsadm --set`; 0 leaves one as it is."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class IpvsError(Exception):
    """A request failed or its outcome is unknown: the kernel must be read again."""


class IpvsUnavailable(IpvsError):
    """The kernel has no IPVS, or this process may not use it."""


class Ipvs(Protocol):
    """IPVS in one network namespace; serves both families."""

    def apply(self, requests: Sequence[Request]) -> Mapping[int, int]:
        """Apply the requests in order, each on its own.

        Returns the errno of each refused one, by its index in `requests`; an empty mapping means that all
        succeeded. Raises IpvsError if the outcome of any is unknown (lost acknowledgements).
        """

    def servers(self, family: Family) -> dict[ServerId, VirtualServer]:
        """Return a family's virtual servers that are keyed by address, foreign ones too. Raises IpvsError."""

    def statistics(self, family: Family) -> dict[ServerId, Statistics]:
        """The counters of all virtual servers of a family that are keyed by address. Raises IpvsError."""

    def destinations(self, server: ServerId) -> dict[DestinationId, DestinationState]:
        """The destinations of one virtual server; empty if there is no such server. Raises IpvsError."""

    def has_scheduler(self, name: str) -> bool:
        """Whether the kernel has a scheduler or can load it, by a probe. Raises IpvsError."""

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set IPVS' own connection timeouts. Raises IpvsError."""

    def marks(self, family: Family) -> frozenset[int]:
        """The firewall marks that virtual servers of a family are keyed by, as the last `servers` read them.

        IPVS searches marks before addresses (ip_vs_service_find in ip_vs_ctl.c).
        """

    def add_local_mark(self, family: Family, mark: int, scheduler: str) -> bool:
        """Lead packets with a mark to the node's own sockets; this takes precedence over virtual servers.

        Makes a virtual server of the mark with the node itself as its only destination; True if it was made.
        An existing one with other destinations is left alone. Raises IpvsError.
        """

    def remove_local_mark(self, family: Family, mark: int) -> None:
        """Remove the virtual server that `add_local_mark` made; others stay. Raises IpvsError."""


def reason(command: Command, code: int) -> str:
    """Return why the kernel refused a request, as text."""
    match command, code:
        case Command.NEW_SERVICE, errno.EEXIST:
            return "a virtual server with this address and port exists already"
        case ((Command.NEW_SERVICE | Command.SET_SERVICE), errno.ENOENT):
            return "the kernel has no such scheduler"
        case _, errno.ESRCH:
            return "there is no such virtual server"
        case _:
            return errno.errorcode.get(code, str(code))
