"""Send one transaction to the kernel, and determine its outcome.

The kernel processes a batch during the send call: it commits all of it or nothing, and every answer is in the
receive queue when the call returns (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c). It reports each
refused message by sequence number, and acknowledges the last message, the only one with NLM_F_ACK, even if an
earlier one was refused. An error of the commit itself has the number of the message that begins the batch. So
an answer that is not in the queue will not come, and then the outcome is unknown.
"""

import errno
import os
import socket
import sys
from collections.abc import Sequence

import msgspec

from kproxy.kernel.netlink.messages import (
    HEADER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    attributes,
    error_code,
)
from kproxy.kernel.netlink.messages import message as pack
from kproxy.kernel.nft.connection import Connection
from kproxy.kernel.nft.messages import NFGENMSG, SUBSYSTEM, Message
from kproxy.kernel.nft.types import NftError, NftFailure

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_ERROR_TEXT, _ERROR_OFFSET = 1, 2  # enum nlmsgerr_attrs

_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
_ABSENT = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
"""Errors of a kernel that has no nftables and cannot load it."""
_TRANSIENT = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.ERESTART})
"""Errors that do not depend on the message: it may be accepted the next time."""


class _Answer(msgspec.Struct, frozen=True):
    """The kernel's answer to one message; `code` 0 acknowledges it, `offset` counts from its header."""

    sequence: int
    code: int
    text: str = ""
    offset: int | None = None


def commit(connection: Connection, messages: Sequence[Message], target: str) -> None:
    """Commit all messages, or none of them, in the calling thread's network namespace.

    `target` is the family and name of their table. Raises NftError, which names the refused message, or has
    kind INTERRUPTED if it is unknown whether the kernel has committed them.
    """
    if not messages:
        return
    begin = last = 0
    data = b""

    def encode(first: int) -> bytes:
        nonlocal begin, last, data
        begin, last = first, first + len(messages)
        data = _batch(messages, first)
        return data

    try:
        received = connection.exchange(len(messages) + 2, encode)
    except OSError as error:
        raise _not_sent(error, len(data)) from error
    answers = [_answer(*each[1:]) for each in received if each[0] == NLMSG_ERROR]
    refused = next((answer for answer in answers if answer.code), None)
    if refused is not None:
        raise _refusal(refused, refused.sequence - begin - 1, messages, target)
    # The last message is acknowledged also if an earlier one was refused and nothing was committed. So the
    # acknowledgement proves nothing if other answers were lost.
    complete = all(each[0] != NLMSG_OVERRUN for each in received)
    if not complete or not any(answer.sequence == last for answer in answers):
        raise NftError(NftFailure.INTERRUPTED, f"table {target}: the kernel's answer was lost")


def _batch(messages: Sequence[Message], begin: int) -> bytes:
    bound = NFGENMSG.pack(socket.AF_UNSPEC, 0, SUBSYSTEM)
    parts = [pack(_BATCH_BEGIN, NLM_F_REQUEST, begin, bound)]
    last = len(messages)
    for number, each in enumerate(messages, 1):
        flags = each.flags | NLM_F_REQUEST | (NLM_F_ACK if number == last else 0)
        kind = SUBSYSTEM << 8 | each.kind
        parts.append(HEADER.pack(HEADER.size + len(each.body), kind, flags, begin + number, 0))
        parts.append(each.body)
    parts.append(pack(_BATCH_END, NLM_F_REQUEST, begin + last + 1, bound))
    return b"".join(parts)


def _answer(flags: int, sequence: int, content: bytes) -> _Answer:
    code = error_code(content)
    if not flags & _NLM_F_ACK_TLVS:
        return _Answer(sequence, code)
    quoted = HEADER.size
    if not flags & _NLM_F_CAPPED:
        quoted = (HEADER.unpack_from(content, 4)[0] + 3) & ~3
    details = attributes(content[4 + quoted :])
    offset = details.get(_ERROR_OFFSET)
    return _Answer(
        sequence,
        code,
        details.get(_ERROR_TEXT, b"").rstrip(b"\0").decode("utf-8", "replace"),
        None if offset is None else int.from_bytes(offset, sys.byteorder),
    )


def _refusal(answer: _Answer, number: int, messages: Sequence[Message], target: str) -> NftError:
    reason = os.strerror(answer.code) + (f" ({answer.text})" if answer.text else "")
    if answer.code in _FORBIDDEN:
        return NftError(NftFailure.MISSING, f"table {target}: {reason}")
    if not 0 <= number < len(messages):
        kind = NftFailure.MISSING if answer.code in _ABSENT else NftFailure.INTERRUPTED
        return NftError(kind, f"table {target}: the transaction failed: {reason}")
    if answer.code in _TRANSIENT:
        return NftError(NftFailure.INTERRUPTED, f"table {target}: {reason}")
    offset = None if answer.offset is None else answer.offset - HEADER.size
    return NftError(NftFailure.REFUSED, f"{messages[number].describe(target, offset)}: {reason}")


def _not_sent(error: OSError, size: int) -> NftError:
    """The error for a batch that could not be sent, or whose answers could not be received."""
    reason = error.strerror or str(error)
    if error.errno == errno.EMSGSIZE:
        # Without CAP_NET_ADMIN over the namespace's owner, net.core.wmem_max bounds a transaction.
        return NftError(NftFailure.REFUSED, f"{size} bytes are too many for one transaction: {reason}")
    missing = error.errno in _FORBIDDEN | _ABSENT
    return NftError(NftFailure.MISSING if missing else NftFailure.INTERRUPTED, f"cannot write: {reason}")
