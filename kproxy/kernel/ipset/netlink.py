"""The kernel's sets, in the network namespace of the thread that uses them first."""

import errno
from collections.abc import Mapping, Sequence

from kproxy.addresses import Family
from kproxy.kernel.ipset import codec
from kproxy.kernel.ipset.types import (
    Entry,
    EntryChange,
    IpsetError,
    IpsetUnavailable,
    SetHeader,
    SetKind,
    SetSpec,
)
from kproxy.kernel.netlink.messages import NLM_F_CREATE
from kproxy.kernel.netlink.socket import NetlinkLost, NetlinkSocket

_NETLINK_NETFILTER = 12
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
_MISSING = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""Errors of nfnetlink for a subsystem that the kernel does not have and cannot load."""


class NetlinkIpset:
    """Sets over nfnetlink; the socket is opened, and the kernel module loaded, on first use."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None
        self._revisions: dict[tuple[SetKind, Family], int] = {}

    def headers(self) -> dict[str, SetHeader]:
        """Every set by name. Raises IpsetError."""
        answers = self._dump("list sets", codec.encode_list_headers())
        found = (header for answer in answers if (header := codec.decode_header(answer)) is not None)
        return {header.name: header for header in found}

    def create(self, spec: SetSpec) -> None:
        """Create a set; one that exists with the same properties is left alone. Raises IpsetError.

        Without NLM_F_EXCL the kernel compares type, limit and extensions of an existing set, but not the
        family (ip_set_create and mtype_same_set in net/netfilter/ipset).
        """
        what = f"create set {spec.name}"
        payload = codec.encode_create(spec, self._revision(spec))
        self._do(what, codec.CMD_CREATE, payload, NLM_F_CREATE)
        headers = map(codec.decode_header, self._dump(what, codec.encode_list_headers(spec.name)))
        self._check(what, spec, next(headers, None))

    def destroy(self, name: str) -> None:
        """Destroy a set; one that does not exist is no error. Raises IpsetError if a rule refers to it."""
        self._do(f"destroy set {name}", codec.CMD_DESTROY, codec.encode_destroy(name), but=errno.ENOENT)

    def entries(self, spec: SetSpec) -> frozenset[Entry]:
        """Return all entries; empty if the set does not exist. Raises IpsetError, also for a wrong type."""
        what = f"list set {spec.name}"
        answers = self._dump(what, codec.encode_list(spec.name))
        self._check(what, spec, codec.decode_header(answers[0]) if answers else None)
        return frozenset(entry for answer in answers for entry in codec.decode_entries(answer, spec))

    def apply(self, changes: Sequence[EntryChange]) -> Mapping[int, int]:
        """Apply the changes in order; return the errno of each refused one by index. Raises IpsetError."""
        if not changes:
            return {}
        sock = self._open()
        requests = [
            (codec.command(codec.CMD_ADD if change.add else codec.CMD_DEL), 0, codec.encode_change(change))
            for change in changes
        ]
        try:
            return sock.batch(requests)
        except OSError as error:
            raise self._failed("change sets", error) from error

    def _revision(self, spec: SetSpec) -> int:
        key = (spec.kind, spec.family)
        if key not in self._revisions:
            answers = self._do(
                f"use sets of type {spec.kind}", codec.CMD_TYPE, codec.encode_type(spec.kind, spec.family)
            )
            self._revisions[key] = codec.decode_revision(answers[0])
        return self._revisions[key]

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            try:
                sock = NetlinkSocket(_NETLINK_NETFILTER)
            except OSError as error:
                raise IpsetUnavailable(f"no netlink socket for ipset: {error.strerror}") from error
            try:
                _check_protocol(sock)
            except IpsetError:
                sock.close()
                raise
            self._socket = sock
        return self._socket

    def _do(
        self, what: str, number: int, payload: bytes, flags: int = 0, *, but: int | None = None
    ) -> list[bytes]:
        sock = self._open()
        try:
            return sock.ask(codec.command(number), flags, payload)
        except OSError as error:
            if error.errno == but:
                return []
            raise self._failed(what, error) from error

    def _dump(self, what: str, payload: bytes) -> list[bytes]:
        sock = self._open()
        try:
            return sock.dump(codec.command(codec.CMD_LIST), payload)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise self._failed(what, error) from error

    @staticmethod
    def _check(what: str, spec: SetSpec, found: SetHeader | None) -> None:
        """Raise IpsetError if a set has the name and is of another type or family."""
        if found is not None and (found.type, found.family) != (spec.kind, spec.family):
            raise IpsetError(
                f"ipset: cannot {what}: it exists as {found.type} of {found.family or 'no family'}"
            )

    def _failed(self, what: str, error: OSError) -> IpsetError:
        """Close the socket, which may still receive answers to failed requests, and return the error."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        kind = IpsetUnavailable if error.errno in _FORBIDDEN else IpsetError
        return kind(f"ipset: cannot {what}: {_reason(error)}")


def _check_protocol(sock: NetlinkSocket) -> None:
    """Check that the kernel has ipset and supports PROTOCOL_VERSION. Raises IpsetError."""
    try:
        answers = sock.ask(codec.command(codec.CMD_PROTOCOL), 0, codec.encode_protocol())
    except OSError as error:
        if error.errno in _MISSING:
            raise IpsetUnavailable("this kernel has no ipset (tried: modprobe ip_set)") from error
        kind = IpsetUnavailable if error.errno in _FORBIDDEN else IpsetError
        raise kind(f"ipset cannot be used: {_reason(error)}") from error
    oldest, newest = codec.decode_protocol(answers[0])
    if not oldest <= codec.PROTOCOL_VERSION <= newest:
        raise IpsetUnavailable(
            f"this kernel speaks versions {oldest} to {newest} of the ipset protocol, "
            f"not {codec.PROTOCOL_VERSION}"
        )


def _reason(error: OSError) -> str:
    if isinstance(error, NetlinkLost) or not error.errno:
        return error.strerror or str(error)
    return codec.reason(error.errno)
