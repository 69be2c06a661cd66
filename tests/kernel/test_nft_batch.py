"""What becomes of a transaction, as far as the kernel's answers tell, and what they are taken for."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import HEADER, NLMSG_ERROR, NLMSG_OVERRUN, attribute
from kproxy.kernel.nft import batch
from kproxy.kernel.nft.commands import AddChain, AddElements, AddRule, AddTable, Transaction
from kproxy.kernel.nft.connection import Connection, Received
from kproxy.kernel.nft.messages import encode
from kproxy.kernel.nft.types import NftError, NftFailure

ELEMENTS = AddElements("ips", "type ipv4_addr;", {f"10.0.0.{n}": "" for n in range(3)})
MESSAGES = encode(Transaction(Family.IPV4, "t", [AddTable(), AddChain("c"), AddRule("c", "drop"), ELEMENTS]))
"""Sequence numbers: the beginning, then one for each, the last of which is acknowledged."""
BEGIN, CHAIN, RULE, LAST = 0, 2, 3, 4
CAPPED, WITH_TLVS = 0x100, 0x200


def answer(place: int, code: int, text: str = "", offset: int | None = None) -> tuple[int, int, bytes]:
    """(place in the batch, flags, content) of what the kernel says to a message."""
    content = struct.pack("=i", -code) + bytes(HEADER.size)
    flags = CAPPED
    if text:
        content += attribute(1, text.encode() + b"\0")
        flags |= WITH_TLVS
    if offset is not None:
        content += attribute(2, struct.pack("=I", offset))
        flags |= WITH_TLVS
    return place, flags, content


class Answers(Connection):
    """A kernel that gives these answers, and others that are lost; an error is raised instead, if given."""

    def __init__(
        self, *answers: tuple[int, int, bytes], error: OSError | None = None, lost: bool = False
    ) -> None:
        super().__init__()
        self._answers = answers
        self._error = error
        self._lost = lost

    def exchange(self, count: int, encode: Callable[[int], bytes]) -> list[Received]:
        """See Connection.exchange."""
        assert len(encode(41)) % 4 == 0
        assert count == len(MESSAGES) + 2
        if self._error is not None:
            raise self._error
        lost = [(NLMSG_OVERRUN, 0, 41, b"")] if self._lost else []
        return lost + [(NLMSG_ERROR, flags, 41 + place, content) for place, flags, content in self._answers]


def outcome(
    *answers: tuple[int, int, bytes], error: OSError | None = None, lost: bool = False
) -> tuple[NftFailure, str]:
    with pytest.raises(NftError) as caught:
        batch.commit(Answers(*answers, error=error, lost=lost), MESSAGES, "ip t")
    assert caught.value.message.count("\n") == 0
    return caught.value.kind, caught.value.message


def test_the_acknowledgement_of_the_last_message_is_the_commit() -> None:
    batch.commit(Answers(answer(LAST, 0)), MESSAGES, "ip t")
    batch.commit(Answers(answer(RULE, 0), answer(LAST, 0)), MESSAGES, "ip t")
    batch.commit(Answers(), [], "ip t")


def test_without_it_the_outcome_is_unknown() -> None:
    assert outcome() == (NftFailure.INTERRUPTED, "table ip t: the kernel's answer was lost")
    assert outcome(answer(CHAIN, 0))[0] is NftFailure.INTERRUPTED


def test_an_acknowledgement_beside_a_lost_answer_is_no_commit() -> None:
    assert outcome(answer(LAST, 0), lost=True) == (
        NftFailure.INTERRUPTED,
        "table ip t: the kernel's answer was lost",
    )
    assert outcome(answer(RULE, errno.EINVAL), lost=True)[0] is NftFailure.REFUSED


def test_a_refused_message_is_named_with_what_the_kernel_says_of_it() -> None:
    found = outcome(answer(RULE, errno.EINVAL, "why it is so"), answer(LAST, errno.ENOENT))
    assert found == (NftFailure.REFUSED, "add rule ip t c drop: Invalid argument (why it is so)")
    assert outcome(answer(CHAIN, errno.EBUSY), answer(LAST, 0))[1].startswith("add chain ip t c: Device or")


def test_a_refused_element_is_named() -> None:
    message = MESSAGES[LAST - 1]
    listed = message.listed + HEADER.size
    size = (len(message.body) - message.listed - 4) // 3
    for number in range(3):
        place = listed + 4 + number * size
        found = outcome(answer(LAST, errno.EEXIST, offset=place))
        assert found == (NftFailure.REFUSED, f"element ip t ips {{ 10.0.0.{number} }}: File exists")
    for elsewhere in (0, listed, listed + 5, listed + 4 + 3 * size, 1 << 31):
        found = outcome(answer(LAST, errno.EEXIST, offset=elsewhere))
        assert found[1] == "element ip t ips { 10.0.0.0, 10.0.0.1, 10.0.0.2 }: File exists"


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.ENOBUFS, errno.ERESTART])
@pytest.mark.parametrize("place", [BEGIN, RULE])
def test_what_passes_is_not_the_fault_of_what_was_sent(place: int, code: int) -> None:
    assert outcome(answer(place, code), answer(LAST, 0))[0] is NftFailure.INTERRUPTED


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, NftFailure.MISSING),
        (errno.EACCES, NftFailure.MISSING),
        (errno.EOPNOTSUPP, NftFailure.MISSING),
        (errno.EBUSY, NftFailure.INTERRUPTED),
        (errno.EIO, NftFailure.INTERRUPTED),
    ],
)
def test_what_is_said_of_the_whole_batch(code: int, kind: NftFailure) -> None:
    assert outcome(answer(BEGIN, code), answer(LAST, 0))[0] is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOBUFS, NftFailure.INTERRUPTED),
        (errno.EBUSY, NftFailure.INTERRUPTED),
        (errno.EAGAIN, NftFailure.INTERRUPTED),
        (errno.EMFILE, NftFailure.INTERRUPTED),
        (errno.EPROTONOSUPPORT, NftFailure.MISSING),
        (errno.EPERM, NftFailure.MISSING),
        (errno.EMSGSIZE, NftFailure.REFUSED),
    ],
)
def test_what_cannot_be_sent(code: int, kind: NftFailure) -> None:
    assert outcome(error=OSError(code, "a reason"))[0] is kind
