"""Addresses: what is accepted, how it is printed, and that nothing else gets through."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import (
    Family,
    cidr_contains,
    cidr_interval,
    from_number,
    host_cidr,
    is_loopback,
    join_host_port,
    parse_cidr,
    parse_ip,
    to_number,
)

V4, V6 = Family.IPV4, Family.IPV6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", (V4, "10.0.0.1")),
        ("010.000.000.001", (V4, "10.0.0.1")),
        ("1.2.3.08", (V4, "1.2.3.8")),
        ("0.0.0.0", (V4, "0.0.0.0")),
        ("255.255.255.255", (V4, "255.255.255.255")),
        ("::ffff:1.2.3.4", (V4, "1.2.3.4")),
        ("::FFFF:102:304", (V4, "1.2.3.4")),
        ("fd00::1", (V6, "fd00::1")),
        ("FD00:0:0:0:0:0:0:1", (V6, "fd00::1")),
        ("fd00::0:0:1:0:0:0", (V6, "fd00::1:0:0:0")),
        ("::", (V6, "::")),
        ("::1", (V6, "::1")),
        ("64:ff9b::1.2.3.4", (V6, "64:ff9b::102:304")),
    ],
)
def test_an_address_has_one_printed_form(text: str, expected: tuple[Family, str]) -> None:
    assert parse_ip(text) == expected


NOT_ADDRESSES = [
    "",
    " ",
    "10.0.0.1 ",
    " 10.0.0.1",
    "10.0.0.1\n",
    "10.0.0.1\n-A KUBE-SERVICES -j DROP",
    "10.0.0.1\0",
    "10.0.0.1 -j ACCEPT",
    "10.0.0.256",
    "10.0.0",
    "10.0.0.0.1",
    "10.0.0.-1",
    "10.0.0.+1",
    "10.0.0.0x1",
    "10.0.0.1_0",
    "10.0.0.²",
    "10.0.0.\u0661",
    "1" * 10_000 + ".0.0.0",
    "10.0.0.1/32",
    "10.0.0.1:80",
    "[fd00::1]",
    "[fd00::1]:80",
    "fd00::1%eth0",
    "fd00::1\n",
    "fd00::1::2",
    ":",
    ":::",
    "12345::",
    "::ffff:1.2.3",
    "::ffff:1.2.3.04",
    "localhost",
    "\ud800",
    "fd00::\ud800",
    "167772161",
]


@pytest.mark.parametrize("text", NOT_ADDRESSES)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        parse_ip(text)
    with pytest.raises(ValueError, match=r"not a CIDR|out of range"):
        parse_cidr(text + "/32")


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f:.%/ \n]{0,40}", fullmatch=True))
def test_no_text_comes_back_as_it_went_in_unless_it_is_an_address(text: str) -> None:
    try:
        family, printed = parse_ip(text)
    except ValueError:
        return
    assert str(ipaddress.ip_address(printed)) == printed
    assert family is (V6 if ":" in printed else V4)
    assert parse_ip(printed) == (family, printed)


@given(st.ip_addresses())
def test_every_address_is_accepted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    assert parse_ip(str(address))[1] == str(mapped or address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/24", (V4, "10.1.2.0/24")),
        ("010.001.2.3/08", (V4, "10.0.0.0/8")),
        ("10.0.0.1/32", (V4, "10.0.0.1/32")),
        ("0.0.0.0/0", (V4, "0.0.0.0/0")),
        ("1.2.3.4/0", (V4, "0.0.0.0/0")),
        ("::ffff:10.1.2.3/120", (V4, "10.1.2.0/24")),
        ("fd00::1/64", (V6, "fd00::/64")),
        ("FD00::/128", (V6, "fd00::/128")),
        ("::/0", (V6, "::/0")),
    ],
)
def test_a_cidr_has_one_printed_form(text: str, expected: tuple[Family, str]) -> None:
    assert parse_cidr(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1",
        "10.0.0.0/",
        "/8",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/8 ",
        "10.0.0.0/8\n",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/8/8",
        "10.0.0.0/\u0668",
        "10.0.0.0/" + "0" * 5000 + "8",
        "::ffff:10.0.0.0/90",
        "10.0.0.0/8,10.0.0.0/9",
    ],
)
def test_what_is_not_a_cidr_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a CIDR|out of range"):
        parse_cidr(text)


def test_helpers_tell_the_families_apart() -> None:
    assert (host_cidr("10.0.0.1"), host_cidr("fd00::1")) == ("10.0.0.1/32", "fd00::1/128")
    assert (join_host_port("10.0.0.1", 80), join_host_port("fd00::1", 80)) == ("10.0.0.1:80", "[fd00::1]:80")
    assert cidr_contains("10.0.0.0/8", "10.255.0.1")
    assert not cidr_contains("10.0.0.0/8", "11.0.0.1")
    assert not cidr_contains("::/0", "10.0.0.1")
    assert [is_loopback(a) for a in ("127.0.0.1", "127.9.9.9", "::1", "128.0.0.1", "::", "fd00::1")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert (V4.host_bits, V6.host_bits) == (32, 128)


@given(st.ip_addresses(), st.integers(0, 128))
def test_numbers_of_addresses_and_cidrs_are_those_of_the_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int
) -> None:
    family, text = parse_ip(str(address))
    assert from_number(family, to_number(text)) == text
    number = int(address)
    assert to_number(from_number(V6, number)) == number
    network = ipaddress.ip_network(f"{text}/{length % (family.host_bits + 1)}", strict=False)
    assert parse_cidr(f"{text}/{network.prefixlen}") == (family, str(network))
    assert cidr_interval(str(network)) == (int(network.network_address), int(network.broadcast_address))
