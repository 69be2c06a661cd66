"""A fault in the write path loses nothing: the real codec and kernel, and a socket that fails once."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from kproxy.addresses import Family
from kproxy.backends.nftables import names
from kproxy.kernel.netlink.messages import HEADER
from kproxy.kernel.nft.commands import AddTable, DeleteElements, DeleteTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from tests.backends.nftables_node import CONFIG, NftablesNode
from tests.builders import endpoint, endpoint_slice, port, service
from tests.kernel.namespace import enter_new, fresh_network

BATCH_BEGIN = 0x10
NEW_ELEMENTS, DELETE_ELEMENTS = 10 << 8 | 12, 10 << 8 | 14
NOTHING = 10 << 8 | 0xFF
"""Message types of nfnetlink: the last one does not exist."""


class FailingSocket(socket.socket):
    """A socket whose next batch of nftables meets `fault`, once."""

    fault: ClassVar[str] = ""
    met: ClassVar[int] = 0
    _overrun = False

    def sendto(self, data: Any, *rest: Any) -> int:
        """Send, unless that is what fails."""
        fault = FailingSocket.fault
        if not fault or HEADER.unpack_from(data)[1] != BATCH_BEGIN:
            return super().sendto(data, *rest)
        FailingSocket.fault = ""
        FailingSocket.met += 1
        if fault.startswith("not sent: "):
            raise _error(fault)
        if fault == "closed":
            self.close()
        if fault.startswith("refused"):
            data = _with_one_refused(data)
        sent = super().sendto(data, *rest)
        if fault.startswith("sent, but: "):
            raise _error(fault)
        if fault.endswith(("lost", "missing")):
            super().recv(1 << 16, socket.MSG_DONTWAIT)
            self._overrun = fault.endswith("lost")
        return sent

    def recv(self, *arguments: Any) -> bytes:
        """Receive what was not lost."""
        overrun, self._overrun = self._overrun, False
        if overrun:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().recv(*arguments)


def _error(fault: str) -> OSError:
    code = getattr(errno, fault.rpartition(" ")[2])
    return OSError(code, os.strerror(code))


def _with_one_refused(data: bytes) -> bytes:
    """A batch in which the kernel refuses one message about elements; the last one has to be another."""
    places, at = [], 0
    while at < len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        places += [at] * (kind in {NEW_ELEMENTS, DELETE_ELEMENTS})
        at += (length + 3) & ~3
    assert len(places) > 1, "the batch has a message after the refused one"
    changed = bytearray(data)
    length, _, *rest = HEADER.unpack_from(data, places[0])
    HEADER.pack_into(changed, places[0], length, NOTHING, *rest)
    return bytes(changed)


FAULTS = (
    "not sent: ENOBUFS",
    "not sent: EAGAIN",
    "not sent: EINTR",
    "sent, but: EINTR",
    "sent, but: ENOBUFS",
    "closed",
    "answer lost",
    "answer missing",
    "refused",
    "refused, and that answer lost",
)


def _nothing() -> None:
    """Nobody else writes."""


def _another_table() -> None:
    """Another program moves the generation."""
    NetlinkNft().commit(Transaction(Family.IPV4, "others", [AddTable()]))


def _our_elements() -> None:
    """Another program deletes elements of kproxy's own."""
    declared = names.declaration_of(Family.IPV4, names.SERVICES)
    assert declared is not None
    gone = DeleteElements(names.SERVICES, declared, ["10.96.0.9 . 6 . 80"])
    NetlinkNft().commit(Transaction(Family.IPV4, names.TABLE, [gone]))


def _our_table() -> None:
    """Another program deletes the table."""
    NetlinkNft().commit(Transaction(Family.IPV4, names.TABLE, [DeleteTable()]))


def _web(node: NftablesNode, number: int, count: int, **fields: Any) -> None:
    node.put(
        service(f"s{number}", f"10.96.0.{number}", ports=[port(80, None)], **fields),
        endpoint_slice(
            *(endpoint(f"10.1.{number}.{n}", node="node2") for n in range(1, count + 1)),
            service=f"s{number}",
            name=f"s{number}-1",
            ports=[port(8080, None)],
        ),
    )


def _grow(node: NftablesNode) -> None:
    _web(node, 1, 4)
    _web(node, 2, 71)
    _web(node, 5, 3, sessionAffinity="ClientIP")


def _shrink(node: NftablesNode) -> None:
    _web(node, 1, 1)
    _web(node, 2, 3)
    node.drop("ns1/s3")
    node.drop("ns1/s4")


CHANGES = (_grow, _shrink)
WRITERS = (_nothing, _another_table, _our_elements, _our_table)
ALL = list(itertools.product(FAULTS, WRITERS, CHANGES))
"""Both directions of a change meet each fault, and some other writer; KPROXY_FAULTS=all: each of them."""


@pytest.mark.parametrize(
    ("fault", "between", "change"),
    [
        pytest.param(*case, id=" ".join([case[0], *(each.__name__.strip("_") for each in case[1:])]))
        for number, case in enumerate(ALL)
        if os.environ.get("KPROXY_FAULTS") == "all" or number // 2 % 4 == (number // 8 + number % 2 + 3) % 4
    ],
)
@fresh_network
def test_a_fault_loses_nothing(
    fault: str,
    between: Callable[[], None],
    change: Callable[[NftablesNode], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", FailingSocket)
    monkeypatch.setattr(FailingSocket, "met", 0)
    node = NftablesNode(CONFIG, NetlinkNft(), piece=500)
    for number, count in ((1, 2), (2, 70), (3, 3), (9, 2)):
        _web(node, number, count)
    _web(node, 4, 2, sessionAffinity="ClientIP")
    node.done()
    change(node)
    monkeypatch.setattr(FailingSocket, "fault", fault)
    node.sync()
    assert FailingSocket.met == 1
    between()
    node.sync()
    unnoticed = node.backend.check(full=True)
    assert not unnoticed or between in {_our_elements, _our_table}
    node.done()
    assert node.backend.check(full=True) == ()
    found = node.nft.reading(Family.IPV4, names.TABLE, portable=True)
    enter_new()
    node.start()
    node.done()
    assert found == node.nft.reading(Family.IPV4, names.TABLE, portable=True)
