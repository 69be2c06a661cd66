"""Set requests as bytes, read back by pyroute2, which knows the kernel's layout independently."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.ipset import ipset_msg

from kproxy.addresses import Family
from kproxy.kernel.ipset import codec
from kproxy.kernel.ipset.types import MAX_ELEMENTS, Entry, EntryChange, SetHeader, SetKind, SetSpec
from kproxy.kernel.netlink.messages import attribute, message, nested

NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
NETWORK_ORDER = 0x4000
DATA, ADT = 7, 8
NOMATCH = attribute(8 | NETWORK_ORDER, struct.pack("!I", 1 << 2))


def ips(family: Family) -> st.SearchStrategy[str]:
    own = st.ip_addresses(v=4) if family is Family.IPV4 else st.ip_addresses(v=6)
    return own.map(lambda ip: ip.compressed)


@st.composite
def nets(draw: st.DrawFn, family: Family) -> str:
    length = draw(st.integers(1, family.host_bits))
    return str(ipaddress.ip_network(f"{draw(ips(family))}/{length}", strict=False))


@st.composite
def changes(draw: st.DrawFn) -> EntryChange:
    family, kind = draw(st.sampled_from(Family)), draw(st.sampled_from(SetKind))
    ip = draw(ips(family))
    entry = Entry(ip)
    if kind is not SetKind.IP:
        entry = Entry(ip, draw(st.sampled_from(sorted(NUMBERS))), draw(st.integers(0, 65535)))
    if kind is SetKind.IP_PORT_IP:
        entry = Entry(ip, entry.protocol, entry.port, draw(ips(family)))
    elif kind is SetKind.IP_PORT_NET:
        entry = Entry(ip, entry.protocol, entry.port, draw(nets(family)))
    name = draw(st.text("ABCxyz-0123456789", min_size=1, max_size=31))
    return EntryChange(SetSpec(name, kind, family), entry, draw(st.booleans()))


def read(command: int, payload: bytes) -> Any:
    """What pyroute2 makes of a payload."""
    parsed = ipset_msg(message(codec.command(command), 5, 1, payload))
    parsed.decode()
    return parsed


def plain(parsed: Any) -> dict[str, Any]:
    """Attributes by name, with their values."""
    return {attr[0].removeprefix("IPSET_ATTR_"): attr[1] for attr in parsed["attrs"]}


def address(found: Any, family: Family) -> str:
    name = "IPADDR_IPV4" if family is Family.IPV4 else "IPADDR_IPV6"
    return ipaddress.ip_address(plain(found)[name]).compressed


@given(change=changes())
def test_a_change_is_encoded_as_the_kernel_reads_it(change: EntryChange) -> None:
    spec, entry = change.set, change.entry
    parsed = read(codec.CMD_ADD if change.add else codec.CMD_DEL, codec.encode_change(change))
    top = plain(parsed)
    assert top.keys() == {"PROTOCOL", "SETNAME", "DATA"}
    assert (top["PROTOCOL"], top["SETNAME"]) == (6, spec.name)
    assert parsed["nfgen_family"] == (2 if spec.family is Family.IPV4 else 10)
    data = plain(top["DATA"])
    assert address(data.pop("IP_FROM"), spec.family) == entry.ip
    if spec.kind is not SetKind.IP:
        assert (data.pop("PORT_FROM"), data.pop("PROTO")) == (entry.port, NUMBERS[entry.protocol])
    if spec.kind is SetKind.IP_PORT_IP:
        assert address(data.pop("IP2"), spec.family) == entry.other
    elif spec.kind is SetKind.IP_PORT_NET:
        assert f"{address(data.pop('IP2'), spec.family)}/{data.pop('CIDR2')}" == entry.other
    assert data == {}


def dumped(*entries: bytes) -> bytes:
    """A message of a dump that holds entries, each given as its attributes."""
    return b"\2\0\0\0" + nested(ADT, *(nested(DATA, entry) for entry in entries))


def attributes_of(change: EntryChange) -> bytes:
    """What stands in the data attribute of a change, which comes last; a dump has the same."""
    payload = codec.encode_change(change)
    start = len(codec.encode_destroy(change.set.name)) + 4
    return payload[start:]


@given(change=changes())
def test_what_is_written_is_read_back(change: EntryChange) -> None:
    answer = dumped(attributes_of(change), attributes_of(change))
    assert list(codec.decode_entries(answer, change.set)) == [change.entry, change.entry]


@given(change=changes(), number=st.integers(0, 255).filter(lambda n: n not in NUMBERS.values()))
def test_an_entry_of_a_protocol_that_is_not_ours_can_be_read_and_removed(
    change: EntryChange, number: int
) -> None:
    spec = SetSpec(change.set.name, SetKind.IP_PORT, change.set.family)
    foreign = EntryChange(spec, Entry(change.entry.ip, str(number), 2048), add=False)
    assert list(codec.decode_entries(dumped(attributes_of(foreign)), spec)) == [foreign.entry]


@given(change=changes())
def test_an_exception_does_not_count_as_an_entry(change: EntryChange) -> None:
    entry = attributes_of(change)
    assert list(codec.decode_entries(dumped(entry + NOMATCH, entry), change.set)) == [change.entry]


def test_a_host_in_a_set_of_networks_is_dumped_without_its_length() -> None:
    for family, own in ((Family.IPV4, "10.0.0.1"), (Family.IPV6, "fd00::1")):
        spec = SetSpec("nets", SetKind.IP_PORT_NET, family)
        change = EntryChange(spec, Entry(own, "TCP", 80, f"{own}/{family.host_bits}"), add=True)
        without_length = attributes_of(change)[:-8]
        assert list(codec.decode_entries(dumped(without_length), spec)) == [change.entry]


@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("kind", list(SetKind), ids=str)
def test_a_set_is_created_with_room_for_a_large_cluster(kind: SetKind, family: Family) -> None:
    top = plain(read(codec.CMD_CREATE, codec.encode_create(SetSpec("one", kind, family), 5)))
    assert (top["SETNAME"], top["TYPENAME"], top["REVISION"]) == ("one", kind, 5)
    assert top["FAMILY"] == (2 if family is Family.IPV4 else 10)
    assert plain(top["DATA"]) == {"MAXELEM": MAX_ELEMENTS}


def test_questions_name_what_they_are_about() -> None:
    assert plain(read(codec.CMD_PROTOCOL, codec.encode_protocol())) == {"PROTOCOL": 6}
    assert plain(read(codec.CMD_TYPE, codec.encode_type(SetKind.IP, Family.IPV6))) == {
        "PROTOCOL": 6,
        "TYPENAME": "hash:ip",
        "FAMILY": 10,
    }
    assert plain(read(codec.CMD_DESTROY, codec.encode_destroy("one"))) == {"PROTOCOL": 6, "SETNAME": "one"}
    assert plain(read(codec.CMD_LIST, codec.encode_list("one"))) == {"PROTOCOL": 6, "SETNAME": "one"}
    assert plain(read(codec.CMD_LIST, codec.encode_list_headers())) == {"PROTOCOL": 6, "FLAGS": 4}
    assert plain(read(codec.CMD_LIST, codec.encode_list_headers("one")))["SETNAME"] == "one"


def test_versions_of_the_protocol() -> None:
    assert codec.decode_protocol(b"\0\0\0\0" + attribute(1, b"\7") + attribute(10, b"\6")) == (6, 7)
    assert codec.decode_protocol(b"\0\0\0\0" + attribute(1, b"\6")) == (6, 6)


def test_a_header_of_a_set_that_has_no_family_or_limit() -> None:
    start = b"\0\0\0\0" + attribute(2, b"ports\0")
    assert codec.decode_header(start) is None
    assert codec.decode_header(start + attribute(3, b"bitmap:port\0")) == SetHeader(
        "ports", "bitmap:port", None, 0, 0, 0
    )
    data = nested(
        DATA, *(attribute(kind, struct.pack("!I", number)) for kind, number in ((19, 9), (24, 3), (25, 2)))
    )
    header = start + attribute(3, b"hash:ip\0") + attribute(5, b"\n") + data
    assert codec.decode_header(header) == SetHeader("ports", "hash:ip", Family.IPV6, 9, 3, 2)
