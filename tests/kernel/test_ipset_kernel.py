"""Sets of the real kernel that others made or changed, and kernels whose sets cannot be used."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess

import pytest

from kproxy.addresses import Family
from kproxy.kernel.ipset import codec
from kproxy.kernel.ipset import netlink as under_test
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import (
    MAX_ELEMENTS,
    Entry,
    EntryChange,
    IpsetError,
    IpsetUnavailable,
    SetKind,
    SetSpec,
)
from kproxy.kernel.netlink.messages import attribute
from tests.kernel.namespace import fresh_network, kernel_sets

pytestmark = pytest.mark.root

ROOM = str(MAX_ELEMENTS)
_CAPABILITY_VERSION_3 = 0x20080522


def kernel() -> NetlinkIpset:
    """The sets of this namespace; skips where there can be none, or no ipset program."""
    if shutil.which("ipset") is None:
        pytest.skip("no ipset program")
    return kernel_sets()


def program(*arguments: str) -> str:
    return subprocess.run(["ipset", *arguments], check=True, capture_output=True, text=True).stdout


def spec(kind: SetKind, family: Family = Family.IPV4, name: str = "one") -> SetSpec:
    return SetSpec(name, kind, family)


@pytest.mark.parametrize(
    "made",
    [
        ("hash:ip,port", "family", "inet6", "maxelem", ROOM),
        ("hash:ip", "maxelem", ROOM),
        ("hash:ip,port", "maxelem", "65536"),
        ("hash:ip,port", "maxelem", ROOM, "timeout", "60"),
        ("bitmap:port", "range", "1-9"),
    ],
    ids=["family", "type", "limit", "timeouts", "no-family"],
)
@fresh_network
def test_a_set_with_other_properties_is_not_taken_for_ours(made: tuple[str, ...]) -> None:
    ipset, wanted = kernel(), spec(SetKind.IP_PORT)
    program("create", wanted.name, *made)
    before = program("save")
    with pytest.raises(IpsetError, match="cannot create set one: it exists"):
        ipset.create(wanted)
    assert program("save") == before


@fresh_network
def test_the_programs_own_set_of_the_same_properties_is_taken() -> None:
    ipset = kernel()
    for family, name in ((Family.IPV4, "inet"), (Family.IPV6, "inet6")):
        for kind in SetKind:
            wanted = spec(kind, family, f"{name}-{kind}")
            program("create", wanted.name, kind, "family", name, "maxelem", ROOM)
            ipset.create(wanted)
    assert len(ipset.headers()) == 8


@fresh_network
def test_a_set_of_another_type_is_an_error_to_read() -> None:
    ipset = kernel()
    program("create", "one", "hash:ip")
    program("add", "one", "10.0.0.1")
    with pytest.raises(IpsetError, match="cannot list set one: it exists as hash:ip of IPv4"):
        ipset.entries(spec(SetKind.IP_PORT))
    with pytest.raises(IpsetError, match="hash:ip of IPv4"):
        ipset.entries(spec(SetKind.IP, Family.IPV6))
    assert ipset.entries(spec(SetKind.IP)) == {Entry("10.0.0.1")}
    assert ipset.entries(spec(SetKind.IP, name="none")) == frozenset()


@fresh_network
def test_foreign_entries_of_our_sets_are_read_and_can_be_removed() -> None:
    ipset, ports, nets = kernel(), spec(SetKind.IP_PORT), spec(SetKind.IP_PORT_NET, name="nets")
    six = spec(SetKind.IP, Family.IPV6, "six")
    for each in (ports, nets, six):
        ipset.create(each)
    program("add", "one", "10.0.0.1,icmp:echo-request")
    program("add", "one", "10.0.0.1,udplite:53")
    program("add", "nets", "10.0.0.1,tcp:80,10.1.2.3/16")
    program("add", "six", "::ffff:10.0.0.1")
    found = [(each, entry) for each in (ports, nets, six) for entry in ipset.entries(each)]
    assert len(found) == 4
    assert ipset.apply([EntryChange(each, entry, add=False) for each, entry in found]) == {}
    assert "add " not in program("save")


@fresh_network
def test_an_exception_is_no_entry_and_becomes_one_by_adding_it() -> None:
    ipset, nets = kernel(), spec(SetKind.IP_PORT_NET)
    ipset.create(nets)
    program("add", "one", "10.0.0.1,tcp:80,10.1.0.0/16", "nomatch")
    assert ipset.entries(nets) == frozenset()
    entry = Entry("10.0.0.1", "TCP", 80, "10.1.0.0/16")
    assert ipset.apply([EntryChange(nets, entry, add=True)]) == {}
    assert ipset.entries(nets) == {entry}
    assert program("save").splitlines()[1:] == ["add one 10.0.0.1,tcp:80,10.1.0.0/16"]


@fresh_network
def test_halves_of_everything_can_be_stored() -> None:
    ipset = kernel()
    halves = {Family.IPV4: ("0.0.0.0/1", "128.0.0.0/1"), Family.IPV6: ("::/1", "8000::/1")}
    for family, own in ((Family.IPV4, "10.0.0.1"), (Family.IPV6, "fd00::1")):
        nets = spec(SetKind.IP_PORT_NET, family, family.value)
        ipset.create(nets)
        entries = [Entry(own, "TCP", 80, half) for half in halves[family]]
        assert ipset.apply([EntryChange(nets, entry, add=True) for entry in entries]) == {}
        assert ipset.entries(nets) == set(entries)


@fresh_network
def test_a_refused_entry_stops_no_other() -> None:
    ipset, small = kernel(), spec(SetKind.IP)
    program("create", "one", "hash:ip", "maxelem", "300")
    changes = [EntryChange(small, Entry(f"10.0.{n >> 8}.{n & 255}"), add=True) for n in range(1, 401)]
    full = errno_of("the set is full")
    assert ipset.apply(changes) == dict.fromkeys(range(300, 400), full)
    assert ipset.headers()["one"].entries == 300


def errno_of(words: str) -> int:
    return next(code for code in range(4097, 5000) if codec.reason(code) == words)


@fresh_network
def test_a_name_that_is_too_long_does_not_look_like_a_kernel_without_sets() -> None:
    with pytest.raises(IpsetError) as caught:
        kernel().create(spec(SetKind.IP, name="x" * 32))
    assert not isinstance(caught.value, IpsetUnavailable)


@fresh_network
def test_without_the_permission_sets_are_unavailable() -> None:
    kernel()
    _drop_capabilities()
    with pytest.raises(IpsetUnavailable, match="not permitted"):
        NetlinkIpset().headers()


def _drop_capabilities() -> None:
    """Take all privileges from this thread, which ends with the test (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        pytest.skip(f"cannot drop privileges: {os.strerror(ctypes.get_errno())}")


class Scripted:
    """A netlink socket of a kernel that answers the question for its version in one way."""

    answer: bytes | OSError = b""
    closed = 0

    def __init__(self, protocol: int) -> None:
        pass

    def ask(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return [self.answer]

    def close(self) -> None:
        type(self).closed += 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OSError(errno.EINVAL, "Invalid argument"), "no ipset"),
        (b"\0\0\0\0" + attribute(1, b"\x09") + attribute(10, b"\x08"), "versions 8 to 9 .* not 6"),
        (b"\0\0\0\0" + attribute(1, b"\x05"), "versions 5 to 5 .* not 6"),
    ],
    ids=["no-module", "newer", "older"],
)
def test_a_kernel_that_cannot_be_spoken_to(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | OSError, words: str
) -> None:
    monkeypatch.setattr(under_test, "NetlinkSocket", Scripted)
    monkeypatch.setattr(Scripted, "answer", answer)
    monkeypatch.setattr(Scripted, "closed", 0)
    with pytest.raises(IpsetUnavailable, match=words):
        NetlinkIpset().headers()
    assert Scripted.closed == 1
