"""ipset requests as netlink payloads, and the kernel's answers as values.

Layouts are those of include/uapi/linux/netfilter/ipset/ip_set.h. A change goes in an IPSET_ATTR_DATA of its
own; only the IPSET_ATTR_ADT form, many entries to a message, has to bring an IPSET_ATTR_LINENO.
"""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache

from kproxy.addresses import Family
from kproxy.kernel.ipset.types import MAX_ELEMENTS, Entry, EntryChange, SetHeader, SetKind, SetSpec
from kproxy.kernel.netlink.messages import (
    NLA_F_NET_BYTEORDER,
    attribute,
    attributes,
    every_attribute,
    nested,
)

SUBSYSTEM = 6
CMD_PROTOCOL = 1
CMD_CREATE, CMD_DESTROY, CMD_LIST, CMD_ADD, CMD_DEL, CMD_TYPE = 2, 3, 7, 9, 10, 13

PROTOCOL_VERSION = 6
"""The version in every request. Newer kernels also support 7, whose additions are not needed here."""

_PROTOCOL, _SETNAME, _TYPENAME, _REVISION, _FAMILY, _FLAGS, _DATA, _ADT = 1, 2, 3, 4, 5, 6, 7, 8
_PROTOCOL_MIN = 10
_IP, _PORT, _PROTO, _CADT_FLAGS, _IP2, _CIDR2 = 1, 4, 7, 8, 20, 21
_MAXELEM, _ELEMENTS, _REFERENCES = 19, 24, 25
_IPADDR_IPV4, _IPADDR_IPV6 = 1, 2
_FLAG_LIST_HEADER = 1 << 2
_FLAG_NOMATCH = 1 << 2

_NFGENMSG = struct.Struct("!BBH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_FAMILIES = {int(number): family for family, number in _AF.items()}
_PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}

_REASONS = {
    errno.ENOENT: "there is no such set",
    errno.EEXIST: "it exists with other properties",
    4097: "the kernel does not understand the request",
    4098: "the kernel does not have this type of set",
    4099: "there are too many sets",
    4100: "it is in use by a rule",
    4103: "the entry exists, or does not, already",
    4104: "the prefix length is not possible",
    4105: "the netmask is not possible",
    4106: "the family is not possible",
    4107: "the set has no timeouts",
    4108: "it is in use by another set",
    4109: "an IPv4 address is expected",
    4110: "an IPv6 address is expected",
    4352: "the set is full",
    4353: "an element of it cannot be stored",
    4354: "the protocol is not possible",
    4355: "the protocol is missing",
    4356: "ranges are not possible",
    4357: "the range is too large",
}
"""The meaning of errnos for ipset, and of its own codes: enum ipset_errno of ip_set.h and ip_set_hash.h."""


def reason(code: int) -> str:
    """Return why the kernel refused a request, as text."""
    if code in _REASONS:
        return _REASONS[code]
    return os.strerror(code) if code in errno.errorcode else f"ipset error {code}"


def command(number: int) -> int:
    """The netlink message type of a command."""
    return SUBSYSTEM << 8 | number


def encode_change(change: EntryChange) -> bytes:
    """The payload of an addition or removal."""
    entry = change.entry
    parts = [_encode_ip(_IP, entry.ip)]
    if entry.protocol:
        parts.append(attribute(_PORT | NLA_F_NET_BYTEORDER, _U16.pack(entry.port)))
        parts.append(attribute(_PROTO, bytes((_number(entry.protocol),))))
    if change.set.kind is SetKind.IP_PORT_IP:
        parts.append(_encode_ip(_IP2, entry.other))
    elif change.set.kind is SetKind.IP_PORT_NET:
        network, _, length = entry.other.partition("/")
        parts.append(_encode_ip(_IP2, network))
        parts.append(attribute(_CIDR2, bytes((int(length),))))
    return _named(change.set.name, change.set.family) + nested(_DATA, *parts)


def encode_protocol() -> bytes:
    """The payload of a request for the protocol versions that the kernel supports."""
    return _preamble(Family.IPV4)


def decode_protocol(payload: bytes) -> tuple[int, int]:
    """Return the oldest and the newest protocol version that the kernel supports."""
    found = attributes(payload[_NFGENMSG.size :])
    newest = found[_PROTOCOL][0]
    return found[_PROTOCOL_MIN][0] if _PROTOCOL_MIN in found else newest, newest


def encode_type(kind: SetKind, family: Family) -> bytes:
    """The payload of a request for the revisions of a set type."""
    return _preamble(family) + _text(_TYPENAME, kind) + attribute(_FAMILY, bytes((_AF[family],)))


def decode_revision(payload: bytes) -> int:
    """The newest revision that the kernel has of a set type."""
    return attributes(payload[_NFGENMSG.size :])[_REVISION][0]


def encode_create(spec: SetSpec, revision: int) -> bytes:
    """The payload that creates a set."""
    return (
        _named(spec.name, spec.family)
        + _text(_TYPENAME, spec.kind)
        + attribute(_REVISION, bytes((revision,)))
        + attribute(_FAMILY, bytes((_AF[spec.family],)))
        + nested(_DATA, attribute(_MAXELEM | NLA_F_NET_BYTEORDER, _U32.pack(MAX_ELEMENTS)))
    )


def encode_destroy(name: str) -> bytes:
    """The payload that destroys a set."""
    return _named(name, Family.IPV4)


def encode_list_headers(name: str | None = None) -> bytes:
    """The payload of a dump of all sets, or of one, without their entries."""
    start = _preamble(Family.IPV4) if name is None else _named(name, Family.IPV4)
    return start + attribute(_FLAGS | NLA_F_NET_BYTEORDER, _U32.pack(_FLAG_LIST_HEADER))


def encode_list(name: str) -> bytes:
    """The payload of a dump of one set."""
    return _named(name, Family.IPV4)


def decode_header(payload: bytes) -> SetHeader | None:
    """The header in one message of a dump; None if the message continues an earlier one."""
    found = attributes(payload[_NFGENMSG.size :])
    if _SETNAME not in found or _TYPENAME not in found:
        return None
    data = attributes(found.get(_DATA, b""))

    def value(kind: int) -> int:
        return int(_U32.unpack(data[kind])[0]) if kind in data else 0

    family = found.get(_FAMILY, b"\0")[0]
    return SetHeader(
        _decode_text(found[_SETNAME]),
        _decode_text(found[_TYPENAME]),
        _FAMILIES.get(family),
        value(_MAXELEM),
        value(_ELEMENTS),
        value(_REFERENCES),
    )


def decode_entries(payload: bytes, spec: SetSpec) -> Iterator[Entry]:
    """The entries in one message of a dump of a set of this type.

    Exceptions ("nomatch") are left out, so that the entry counts as missing and is added again.
    """
    found = attributes(payload[_NFGENMSG.size :])
    for kind, data in every_attribute(found.get(_ADT, b"")):
        if kind != _DATA:
            continue
        entry = attributes(data)
        if _CADT_FLAGS not in entry or not _U32.unpack(entry[_CADT_FLAGS])[0] & _FLAG_NOMATCH:
            yield _decode_entry(entry, spec)


def _decode_entry(data: dict[int, bytes], spec: SetSpec) -> Entry:
    ip = _decode_ip(data[_IP])
    if spec.kind is SetKind.IP:
        return Entry(ip)
    protocol = _NAMES.get(data[_PROTO][0], str(data[_PROTO][0]))
    port = _U16.unpack(data[_PORT])[0]
    if spec.kind is SetKind.IP_PORT:
        return Entry(ip, protocol, port)
    other = _decode_ip(data[_IP2])
    if spec.kind is SetKind.IP_PORT_NET:
        length = data[_CIDR2][0] if _CIDR2 in data else spec.family.host_bits
        other = f"{other}/{length}"
    return Entry(ip, protocol, port, other)


def _number(protocol: str) -> int:
    """Return a protocol's number; other protocols than the three are named by their number."""
    return _PROTOCOLS[protocol] if protocol in _PROTOCOLS else int(protocol)


def _preamble(family: Family) -> bytes:
    return _NFGENMSG.pack(_AF[family], 0, 0) + attribute(_PROTOCOL, bytes((PROTOCOL_VERSION,)))


@lru_cache(maxsize=256)
def _named(name: str, family: Family) -> bytes:
    return _preamble(family) + _text(_SETNAME, name)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode("ascii") + b"\0")


def _decode_text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "replace")


def _encode_ip(kind: int, ip: str) -> bytes:
    if ":" in ip:
        return nested(
            kind, attribute(_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, socket.inet_pton(socket.AF_INET6, ip))
        )
    return nested(kind, attribute(_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, socket.inet_aton(ip)))


def _decode_ip(payload: bytes) -> str:
    found = attributes(payload)
    if _IPADDR_IPV4 in found:
        return socket.inet_ntoa(found[_IPADDR_IPV4])
    text = socket.inet_ntop(socket.AF_INET6, found[_IPADDR_IPV6])
    # inet_ntop is ten times as fast, and canonical except for embedded IPv4 addresses.
    return ipaddress.IPv6Address(found[_IPADDR_IPV6]).compressed if "." in text else text
